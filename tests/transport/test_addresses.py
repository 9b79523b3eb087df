"""Where zswarm listens and what it dials."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.transport.boards import numbered, receive
from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.transport import Switchboard, checked_address

NO_ADDRESSES = [
    "",
    "127.0.0.1:80",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://127.0.0.1:http",
    "tcp://127.0.0.1:65536",
    "tcp://127.0.0.1:99999999",
    "tcp://127.0.0.1:1;tcp://127.0.0.1:2",
    "udp://127.0.0.1:80",
    "inproc://here",
    "ipc://",
]
ELSEWHERE = [
    "tcp://10.0.0.1:80",
    "tcp://0.0.0.0:80",
    "tcp://*:80",
    "tcp://[::]:80",
    "tcp://[2001:db8::1]:80",
    "tcp://example.org:80",
    "tcp://localhost.example.org:80",
    "tcp://127.0.0.1.example.org:80",
]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://127.3.2.1:65535", "tcp://[::1]:80", "ipc:///a/b"])
def test_addresses_of_this_machine_are_fine(address: str) -> None:
    """To dial and to listen on."""
    assert checked_address(address) == address
    assert checked_address(address, listening=True) == address


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0"])
def test_any_port_is_for_listening(address: str) -> None:
    """Nobody can dial it."""
    assert checked_address(address, listening=True) == address
    with pytest.raises(UserError, match="no port"):
        checked_address(address)


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_is_a_users_error(here: Switchboard, address: str) -> None:
    """The text shows it and says what to write."""
    with pytest.raises(UserError, match=r"is no address|no port") as caught:
        here.bind("control", Address(address))
    assert repr(address) in str(caught.value)
    with pytest.raises(UserError):
        here.dial(Address(address))


@pytest.mark.parametrize("address", ELSEWHERE)
def test_without_keys_nothing_leaves_this_machine(here: Switchboard, address: str) -> None:
    """Neither listening nor dialling; the text says why, and what instead."""
    with pytest.raises(UserError, match=r"until swarms have keys.* write tcp://127\.0\.0\.1:PORT"):
        here.bind("control", Address(address))
    with pytest.raises(UserError, match="until swarms have keys"):
        here.dial(Address(address))


def test_a_bad_address_in_a_message_is_a_loss(here: Switchboard) -> None:
    """Addresses come from peers too: sending to one raises nothing."""
    with capture_logs() as records:
        assert not here.send(Address("tcp://10.0.0.1:80"), numbered(0))
        assert not here.send(Address("tcp://10.0.0.1:80"), numbered(0))
    assert here.counters.num_lost == 2
    assert len(records) == 1


def test_a_port_in_use_is_a_users_error(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """The text names it and says what to do; the switchboard stays usable."""
    address = here.bind("coordinator", any_port)
    with pytest.raises(UserError, match="another process does; stop it") as caught:
        there.bind("coordinator", address)
    assert address in str(caught.value)
    other = there.bind("coordinator", any_port)
    here.send(other, numbered(1))
    receive(1, here, there)


def test_a_path_in_use_is_not_taken_over(here: Switchboard, there: Switchboard, tmp_path: Path) -> None:
    """ZeroMQ would unlink it and leave the first process deaf."""
    address = Address(f"ipc://{tmp_path}/socket")
    here.bind("coordinator", address)
    with pytest.raises(UserError, match="write another path"):
        there.bind("coordinator", address)
    there.send(address, numbered(1))
    receive(1, here, there)


def test_a_path_that_nobody_uses_any_more_is_free(here: Switchboard, tmp_path: Path) -> None:
    """What a killed process left behind is in nobody's way."""
    path = tmp_path / "socket"
    path.touch()
    here.bind("coordinator", Address(f"ipc://{path}"))


def test_an_impossible_path_is_a_users_error(here: Switchboard, tmp_path: Path) -> None:
    """The system's reason is in the text."""
    with pytest.raises(UserError, match=r"cannot listen on ipc://.*No such file"):
        here.bind("coordinator", Address(f"ipc://{tmp_path}/none/socket"))
