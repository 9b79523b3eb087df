"""Where a process is and looks for others, on a machine whose network or home is not as it should be."""

from __future__ import annotations

import pwd
import socket

import pytest

from zswarm.beacon import interface
from zswarm.beacon.interface import Interface
from zswarm.cli import main, places
from zswarm.cli.places import seed_addresses
from zswarm.errors import NotYet, UserError
from zswarm.swarm_key import SwarmKey

SOME = [Interface(name="eth0", host="10.0.0.1")]


@pytest.fixture
def name_service(monkeypatch):
    """Have the name service answer with an error, on a machine with these interfaces."""

    def set_up(error, interfaces):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(places.socket, "getaddrinfo", fail)
        monkeypatch.setattr(interface, "real_interfaces", lambda: interfaces)

    return set_up


@pytest.mark.parametrize(
    ("number", "interfaces", "is_for_later"),
    [
        (socket.EAI_AGAIN, SOME, True),
        (socket.EAI_AGAIN, [], True),
        (socket.EAI_NONAME, [], True),
        (socket.EAI_NONAME, SOME, False),
        (socket.EAI_FAIL, SOME, False),
    ],
)
def test_a_seed_that_cannot_be_looked_up_yet_is_none_that_nobody_knows(name_service, number, interfaces, is_for_later):
    """At boot a seed's name had the exit code of what only the user can mend, and systemd left the process alone."""
    name_service(socket.gaierror(number, "says the name service"), interfaces)
    with pytest.raises(UserError) as raised:
        seed_addresses(["10.0.0.2", "lab2"])
    assert isinstance(raised.value, NotYet) is is_for_later
    known = (
        "cannot be looked up yet: says the name service: if that lasts," if is_for_later else "is no machine that this"
    )
    assert f"--seed: 'lab2' {known}" in str(raised.value)
    assert str(raised.value).endswith("write its IP address")


@pytest.mark.parametrize("seed", ["no such machine", "lab2:65536", "lab2:x", "", "\tlab2"])
def test_what_is_no_name_is_not_looked_up(name_service, seed):
    name_service(AssertionError("it was looked up"), [])
    with pytest.raises(UserError, match="is no machine: write HOST or HOST:PORT"):
        seed_addresses([seed])


@pytest.mark.parametrize("seed", ["\udcff", "a..b", "x" * 300])
def test_what_cannot_be_a_name_is_the_users_to_mend(seed):
    with pytest.raises(UserError, match="is no machine that this one knows") as raised:
        seed_addresses([seed])
    assert not isinstance(raised.value, NotYet)


@pytest.fixture
def own_port(monkeypatch):
    """Return a port at which somebody listens on the loopback, of a machine whose own address is 127.0.0.2."""
    monkeypatch.setattr(interface, "own_interface", lambda _seeds: Interface(name="eth0", host="127.0.0.2"))
    with socket.create_server((places.LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def place_at(port, **of):
    given = {"name": None, "host": None, "seeds": (), "key": SwarmKey(b"k" * 32), "beacon_port": port} | of
    place, why = places.place_of(**given)
    return place.host, place.seeds, why


def test_a_beacon_that_listens_on_the_loopback_is_found_by_every_command(own_port):
    """`zswarm train` found what `zswarm join --host 127.0.0.1` had started, by mDNS; `doctor` and `move` asked in vain at the
    machine's address."""
    host, seeds, _ = place_at(own_port)
    assert (host, seeds) == ("127.0.0.2", (f"tcp://127.0.0.1:{own_port}",))


def test_one_at_the_machines_address_is_preferred(own_port):
    with socket.create_server(("127.0.0.2", own_port)):
        assert place_at(own_port)[1] == (f"tcp://127.0.0.2:{own_port}",)


def test_whoever_names_an_address_or_is_the_beacon_looks_nowhere_else(own_port):
    assert place_at(own_port, is_beacon=True)[1] == (f"tcp://127.0.0.2:{own_port}",)
    assert place_at(own_port, host="127.0.0.3")[1] == (f"tcp://127.0.0.3:{own_port}",)


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "as --host says: on this machine alone"), ("10.0.0.5", "as --host says"), ("x", "as --host says")],
)
def test_who_joins_at_the_loopback_is_told_that_he_is_alone(host, why):
    assert places.own_host(host, (), None) == (host, why)


COMMANDS = [
    ("pause",),
    ("init", "run.toml"),
    ("broker", "--seed", "127.0.0.1"),
    ("worker", "--coordinator", "tcp://127.0.0.1:4711"),
    ("key", "init"),
    ("join",),
]
VARIABLES = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "STATE_DIRECTORY", "ZSWARM_KEY")


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """Have a user without an account, in a folder of his own."""

    def getpwuid(uid):
        raise KeyError(uid)

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_user_without_a_home_is_told(homeless, capsys, arguments):
    """It ended as a bug of ours, with a RuntimeError."""
    assert main.run(list(arguments)) == 2
    shown = capsys.readouterr().err
    assert "has no home folder on this machine: set HOME, or XDG_" in shown
    assert "bug" not in shown


@pytest.mark.parametrize("arguments", [each for each in COMMANDS if each[0] not in ("pause", "key")], ids=" ".join)
def test_a_home_that_cannot_be_searched_is_told(monkeypatch, tmp_path, capsys, arguments):
    """It ended as a bug of ours, with a PermissionError. Root searches everywhere, but no name of this length."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / ("x" * 300)))
    monkeypatch.chdir(tmp_path)
    assert main.run(list(arguments)) == 2
    reason = "cannot see whether it is there: File name too long"
    assert f".config/zswarm/key: {reason}" in capsys.readouterr().err


def test_a_pause_that_cannot_be_seen_is_told(monkeypatch, tmp_path):
    from zswarm.cli.pausing import is_paused

    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / ("x" * 300)))
    with pytest.raises(UserError, match="paused: cannot see whether it is there: File name too long"):
        is_paused()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert not is_paused()
    (tmp_path / "paused").touch()
    assert is_paused()
