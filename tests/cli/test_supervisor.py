from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from zswarm.cli.family import CRASHED, Ended
from zswarm.cli.supervisor import MAX_SHORT_LIVES, Fate, Restarts, fate
from zswarm.errors import REFUSED


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("worker-3", -signal.SIGKILL, Fate.AGAIN),
        ("worker-3", -signal.SIGSEGV, Fate.AGAIN),
        ("worker-3", CRASHED, Fate.AGAIN),
        ("worker-3", 1, Fate.AGAIN),
        ("worker-3", 0, Fate.GONE),
        ("broker-0", REFUSED, Fate.GONE),
        ("broker-0", 2, Fate.OVER),
        ("trainer", -signal.SIGKILL, Fate.AGAIN),
        ("trainer", CRASHED, Fate.AGAIN),
        ("trainer", 0, Fate.OVER),
        ("trainer", 1, Fate.OVER),
        ("trainer", 2, Fate.OVER),
        ("trainer", 130, Fate.OVER),
    ],
)
def test_what_follows_from_the_end_of_a_child(name, code, expected):
    assert fate(Ended(name=name, code=code)) is expected


def pauses(ages):
    """Return the pauses after lives of these lengths, up to the one that is the last."""
    restarts, now, found = Restarts(), 100.0, []
    restarts.started("worker-3", now)
    for age in ages:
        now += age
        if not restarts.died("worker-3", now):
            return [*found, None]
        found.append(round(restarts.next_s() - now, 3))
        assert restarts.due(restarts.next_s() - 0.01) == []
        now = restarts.next_s()
        assert restarts.due(now) == ["worker-3"]
        restarts.started("worker-3", now)
        assert restarts.due(now) == []
    return found


def test_pauses_grow_while_lives_are_short():
    assert pauses([30.0, 30.0, 30.0]) == [0.2, 0.2, 0.2]
    assert pauses([1.0, 9.0, 1.0, 30.0, 1.0]) == [0.2, 0.4, 0.8, 0.2, 0.2]


def test_a_child_that_keeps_dying_young_is_left_at_that():
    assert pauses([1.0] * 9) == [0.2, 0.4, 0.8, 1.6, None]
    assert MAX_SHORT_LIVES == 5


def test_every_child_has_pauses_of_its_own():
    restarts = Restarts()
    for name in ("worker-0", "worker-1"):
        restarts.started(name, 0.0)
        assert restarts.died(name, 1.0)
    restarts.started("worker-1", 1.2)
    assert restarts.died("worker-1", 2.0)
    assert restarts.due(1.2) == ["worker-0"]
    assert (restarts.num_lives("worker-0"), restarts.num_lives("worker-1"), restarts.num_lives("x")) == (1, 2, 0)


PROGRAM = """
import os, signal, sys
from zswarm.cli.family import Family
from zswarm.cli.supervisor import Supervisor

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def trainer(num_lives):
    TRAINER

def worker(num_lives):
    say("worker", num_lives)
    if WORKER_LIVES < 0:
        os._exit(78)
    if num_lives < WORKER_LIVES:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()

def note(processes):
    say("processes", *sorted(processes))

with Family() as family:
    family.fork("broker-0", signal.pause)
    bodies = {"broker-0": None, "trainer": trainer, "worker-0": worker}
    sys.exit(Supervisor(family, bodies, note=note, advice="to go on: do it again").run())
"""

WAIT = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); say('listens'); signal.sigwait([signal.SIGTERM]); "


def program(*, trainer, worker_lives):
    return [sys.executable, "-c", PROGRAM.replace("TRAINER", trainer).replace("WORKER_LIVES", str(worker_lives))]


def test_who_is_killed_lives_again_and_the_trainers_end_is_the_end():
    trainer = "os.kill(os.getpid(), signal.SIGKILL) if num_lives == 0 else sys.stdin.readline(); return 0"
    with subprocess.Popen(
        program(trainer=trainer, worker_lives=2),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        told = []
        while "worker 2\n" not in told:
            told.append(process.stdout.readline())
            assert told[-1]
        out, errors = process.communicate("the end\n", timeout=60)
    told = "".join([*told, out]).splitlines()
    assert process.returncode == 0
    assert [line for line in told if line.startswith("worker")] == ["worker 0", "worker 1", "worker 2"]
    assert "processes broker-0 trainer worker-0" in told
    assert errors.count("zswarm: worker-0 was killed by SIGKILL and is started again\n") == 2
    assert errors.count("zswarm: trainer was killed by SIGKILL and is started again\n") == 1


def test_an_interrupt_while_the_trainer_is_dead_ends_at_once():
    with subprocess.Popen(
        program(trainer="return 70", worker_lives=0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "trainer" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "zswarm: interrupted" in errors
    assert errors.endswith("zswarm: to go on: do it again\n")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); say('listens'); signal.pause()", 130),
        (WAIT + "return 130", 130),
        (WAIT + "return 1", 130),
        (WAIT + "os.kill(os.getpid(), signal.SIGKILL)", 130),
        (WAIT + "return 0", 0),
    ],
    ids=["too slow", "in time", "fails", "is killed", "is done"],
)
def test_an_interrupt_has_its_exit_code_however_the_trainer_ends(end, code):
    """One that took longer than it had made Ctrl-C look like a run that had failed. Who has to go on is told how."""
    with subprocess.Popen(
        program(trainer=end, worker_lives=0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.stdout.readline() != "listens\n":
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("zswarm: to go on: do it again\n" in errors) is (code == 130)


@pytest.mark.parametrize(("ended", "code"), [(70, 1), (75, 75)])
def test_a_child_that_cannot_live_ends_the_run(ended, code):
    """What may mend itself by the time that somebody begins the command again keeps its exit code."""
    result = subprocess.run(
        program(trainer=f"return {ended}", worker_lives=0), capture_output=True, check=False, text=True, timeout=60
    )
    assert result.returncode == code
    assert f"trainer ended with exit code {ended}, 5 times in a row within 10 s: the run ends here" in result.stderr
    assert "worker-0" not in result.stderr


def test_a_run_that_takes_none_of_its_workers_ends():
    """None of them had enough memory, and the trainer waited for ever for others, who cannot come."""
    trainer = WAIT + "return 130"
    result = subprocess.run(
        program(trainer=trainer, worker_lives=-1), capture_output=True, check=False, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "zswarm: no worker is left that the run takes: it ends here" in result.stderr


def test_who_is_killed_by_others_is_started_again_however_often() -> None:
    """`zswarm chaos --roles trainer` ended the run: its fifth kill within ten seconds each passed for a crash."""
    restarts = Restarts()
    for life in range(4 * MAX_SHORT_LIVES):
        restarts.started("trainer", 10.0 * life)
        assert restarts.died("trainer", 10.0 * life + 1.0, is_excused=True)


HUNG = """
import ctypes, signal, sys, time
from time import monotonic
from zswarm.cli.family import Family
from zswarm.machine import Health

class Sockets:
    def watch(self, fd, callback):
        pass

def child(holds_lock, is_stopping=False):
    with_lock = ctypes.PyDLL(None)
    family.lifeline.begin(Sockets(), lambda now: Health(text=""))
    if is_stopping:
        family.lifeline.stopping("")
    while True:
        family.lifeline.turned()
        if holds_lock:
            with_lock.sleep(60)  # and no other thread of this process runs meanwhile
        time.sleep(0.05)

with Family(watchdog_s=5.0) as family:
    family.fork("worker-0", lambda: child(holds_lock=True))
    family.fork("worker-1", lambda: child(holds_lock=False))
    family.fork("worker-2", lambda: child(holds_lock=False, is_stopping=True))
    family.fork("trainer-that-does-not-serve-yet", lambda: time.sleep(60))
    killed = []
    until_s = monotonic() + 30
    while "worker-0" not in killed and monotonic() < until_s:
        killed += family.kill_hung()
        time.sleep(0.1)
    while not (ended := family.reap()) and monotonic() < until_s:
        time.sleep(0.1)
    print(sorted(killed), sorted((e.name, e.code) for e in ended.values()), sorted(family.processes()))
"""


def test_a_child_that_holds_pythons_lock_is_killed():
    """Its threads are still, libzmq's answer for it, and it can not end itself. Who stops, or has not begun, is not watched."""
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == (
        "['worker-0'] [('worker-0', -9)] ['trainer-that-does-not-serve-yet', 'worker-1', 'worker-2']\n"
    )


STALLED = """
import time
from zswarm.cli import family as module
from zswarm.cli.family import Family
from zswarm.lifeline import Pulse

now = [1000.0]
module.monotonic = lambda: now[0]
with Family(watchdog_s=60.0) as family:
    pulse = Pulse()
    pulse.beat(1000.0)
    family._pulses[0] = pulse
    family._names[0] = "worker-0"
    killed = []
    module.os.kill = lambda pid, number: killed.append((now[0], pid))
    for now[0] in [*range(1000, 1030), *range(1100, 1200)]:
        family.kill_hung()
    print(killed)
    family._names.clear()
"""


def test_whoever_has_stood_still_himself_gives_his_children_time():
    done = subprocess.run([sys.executable, "-c", STALLED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[(1160, 0)]\n"
