"""Real processes that are killed and frozen: by `zswarm chaos` in a real run, and one by one in a stand-in for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from zswarm.chaos.target import Target

TOP = Path(__file__).parents[2]
TIMEOUT_S = 10.0
STAND_IN = """
import json, os, subprocess, sys, time
children = {name: subprocess.Popen(["sleep", "600"]).pid for name in ("worker-0", "worker-1", "trainer")}
with open(sys.argv[1] + "/processes.json.new", "w") as file:
    json.dump({**children, "broker-0": int(sys.argv[2]), "broker-1": 1, "broker-2": "x"}, file)
os.rename(sys.argv[1] + "/processes.json.new", sys.argv[1] + "/processes.json")
print("ready", file=sys.stderr, flush=True)
time.sleep(600)
"""
"""A `zswarm local` that starts three processes and claims others that are not its own."""
ATTACKER = """
import sys
from pathlib import Path
from zswarm.chaos.target import Target
folder = Path(sys.argv[1])
with Target(sys.argv[2:], folder=folder, log=folder / "log") as target:
    while len(living := target.living()) < 3:
        pass
    target.freeze("worker-0", living["worker-0"])
    print(*(process.pid for process in living.values()), flush=True)
    sys.stdin.read()
"""


def wait_until(condition):
    deadline_s = monotonic() + TIMEOUT_S
    while not condition():
        assert monotonic() < deadline_s
        sleep(0.01)


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stand_in(folder, stranger):
    return [sys.executable, "-c", STAND_IN, str(folder), str(stranger.pid)]


@pytest.fixture
def stranger():
    """A process that is none of the run's."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@contextmanager
def attacked(folder, stranger):
    """A stand-in and its three processes."""
    with Target(stand_in(folder, stranger), folder=folder, log=folder / "log") as target:
        wait_until(lambda: len(target.living()) == 3)
        yield target


def test_only_the_runs_own_processes_are_ever_touched(tmp_path, stranger):
    """A number in processes.json that is somebody else's is nobody of the run."""
    with attacked(tmp_path, stranger) as target:
        assert set(target.living()) == {"worker-0", "worker-1", "trainer"}
    assert stranger.poll() is None


def test_killed_is_gone_and_frozen_comes_back(tmp_path, stranger):
    with attacked(tmp_path, stranger) as target:
        first, second = target.living()["worker-0"], target.living()["worker-1"]
        assert target.kill(first)
        wait_until(lambda: set(target.living()) == {"worker-1", "trainer"})
        assert target.freeze("worker-1", second)
        wait_until(lambda: second.status() == psutil.STATUS_STOPPED)
        assert set(target.living()) == {"trainer"}
        assert target.frozen == {"worker-1"}
        target.resume("worker-1")
        wait_until(lambda: second.status() == psutil.STATUS_SLEEPING)
        assert set(target.living()) == {"worker-1", "trainer"}


def test_whoever_ends_meanwhile_is_no_fault(tmp_path, stranger):
    with attacked(tmp_path, stranger) as target:
        processes = target.living()
        target.kill(processes["worker-0"])
        parent = psutil.Process(processes["worker-0"].ppid())
        parent.kill()  # nobody is left to wait for the dead
        wait_until(lambda: not processes["worker-0"].is_running())
        assert not target.kill(processes["worker-0"])
        assert not target.freeze("worker-0", processes["worker-0"])
        assert target.frozen == set()


def test_nothing_is_left_behind(tmp_path, stranger):
    """Frozen processes end too."""
    with attacked(tmp_path, stranger) as target:
        processes = target.living()
        target.freeze("worker-0", processes["worker-0"])
    wait_until(lambda: all(is_gone(process) for process in processes.values()))
    assert target.code == -signal.SIGTERM


def test_nothing_is_left_behind_of_a_run_that_has_ended_without_its_processes(tmp_path, stranger):
    with attacked(tmp_path, stranger) as target:
        processes = target.living()
        target.freeze("worker-0", processes["worker-0"])
        assert not target.has_ended
        psutil.Process(processes["trainer"].ppid()).kill()
        wait_until(lambda: target.has_ended)
    wait_until(lambda: all(is_gone(process) for process in processes.values()))
    assert target.code == -signal.SIGKILL
    assert target.last_words() == "ready"


def test_nothing_is_left_behind_by_an_attacker_that_is_killed_itself(tmp_path, stranger):
    command = [sys.executable, "-c", ATTACKER, str(tmp_path), *stand_in(tmp_path, stranger)]
    environment = dict(os.environ, PYTHONPATH=str(TOP))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as attacker:
        assert attacker.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in attacker.stdout.readline().split()]
        attacker.kill()
    assert len(processes) == 3
    wait_until(lambda: all(is_gone(process) for process in processes))
    assert stranger.poll() is None


EXACT = (
    *("--set", "batch.accumulation=exact"),
    *("--set", "checkpoint.every=10"),
    *("--set", "run.steps=200"),
)


@pytest.mark.slow
def test_a_run_with_faults_of_all_kinds_ends_with_the_parameters_of_one_process(zswarm):
    """Kill and freeze workers, brokers and the trainer: the log is right, and the model equal to the bit.

    Whom the later faults hit depends on who lives then; the first one of this seed kills the trainer.
    """
    options = ("--faults", "8", "--seed", "84", "--every", "1", "--limit-s", "80", "--json", "faults.json")
    command = zswarm.start("chaos", *options, *EXACT)
    code, errors = command.wait()
    assert code == 0, errors
    found = json.loads((zswarm.folder / "faults.json").read_text())
    assert found["bits"] == "equal"
    assert len(found["faults"]) == 8
    assert found["faults"][0]["fault"]["name"] == "trainer"
    assert {outcome["fault"]["kind"] for outcome in found["faults"]} == {"kill", "freeze"}
    assert found["num_steps"] == 200
