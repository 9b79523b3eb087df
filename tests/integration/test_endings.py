"""However a run ends, the user is told why, the run folder is valid, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import time

from safetensors.numpy import load_file

from tests.integration.commands import all_gone
from zswarm.audit import audit
from zswarm.benchmarks.equality import relative_difference
from zswarm.cli.family import free_port

LONG = ("--set", "run.steps=100000")
MANY_STEPS = 5000
"""Far more than there are in the seconds that something takes."""
RAISING = """
from torch import nn

from stages.transformer import gpt

class Raising(nn.Module):
    def forward(self, x):
        if x.device.type != "meta" and self.training and x.abs().sum() != 0 and Raising.calls > 3:
            raise RuntimeError("this layer has had enough")
        Raising.calls += 1
        return x

Raising.calls = 0

def model(**arguments):
    layers = list(gpt(**arguments).layers)
    return [*layers[:2], Raising, *layers[2:]]
"""


def test_interrupt_stops_the_run_and_leaves_a_valid_folder(zswarm):
    """Ctrl-C: exit code 130, every process gone, the log ends with what was committed."""
    command = zswarm.start("local", *LONG)
    command.wait_for_step(1)
    children = command.children()
    command.process.send_signal(signal.SIGINT)
    code, _ = command.wait()
    assert code == 130
    assert all_gone(children)
    events = command.events()
    commits = [event for event in events if event["event"] == "commit"]
    assert events[-1]["event"] == "finish"
    assert events[-1]["steps"] == len(commits) >= 2
    assert (command.folder / "summary.json").exists()
    assert all(check.is_passed for check in audit(command.folder))


def test_interrupt_of_the_whole_terminal_ends_alike(zswarm):
    """A terminal's Ctrl-C reaches every process of the command at once, and an impatient user's more than once.

    The second one killed the trainer while it wrote the summary.
    """
    command = zswarm.start("local", *LONG)
    command.wait_for_step(0)
    children = command.children()
    for process in [*children, command.process]:
        process.send_signal(signal.SIGINT)
    command.wait_for_word("interrupted")
    command.process.send_signal(signal.SIGINT)
    code, errors = command.wait()
    assert code == 130
    assert errors == f"zswarm: to go on with it: zswarm local run.toml {' '.join(LONG)} --out out\n"
    assert all_gone(children)
    assert (command.folder / "summary.json").exists()


def test_children_end_when_the_command_is_killed(zswarm):
    """Kill -9 of the command itself: its children see the lifeline end."""
    command = zswarm.start("local", *LONG)
    command.wait_for_step(0)
    children = command.children()
    assert len(children) == 2 * 2 + 2 + 1
    command.process.kill()
    command.process.communicate()
    assert all_gone(children)


def test_whoever_is_killed_lives_again_and_the_run_goes_on(zswarm):
    """Kill -9 of a child of each role: the user is told who it was, the run ends well, and everything is counted once."""
    command = zswarm.start("local", "--set", "run.steps=40")
    killed = {3: "worker-3", 12: "broker-0", 21: "trainer"}
    for step, name in killed.items():
        command.wait_for_step(step)
        os.kill(command.pid(name), signal.SIGKILL)
    code, errors = command.wait()
    assert code == 0, errors
    for name in killed.values():
        assert f"{name} was killed by SIGKILL and is started again" in errors
    assert all(check.is_passed for check in audit(command.folder))
    summary = json.loads((command.folder / "summary.json").read_text())
    assert summary["steps"] == len(summary["loss"]) == 40
    assert summary["held_out_loss"] < summary["held_out_loss_before"]


SLOW = """
import time

from torch import nn
from stages.transformer import gpt

class Slow(nn.Identity):
    def forward(self, x):
        time.sleep(0.02)
        return x

def model(**arguments):
    layers = list(gpt(**arguments).layers)
    return [layers[0], Slow, *layers[1:-1], Slow, layers[-1]]
"""


def test_whoever_is_asked_to_leave_in_the_middle_of_a_step_hands_over_what_it_has_counted(zswarm):
    """Steps take seconds: it need not wait for the commit, nothing is done again, and the parameters are to the bit those of one
    process."""
    (zswarm.folder / "slow.py").write_text(SLOW)
    options = [
        "--set",
        "model.factory=slow:model",
        "--set",
        "batch.accumulation=exact",
        "--set",
        "batch.global_batch=160",
        "--set",
        "run.steps=3",
    ]
    address = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
    place = ("--coordinator", address, "--allow", "slow")
    trainer = zswarm.start("train", *options, "--listen", address, "--workers", "2", "--brokers", "1", out="swarm")
    workers = [zswarm.start_any("worker", *place, "--name", name) for name in ("one", "two", "three", "leaves")]
    brokers = [zswarm.start_any("broker", "--coordinator", address) for _ in range(2)]
    trainer.wait_for_step(0)
    time.sleep(0.7)
    workers[3].process.send_signal(signal.SIGTERM)
    assert workers[3].wait()[0] == 0
    for command in (trainer, *workers[:3], *brokers):
        code, errors = command.wait()
        assert code == 0, errors
    events = trainer.events()
    (left, *_) = [event for event in events if event["event"] == "leave"]
    assert (left["node"], left["reason"], left["lost"]) == ("leaves", "drained", 0)
    assert left["heir"] in {event["session"] for event in events if event["event"] == "join"}
    assert "replay" not in {event["event"] for event in events}
    assert all(check.is_passed for check in audit(trainer.folder))
    zswarm.run("reference", *options, out="one")
    swarm, one = (load_file(zswarm.folder / out / "model.safetensors") for out in ("swarm", "one"))
    assert relative_difference(swarm, one) == 0.0


def test_an_interrupted_run_goes_on_in_its_folder(zswarm):
    """The same command again: from the newest checkpoint on, in another number of stages with another number of workers each, to
    the last step."""
    command = zswarm.start("local", "--set", "checkpoint.every=2", *LONG)
    step = 2
    while not any(event["event"] == "checkpoint" and "problem" not in event for event in command.events()):
        command.wait_for_step(step := step + 1)
    command.process.send_signal(signal.SIGINT)
    assert command.wait()[0] == 130
    num_steps = command.events()[-1]["steps"]
    again = zswarm.start("local", "--set", f"run.steps={num_steps + 3}", "--set", "pipeline.stages=3", "--workers", "1")
    code, errors = again.wait()
    assert code == 0, errors
    assert f"going on at step {num_steps}; the newest checkpoint is of step" in errors
    assert all(check.is_passed for check in audit(again.folder))
    assert json.loads((again.folder / "summary.json").read_text())["steps"] == num_steps + 3
    assert (again.folder / "model.safetensors").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(zswarm):
    """It ended the run, though there were others: nobody has the state of a stage but the disk, and one byte of that is bad."""
    command = zswarm.start("local", "--workers", "1", "--set", "checkpoint.every=5", *LONG)
    folders = command.folder / "checkpoints"
    step = 0
    while len(whole := sorted(folders.glob("branch-0-step-*"), key=lambda path: int(path.name.split("-")[-1]))) < 2:
        command.wait_for_step(step := step + 1)
        assert step < MANY_STEPS
    file = whole[-1] / "layer-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for name in ("worker-0", "worker-1"):
        os.kill(command.pid(name), signal.SIGKILL)
    while not any(event["event"] == "rollback" for event in command.events()):
        command.wait_for_step(step := step + 1)
        assert step < MANY_STEPS
    command.process.send_signal(signal.SIGINT)
    assert command.wait()[0] == 130
    assert all(check.is_passed for check in audit(command.folder))


def test_a_folder_belongs_to_one_run_at_a_time(zswarm):
    """A second command on the folder of a run that is in progress: told, exit code 2, and the first one goes on."""
    command = zswarm.start("local", *LONG)
    command.wait_for_step(0)
    code, errors = zswarm.start("local", *LONG).wait()
    assert code == 2
    assert f"process {command.pid('trainer')} is at work on the run in this folder" in errors
    command.wait_for_step(2)


def test_a_raising_layer_reaches_the_user_with_its_place(zswarm):
    """An exception in a layer: stage, layer and the layer's own words, and a failed run."""
    (zswarm.folder / "mine.py").write_text(RAISING)
    command = zswarm.start("local", "--set", "model.factory=mine:model", *LONG)
    code, errors = command.wait()
    assert code == 1
    assert "layer 2 (Raising)" in errors
    assert "this layer has had enough" in errors
    assert "Traceback" not in errors


HOLDING = """
import ctypes
from pathlib import Path

from torch import nn

from stages.transformer import gpt

class Holding(nn.Module):
    def forward(self, x):
        Holding.calls += 1
        if Holding.calls > 30 and self.training:
            try:
                Path("held").touch(exist_ok=False)
            except FileExistsError:
                return x
            ctypes.PyDLL(None).sleep(8)  # holds Python's lock: no thread of this process runs meanwhile
        return x

Holding.calls = 0

def model(**arguments):
    layers = list(gpt(**arguments).layers)
    return [*layers[:2], Holding, *layers[2:]]
"""


def test_a_worker_that_holds_pythons_lock_is_given_up_and_comes_back(zswarm):
    """Libzmq's threads answer for it, and its sockets stay open: only what the process itself says counts."""
    (zswarm.folder / "mine.py").write_text(HOLDING)
    command = zswarm.start("local", "--set", "model.factory=mine:model", *LONG, "--workers", "2")

    def is_back() -> bool:
        events = command.events()
        lost = [event for event in events if event["event"] == "leave"]
        joins = [event["node"] for event in events if event["event"] == "join"]
        return bool(lost) and joins.count(lost[0]["node"]) > 1

    step = 0
    while not is_back():
        command.wait_for_step(step := step + 1)
        assert step < MANY_STEPS, command.events()[-1]
    command.wait_for_step(step + 1)
    command.process.send_signal(signal.SIGINT)
    assert command.wait()[0] == 130
    assert (zswarm.folder / "held").exists()
    lost = next(event for event in command.events() if event["event"] == "leave")
    assert lost["reason"].startswith("silent for 3")
    assert all(check.is_passed for check in audit(command.folder))


def test_a_model_that_does_not_chain_starts_nothing(zswarm):
    """A wrong model is found before any worker is: exit code 2, one message, no run folder."""
    command = zswarm.start("local", "--set", "model.num_heads=5")
    code, errors = command.wait()
    assert code == 2
    assert "Traceback" not in errors
    assert not command.folder.exists()
