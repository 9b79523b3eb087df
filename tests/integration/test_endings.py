"""However a run ends, the user is told why, the run folder is valid, and nothing is left running."""

from __future__ import annotations

import signal

from tests.integration.commands import all_gone
from zswarm.audit import audit

LONG = ("--set", "run.steps=100000")
RAISING = """
from torch import nn

from stages.transformer import gpt

class Raising(nn.Module):
    def forward(self, x):
        if x.device.type == "cpu" and self.training and x.abs().sum() != 0 and Raising.calls > 3:
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
    assert errors == ""
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


def test_a_killed_worker_ends_the_run_with_its_name(zswarm):
    """A worker that dies: the run cannot go on, and says who is missing."""
    command = zswarm.start("local", *LONG)
    command.wait_for_step(0)
    children = command.children()
    children[-1].kill()
    code, errors = command.wait()
    assert code == 1
    assert "worker-3 was killed by SIGKILL" in errors
    assert "interrupted" not in errors
    assert all_gone(children)
    assert command.events()[-1]["event"] == "finish"


def test_a_raising_layer_reaches_the_user_with_its_place(zswarm):
    """An exception in a layer: stage, layer and the layer's own words, and a failed run."""
    (zswarm.folder / "mine.py").write_text(RAISING)
    command = zswarm.start("local", "--set", "model.factory=mine:model", *LONG)
    code, errors = command.wait()
    assert code == 1
    assert "layer 2 (Raising)" in errors
    assert "this layer has had enough" in errors
    assert "Traceback" not in errors


def test_a_model_that_does_not_chain_starts_nothing(zswarm):
    """A wrong model is found before any worker is: exit code 2, one message, no run folder."""
    command = zswarm.start("local", "--set", "model.num_heads=5")
    code, errors = command.wait()
    assert code == 2
    assert "Traceback" not in errors
    assert not command.folder.exists()
