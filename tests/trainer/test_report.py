from __future__ import annotations

import errno
import io
import json
import os

import pytest

from zswarm.config import RunConfig
from zswarm.json_lines import read_json_lines
from zswarm.trainer.progress import Progress
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.report import ALARM_S, RETRY_S, GaveUp, Report
from zswarm.trainer.run_folder import open_run_folder
from zswarm.trainer.settings import EvaluationDone, StepDone

CONFIG = RunConfig.model_validate(
    {
        "run": {"steps": 4},
        "model": {"sequence_length": 8},
        "batch": {"global_batch": 8, "microbatch": 4},
    }
)
ROLLBACK = {"event": "rollback", "branch": 1, "step": 1, "reason": "stage 0 has lost its last worker"}


@pytest.fixture
def folder(tmp_path):
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        yield folder


@pytest.fixture
def report(folder):
    return Report(CONFIG, folder=folder, progress=Progress("tiny", steps=4, stream=io.StringIO()), begun_s=0.0)


def done(step, loss):
    return StepDone(step=step, loss=loss, lr=0.1, grad_norm=1.0, num_in_flight=2, workers=(1,))


def summary(report, folder):
    report.write_summary(wire_bytes=1, stages=1, workers=1)
    return json.loads((folder.path / "summary.json").read_text())


def events(folder):
    return [line.record["event"] for line in read_json_lines(folder.path / "events.jsonl")[0]]


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_that_goes_on_is_reported_as_one_run(folder, report):
    past = Recovered(
        run=1,
        generation=2,
        next_session=9,
        branch=0,
        step=2,
        members=(),
        commit=None,
        held_out={0: 5.75},
        losses=(5.5, 5.0),
        wall_s=1000.0,
    )
    report.take_up(past)
    report.step_done(done(2, 4.5))
    report.step_done(done(3, 4.0))
    report.evaluation_done(EvaluationDone(step=4, loss=3.75))
    found = summary(report, folder)
    assert (found["steps"], found["loss"]) == (4, [5.5, 5.0, 4.5, 4.0])
    assert (found["held_out_loss_before"], found["held_out_loss"]) == (5.75, 3.75)
    assert found["wall_s"] > 1000.0


def test_what_a_rollback_has_undone_does_not_count(folder, report, capsys):
    for step, loss in enumerate((5.0, 4.0, 3.0)):
        report.step_done(done(step, loss))
        report.event({"event": "commit", "step": step, "apply": True}, durable=True)
    report.evaluation_done(EvaluationDone(step=0, loss=5.75))
    report.evaluation_done(EvaluationDone(step=2, loss=3.75))
    report.event(ROLLBACK, durable=True)
    report.step_done(done(1, 4.25))
    found = summary(report, folder)
    assert (found["loss"], found["held_out_loss_before"], found["held_out_loss"]) == ([5.0, 4.25], 5.75, None)
    assert "the run goes back from step 3 to the checkpoint of step 1" in capsys.readouterr().err
    assert [line.record["step"] for line in read_json_lines(folder.path / "metrics.jsonl")[0]] == [0, 1, 2, 1]


def test_the_run_waits_as_long_as_its_disk_is_full(folder, report, monkeypatch, capsys):
    """Nothing that follows from a record may happen before it is written, so nothing does; and the log says why."""
    report.event({"event": "start"}, durable=True)
    now = 1000.0
    monkeypatch.setattr("zswarm.trainer.report.monotonic", lambda: now)
    monkeypatch.setattr(os, "fsync", refuse)

    def wait(duration_s):
        nonlocal now
        assert duration_s == RETRY_S
        now += duration_s
        if now >= 1000.0 + 2.5 * ALARM_S:
            monkeypatch.undo()
        return True

    report.wait = wait
    report.event(ROLLBACK, durable=True)
    assert events(folder) == ["start", "rollback"]
    told = capsys.readouterr().err.splitlines()
    why = f"the run waits for its disk: {folder.path}/events.jsonl: cannot write: No space left on device"
    assert [line.startswith(why) for line in told] == [True, True, True, False]


def test_who_interrupts_the_wait_gets_no_record_and_nothing_that_follows(folder, report, monkeypatch, capsys):
    report.event({"event": "start"}, durable=True)
    report.wait = lambda _: False
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(GaveUp, match="No space left"):
            report.event(ROLLBACK, durable=True)
    assert "goes back" not in capsys.readouterr().err
    assert events(folder) == ["start"]
