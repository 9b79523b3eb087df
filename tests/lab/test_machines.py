"""The laboratory does what it says: a cut is a cut, a cap is a cap, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.ground import LabError, why_not
from tests.lab.machines import SOURCE, Lab

OBSTACLE = why_not()
pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    pytest.mark.xdist_group("lab"),
]
DEADLINE_S = 20.0
"""Far more than anything here takes; it only turns a hang into a failure."""
SILENCE_S = 0.3
ASK = """
import socket, sys
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.settimeout(float(sys.argv[2]))
peer.sendto(b"hello", (sys.argv[1], 7))
try:
    print(peer.recv(99).decode())
except TimeoutError:
    print("silence")
"""
ANSWER = """
import socket
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(("", 7))
print("up", flush=True)
while True:
    data, sender = peer.recvfrom(99)
    peer.sendto(data, sender)
"""
POUR = """
import socket, sys, time
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
begun_s = time.monotonic()
while (spent_s := time.monotonic() - begun_s) < 0.5:
    peer.sendto(bytes(1400), (sys.argv[1], 9))
print(spent_s)
"""
SPIN = """
import time
begun_s = time.monotonic()
while time.monotonic() - begun_s < 0.5:
    pass
print(time.process_time() / (time.monotonic() - begun_s))
"""


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab
    assert not lab.exists


def python(code, *arguments):
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


@contextmanager
def answering(machine):
    with machine.popen(python(ANSWER), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            machine.kill()


def asked(machine, other, within_s=DEADLINE_S):
    return machine.run(python(ASK, other.host, within_s), timeout_s=DEADLINE_S + 5).strip()


@pytest.mark.parametrize("latency_ms", [None, 0.5], ids=["veth", "relayed"])
def test_machines_reach_each_other_but_for_a_cut_and_a_freeze(lab, latency_ms):
    """What is frozen gets the question, and answers when it is thawed; what is cut off never gets it."""
    one, other = (lab.machine(f"lab{index}", latency_ms=latency_ms) for index in range(2))
    with answering(other) as process:
        assert asked(one, other) == "hello"
        other.cut()
        before = other.received_bytes
        assert asked(one, other, SILENCE_S) == "silence"
        assert other.received_bytes == before
        other.mend()
        assert asked(one, other) == "hello"
        other.freeze()
        before = other.received_bytes
        assert asked(one, other, SILENCE_S) == "silence"
        assert other.received_bytes > before
        other.thaw()
        assert asked(one, other) == "hello"
        other.freeze()
        other.kill()
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        assert other.pids() == set()


def test_a_machine_has_its_own_name_and_network(lab):
    one = lab.machine("lab0")
    code = "import os, pathlib; print(os.uname().nodename, *sorted(p.name for p in pathlib.Path('/sys/class/net').iterdir()))"
    assert one.run(python(code)).split() == ["lab0", "eth0", "lo"]
    with pytest.raises(LabError, match=r"lab0.*ended with 3"):
        one.run(python("raise SystemExit(3)"))


def test_a_cap_holds_in_either_direction(lab):
    """A sender pours out as much as it can: with a cap, what the cap lets through; without one, more than that."""
    rate_mbit = 20.0
    one, other = lab.machine("lab0", rate_mbit=rate_mbit), lab.machine("lab1")

    def allowed_bytes(spent_s):
        return rate_mbit / 8 * 1e6 * float(spent_s)

    spent_s = one.run(python(POUR, other.host))
    assert 0 < one.sent_bytes < 2.0 * allowed_bytes(spent_s)
    spent_s = other.run(python(POUR, one.host))
    assert other.sent_bytes > one.sent_bytes
    assert 0 < one.received_bytes < 2.0 * allowed_bytes(spent_s)


def test_a_share_of_the_processor_is_the_most_that_a_machine_gets(lab):
    assert float(lab.machine("lab0", cores=0.2).run(python(SPIN))) < 0.4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_the_laboratorys_process_ends(number):
    """Not even of a machine that is frozen."""
    code = (
        "import sys, time\n"
        "from tests.lab.machines import Lab\n"
        "lab = Lab()\n"
        "machine = lab.machine('lab0', latency_ms=1.0)\n"
        "process = machine.popen(['sleep', '1000'])\n"
        "machine.freeze()\n"
        "print(lab.name, process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=SOURCE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, pid = owner.stdout.readline().split()
        assert (Path("/run/netns") / name).exists()
        owner.send_signal(number)
    deadline_s = time.monotonic() + DEADLINE_S
    while is_there(name) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not is_there(name)
    assert not is_alive(int(pid))


def is_there(name):
    folders = [Path("/run/netns"), Path("/run/zswarm-lab")]
    return any(list(folder.glob(f"{name}*")) for folder in folders)


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
