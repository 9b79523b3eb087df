"""Where zswarm listens and what it dials."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.transport.boards import numbered, receive
from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.transport import Switchboard, any_port, checked_address, host_towards

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
NAMES = ["tcp://*:80", "tcp://example.org:80", "tcp://localhost.example.org:80", "tcp://127.0.0.1.example.org:80"]
OF_MANY = [
    "tcp://0.0.0.0:80",
    "tcp://[::]:80",
    "tcp://224.0.0.251:80",
    "tcp://[ff02::fb]:80",
    "tcp://255.255.255.255:80",
]
ELSEWHERE = ["tcp://10.0.0.1:80", "tcp://192.0.2.7:80", "tcp://[2001:db8::1]:80"]


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


@pytest.mark.parametrize("address", ELSEWHERE + OF_MANY)
def test_without_a_key_nothing_leaves_this_machine(here: Switchboard, address: str) -> None:
    """Neither listening nor dialling; the text says why, and what instead."""
    with pytest.raises(UserError, match=r"`zswarm key init` and .* --key, or write tcp://127\.0\.0\.1:PORT"):
        here.bind("control", Address(address))
    with pytest.raises(UserError, match="without a swarm key"):
        here.dial(Address(address))


@pytest.mark.parametrize("address", ELSEWHERE)
def test_with_a_key_any_machine_may_be_dialled(address: str) -> None:
    """And listened on, if it is this one: the system knows which addresses are."""
    assert checked_address(address, has_key=True) == address
    assert checked_address(address, has_key=True, listening=True) == address


@pytest.mark.parametrize("address", OF_MANY)
def test_an_address_of_many_machines_is_none_to_be_reached_by(address: str) -> None:
    """Others are told the address that one listens on."""
    with pytest.raises(UserError, match="not of one machine"):
        checked_address(address, has_key=True, listening=True)


@pytest.mark.parametrize("address", NAMES)
@pytest.mark.parametrize("has_key", [False, True])
def test_a_name_is_no_address(address: str, has_key: bool) -> None:
    """ZeroMQ would look it up in the thread that moves the messages."""
    with pytest.raises(UserError, match="write the IP address"):
        checked_address(address, has_key=has_key)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_host_stands_for_any_of_its_ports(host: str) -> None:
    """In the way that ZeroMQ writes it."""
    assert checked_address(any_port(host), listening=True).endswith(":*")


@pytest.mark.parametrize(("address", "host"), [("tcp://127.0.0.1:80", "127.0.0.1"), ("ipc:///a/b", "127.0.0.1")])
def test_the_way_to_an_address_begins_at_one_of_this_machine(address: str, host: str) -> None:
    """Which is what to listen on, if the others are reached in the same way."""
    assert host_towards(Address(address)) == host


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
