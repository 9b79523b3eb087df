from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest

from zswarm.cli.started_by import credentials_folder, started_by
from zswarm.lifeline import Lifeline
from zswarm.limits import REPORTS_PER_WATCHDOG, STATUS_S
from zswarm.loop import LONGEST_WAIT_S
from zswarm.machine import Health
from zswarm.overseer import NOBODY
from zswarm.signals import signals_as
from zswarm.systemd import Notifier
from zswarm.transport import Switchboard


class Systemd:
    """The socket that a service manager listens at."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """Return the lines of each report since the last call."""
        reports = []
        while True:
            try:
                reports.append(self._socket.recv(4096).decode().splitlines())
            except BlockingIOError:
                return reports

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def folder():
    """Return a folder with a short name: a socket's path has at most 107 bytes, which pytest's may exceed."""
    with TemporaryDirectory(prefix="zswarm-") as folder:
        yield folder


@pytest.fixture(params=["path", "abstract"])
def systemd(request, folder):
    systemd = Systemd(f"@{folder}" if request.param == "abstract" else f"{folder}/notify")
    yield systemd
    systemd.close()


class Process:
    """One that has begun, its clock, and what its machine says."""

    def __init__(self, address: str, *, watchdog_s: float | None = None) -> None:
        self.now_s = 100.0
        self.health = Health(text="stage 0")
        self.notifier = Notifier(address, watchdog_s=watchdog_s, clock=lambda: self.now_s)

    def begin(self) -> None:
        with Switchboard() as switchboard:
            self.notifier.begin(switchboard, lambda _now: self.health)

    def turn(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.notifier.turned()


def test_readiness_is_told_once_and_status_now_and_then(systemd):
    process = Process(systemd.address)
    process.turn(10.0)
    assert systemd.heard() == []
    process.begin()
    assert systemd.heard() == [["READY=1", "STATUS=stage 0"]]
    process.turn(STATUS_S - 0.1)
    assert systemd.heard() == []
    process.health = Health(text="stage\n1")
    process.turn(0.1)
    assert systemd.heard() == [["STATUS=stage 1"]]


def test_the_watchdog_is_fed_in_time_while_the_loop_turns(systemd):
    """Several times before it bites, though the loop may wait for LONGEST_WAIT_S between two turns."""
    watchdog_s = 10.0
    process = Process(systemd.address, watchdog_s=watchdog_s)
    process.begin()
    systemd.heard()
    passed_s = 0.0
    while passed_s + LONGEST_WAIT_S < watchdog_s:
        passed_s += LONGEST_WAIT_S
        process.turn(LONGEST_WAIT_S)
    assert systemd.heard().count(["STATUS=stage 0", "WATCHDOG=1"]) >= REPORTS_PER_WATCHDOG - 1


def test_a_short_watchdog_is_fed_oftener(systemd):
    process = Process(systemd.address, watchdog_s=2.0)
    process.begin()
    systemd.heard()
    process.turn(2.0 / REPORTS_PER_WATCHDOG)
    assert systemd.heard() == [["STATUS=stage 0", "WATCHDOG=1"]]


def test_a_process_that_is_not_well_says_so_and_feeds_nothing(systemd):
    process = Process(systemd.address, watchdog_s=10.0)
    process.begin()
    systemd.heard()
    process.health = Health(text="the device hangs", is_well=False)
    process.turn(STATUS_S)
    assert systemd.heard() == [["STATUS=the device hangs"]]


def test_after_stopping_nothing_more_is_said(systemd):
    """A status line would hide why it stops; the watchdog sleeps meanwhile."""
    process = Process(systemd.address, watchdog_s=10.0)
    process.begin()
    process.notifier.stopping("asked to leave")
    process.turn(60.0)
    assert systemd.heard()[1:] == [["STOPPING=1", "STATUS=stopping: asked to leave"]]


def test_readiness_that_was_lost_is_told_again(folder):
    """Systemd would wait for it until the start times out."""
    process = Process(f"{folder}/notify")
    process.begin()
    systemd = Systemd(f"{folder}/notify")
    process.turn(STATUS_S)
    process.turn(STATUS_S)
    assert systemd.heard() == [["READY=1", "STATUS=stage 0"], ["STATUS=stage 0"]]
    systemd.close()


# -- who has started it ------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_systemd_nobody_is_told(environment):
    assert started_by() is NOBODY
    environment.setenv("NOTIFY_SOCKET", "relative/path")
    assert started_by() is NOBODY


@pytest.mark.parametrize(
    ("microseconds", "of", "feeds"),
    [
        ("10000000", "mine", True),
        ("10000000", "", True),
        ("10000000", "1", False),
        ("0", "", False),
        ("soon", "", False),
        ("", "", False),
    ],
)
def test_a_watchdog_of_this_process_is_fed(environment, systemd, microseconds, of, feeds):
    environment.setenv("NOTIFY_SOCKET", systemd.address)
    environment.setenv("WATCHDOG_USEC", microseconds)
    environment.setenv("WATCHDOG_PID", str(os.getpid()) if of == "mine" else of)
    notifier = started_by()
    with Switchboard() as switchboard:
        notifier.begin(switchboard, lambda _now: Health(text="here"))
    assert systemd.heard() == [["READY=1", "STATUS=here", *(["WATCHDOG=1"] if feeds else [])]]


def test_children_inherit_nothing_of_it(environment):
    """A child that answered in its parent's name would be taken for it."""
    environment.setenv("NOTIFY_SOCKET", "@nobody")
    environment.setenv("WATCHDOG_USEC", "1000000")
    environment.setenv("WATCHDOG_PID", str(os.getpid()))
    assert isinstance(started_by(), Notifier)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert started_by() is NOBODY


def test_the_credentials_folder_is_what_systemd_says(environment):
    assert credentials_folder() is None
    environment.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/zswarm-broker.service")
    assert str(credentials_folder()) == "/run/credentials/zswarm-broker.service"


# -- signals -----------------------------------------------------------------------------------------


def test_sigterm_is_told_before_the_loop_hears_of_it(systemd):
    """The drain takes its time; systemd says meanwhile that the service is stopping."""
    process = Process(systemd.address)
    with signals_as("leave", wake=lambda: None, overseer=process.notifier) as events:
        os.kill(os.getpid(), signal.SIGTERM)
    assert events() == ["leave"]
    assert systemd.heard() == [["STOPPING=1", "STATUS=stopping: asked to leave"]]


def test_sigterm_is_left_alone_in_a_child_that_its_family_ends():
    before = signal.getsignal(signal.SIGTERM)
    with signals_as("leave", wake=lambda: None, overseer=Lifeline()):
        assert signal.getsignal(signal.SIGTERM) is before


# -- whole processes ---------------------------------------------------------------------------------


def test_a_broker_is_ready_once_it_listens_and_says_when_it_stops():
    """The order of what systemd hears from a real process, up to its end by SIGTERM."""
    systemd = Systemd(f"@zswarm-{secrets.token_hex(8)}")
    systemd._socket.settimeout(30.0)
    command = [sys.executable, "-m", "zswarm", "broker", "--coordinator", "tcp://127.0.0.1:9"]
    environment = os.environ | {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "30000000"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as broker:
        first = systemd._socket.recv(4096).decode().splitlines()
        broker.send_signal(signal.SIGTERM)
        log = broker.communicate(timeout=30.0)[1]
    assert broker.returncode == 0
    assert first == ["READY=1", "STATUS=waiting for a place in the run of tcp://127.0.0.1:9", "WATCHDOG=1"]
    assert log.index('"listening"') < log.index('"ended"')
    systemd._socket.setblocking(False)
    assert ["STOPPING=1", "STATUS=stopping: asked to leave"] in systemd.heard()
    systemd.close()
