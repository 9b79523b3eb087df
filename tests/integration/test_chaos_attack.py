"""`zswarm chaos` against a stand-in for `zswarm local`, which starts its processes again and logs as a coordinator does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from zswarm.chaos import command, faults
from zswarm.chaos.command import ChaosOptions
from zswarm.errors import RunFailed, UserError

TOP = Path(__file__).parents[2]
RUN_FILE = """
[run]
steps = 40
[model]
sequence_length = 16
[batch]
global_batch = 1
microbatch = 1
"""
STAND_IN = """
import json, os, subprocess, sys, time
from pathlib import Path

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
log = (folder / "events.jsonl").open("a", buffering=1)
children, sessions, counters = {}, {}, {"session": 0, "generation": 0}

def say(event, **fields):
    log.write(json.dumps({"event": event, **fields}) + chr(10))

def begin(name):
    children[name] = subprocess.Popen(["sleep", "600"])
    pids = {name: child.pid for name, child in children.items()}
    (folder / "new").write_text(json.dumps(pids))
    (folder / "new").rename(folder / "processes.json")
    if name == "trainer":
        counters["generation"] += 1
        say("start", run="1", generation=counters["generation"], stages=1, split=[1], steps=steps, num_microbatches=1)
    else:
        counters["session"] += 1
        sessions[name] = counters["session"]
        say("join", node=name, role=name.split("-")[0], session=sessions[name], stage=0)

for name in ("trainer", "worker-0", "worker-1", "broker-0"):
    begin(name)
step = 0
while step < steps:
    for name, child in list(children.items()):
        if child.poll() is not None:
            if name != "trainer":
                say("leave", session=sessions[name])
            begin(name)
    counted = {str(sessions["worker-0"]): [0]}
    number = (counters["generation"] << 32) + step
    stages = [{"stage": 0, "round": number, "digest": 0, "contributions": counted}]
    say("commit", branch=0, step=step, stages=stages)
    step += 1
    time.sleep(0.02)
say("checkpoint", branch=0, step=step)
say("finish", steps=step, code=0)
for child in children.values():
    child.kill()
    child.wait()
"""
ENDLESS = 10**6


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Runs the command against a program; returns what it wrote to its file."""
    monkeypatch.setattr(faults, "FREEZE_LEAST_S", 0.02)
    monkeypatch.setattr(faults, "FREEZE_MOST_S", 0.1)
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN_FILE)

    def run(program, *arguments, **changes):
        command_line = [sys.executable, "-c", program, str(tmp_path / "out"), *map(str, arguments)]
        monkeypatch.setattr(command, "_command", lambda *_: command_line)
        options = {
            "run_file": run_file,
            "out": tmp_path / "out",
            "overrides": (),
            "workers": 2,
            "brokers": 1,
            "faults": 6,
            "seed": 1,
            "every": 0.02,
            "roles": ("worker", "broker", "trainer"),
            "kinds": tuple(faults.Kind),
            "spare_last": False,
            "reference": None,
            "limit_s": 30.0,
            "json_file": tmp_path / "found.json",
        }
        command.chaos(ChaosOptions(**options | changes))
        return json.loads((tmp_path / "found.json").read_text())

    return run


def test_all_faults_are_done_and_told(attack, capsys):
    found = attack(STAND_IN, 100)
    assert len(found["faults"]) == 6
    assert found["problems"] == []
    assert found["num_steps"] == 100
    assert found["bits"].startswith("not compared")
    kills = [outcome for outcome in found["faults"] if outcome["fault"]["kind"] == "kill"]
    assert kills
    assert all(outcome["detection_s"] >= 0 for outcome in kills)
    text = capsys.readouterr()
    assert "ok    ledgers   100 contributions" in text.out
    assert text.err.count("fault ") == 6


def test_one_role_alone_is_hit(attack):
    found = attack(STAND_IN, 100, roles=("trainer",))
    assert {outcome["fault"]["name"] for outcome in found["faults"]} == {"trainer"}


def test_the_last_worker_of_a_stage_is_spared(attack):
    """Only worker-0 ever contributes: with the option it is the last that holds the stage."""
    found = attack(STAND_IN, 150, roles=("worker",), spare_last=True, faults=5)
    late = [outcome["fault"]["name"] for outcome in found["faults"][1:]]
    assert late == ["worker-1"] * 4


def test_a_run_that_is_too_short_for_its_faults_is_no_success(attack, tmp_path):
    with pytest.raises(RunFailed, match="over after 0 of 6 faults: give it more steps"):
        attack(STAND_IN, 10, every=1000)
    assert json.loads((tmp_path / "found.json").read_text())["faults"] == []


def test_a_violation_in_the_log_is_no_success(attack):
    with pytest.raises(RunFailed, match="the audit found a violation"):
        attack(STAND_IN.replace("<< 32) + step", "<< 32)"), 100)


def test_a_run_that_fails_is_no_success_and_its_last_words_are_told(attack):
    program = STAND_IN + "sys.exit('this is the end')"
    with pytest.raises(RunFailed, match="the run ended with 1:\nthis is the end"):
        attack(program, 100)


def test_what_the_user_can_mend_stays_the_users(attack):
    program = "import sys; print('zswarm: out\\nzswarm: model.factory: no such model', file=sys.stderr); sys.exit(2)"
    with pytest.raises(UserError, match=r"^model\.factory: no such model$"):
        attack(program)


def test_no_unfinished_run_is_gone_on_with(attack, tmp_path):
    """What another run has left in the folder must not be taken for the work of this one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "events.jsonl").touch()
    with pytest.raises(UserError, match="out: the folder is not empty"):
        attack(STAND_IN, 100)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "file"}, "--out {}/file: this is a file, or in one: name a folder"),
        ({"out": "file/a"}, "--out {}/file/a: this is a file, or in one: name a folder"),
        ({"out": "loop"}, "--out {}/loop: cannot be looked into: Too many levels of symbolic links"),
        ({"out": "taken"}, "--out {0}/taken: cannot write {0}/taken.log: Is a directory"),
        ({"out": "n" * 300}, "--out {0}/" + "n" * 300 + ": cannot be looked into: File name too long"),
        ({"json_file": "taken.log"}, "--json: cannot write {}/taken.log: Is a directory"),
    ],
    ids=["a file", "in a file", "a loop", "no log", "too long", "no file for what was found"],
)
def test_paths_that_cannot_be_used_are_told_before_anything_begins(attack, tmp_path, options, says):
    """A folder under a file was told as a bug of zswarm."""
    (tmp_path / "file").touch()
    (tmp_path / "taken.log").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as told:
        attack(STAND_IN, 100, **{name: tmp_path / path for name, path in options.items()})
    assert str(told.value) == says.format(tmp_path)


def test_a_run_that_does_not_end_is_ended(attack, tmp_path):
    with pytest.raises(RunFailed, match="did not end within 1 s"):
        attack(STAND_IN, ENDLESS, limit_s=1.0)
    assert gone(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_attack_leaves_nobody_behind(tmp_path, number, code):
    (tmp_path / "run.toml").write_text(RUN_FILE)
    program = f"""
import sys
from pathlib import Path
from zswarm.chaos import command, faults
from zswarm.cli.chaos import chaos
from zswarm.cli.main import app, main
command._command = lambda *_: [sys.executable, "-c", {STAND_IN!r}, "out", "{ENDLESS}"]
app.add_command(chaos)
sys.argv = ["zswarm", "chaos", "run.toml", "--out", "out", "--every", "0.02", "--seed", "1", "--faults", "100000"]
main()
"""
    environment = dict(os.environ, PYTHONPATH=str(TOP))
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as attacker:
        assert attacker.stderr is not None
        for line in attacker.stderr:
            if line.startswith("fault 5 "):
                break
        attacker.send_signal(number)
        attacker.stderr.read()
    assert attacker.returncode == code
    assert gone(tmp_path)


def gone(folder):
    """Whether nobody of the last run lives; the dead may lack somebody who waits for them."""
    deadline_s = monotonic() + 10
    pids = json.loads((folder / "out" / "processes.json").read_text()).values()
    while not all(is_gone(pid) for pid in pids):
        if monotonic() > deadline_s:
            return False
        sleep(0.01)
    return True


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
