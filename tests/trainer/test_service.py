"""The end of a run in the trainer's process: what is written, and what follows if it cannot be."""

from __future__ import annotations

import errno
import io
import json
import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from tests.trainer.settings import settings
from zswarm import wire
from zswarm.config import RunConfig
from zswarm.errors import TRY_LATER, NotYet, RunFailed
from zswarm.ids import STATE_FILES
from zswarm.machine import Exit
from zswarm.overseer import NOBODY
from zswarm.trainer import run_folder, service
from zswarm.trainer.checkpoints import Checkpoints
from zswarm.trainer.phases import Phase
from zswarm.trainer.progress import Progress
from zswarm.trainer.run_folder import DiskFull, RunFolder, open_run_folder
from zswarm.trainer.service import Plan, TrainerOptions, TrainerService, serve_trainer
from zswarm.trainer.settings import Store
from zswarm.transport import Switchboard

CONFIG = RunConfig.model_validate(
    {
        "run": {"steps": 2},
        "model": {"sequence_length": 8},
        "batch": {"global_batch": 8, "microbatch": 4},
    }
)
PLAN = Plan(
    layers_per_stage=(1,),
    inputs=((4, 8),),
    unit_bytes=(32,),
    stage_costs=(1.0,),
    state_bytes=(40,),
    targets_per_sample=8,
)
START = {"event": "start", "run": "4d", "generation": 1, "stages": 1, "split": [1], "steps": 2, "num_microbatches": 2}
LOG = [
    START,
    {"event": "evaluation", "step": 0, "loss": 6.5},
    *(
        {
            "event": "commit",
            "branch": 0,
            "step": step,
            "loss": loss,
            "lr": 0.1,
            "scale": 1.0,
            "apply": True,
            "stages": [{"stage": 0, "round": 1, "digest": 3, "contributions": {}}],
        }
        for step, loss in enumerate((5.5, 4.5))
    ),
    {"event": "evaluation", "step": 2, "loss": 3.5},
    {"event": "checkpoint", "branch": 0, "step": 2},
    {"event": "finish", "steps": 2, "code": 0, "reason": "all steps are done", "time_s": 900.0},
]


@pytest.fixture
def out(tmp_path):
    """The folder of a run of which the log says that it is done, with the last checkpoint, and nothing else written."""
    with open_run_folder(CONFIG, out=tmp_path / "out") as folder:
        for record in LOG:
            folder.events.append(record)
        checkpoints = Checkpoints(folder.checkpoints_path, run=0x4D, num_layers=1, keep=3)
        for part in STATE_FILES:
            whole = save({"weight": np.full(5, part, dtype=np.float32)})
            checkpoints.store(
                Store(
                    branch=0,
                    step=2,
                    part=part,
                    layer=0,
                    offset_bytes=0,
                    total_bytes=len(whole),
                    load=wire.parcelled(whole, ()),
                )
            )
        assert not checkpoints.seal((0, 2)).problem
    return folder.path


def serve(out):
    return serve_trainer(
        CONFIG,
        PLAN,
        TrainerOptions(
            open_folder=partial(RunFolder, out),
            progress=Progress("tiny", steps=2, stream=io.StringIO()),
            source=SimpleNamespace(digest=lambda: b"data"),
            begun_s=0.0,
            listen="tcp://127.0.0.1:*",
            workers_per_stage=1,
            brokers_per_stage=1,
        ),
    )


def refuse_to_write(monkeypatch, name, number):
    """Have the system refuse to make one file durable."""
    sync = run_folder.sync

    def refuse(path):
        if path.name == f".{name}.new":
            raise OSError(number, os.strerror(number))
        sync(path)

    monkeypatch.setattr(run_folder, "sync", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_the_end_of_a_run_may_mend_itself(out, monkeypatch, number):
    """It had the exit code of a run that has failed, with which systemd leaves a trainer alone; the next life needs nobody."""
    with monkeypatch.context() as patched:
        refuse_to_write(patched, "model.safetensors", number)
        with pytest.raises(NotYet, match=rf"model\.safetensors: cannot write: {os.strerror(number)}: make room there"):
            serve(out)
    assert not (out / "model.safetensors").exists()
    assert serve(out) == Exit(code=0, text="all steps are done")
    assert load_file(out / "model.safetensors")["layers.0.weight"].tolist() == [0.0] * 5


def test_a_disk_that_is_broken_at_the_end_of_a_run_is_a_failure(out, monkeypatch):
    refuse_to_write(monkeypatch, "model.safetensors", errno.EIO)
    with pytest.raises(RunFailed, match=r"model\.safetensors: cannot write"):
        serve(out)


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_a_summary_for_which_there_was_no_room_is_written_by_the_next_life(out, monkeypatch):
    """It was lost: the next life found the run done, and wrote the model alone."""
    with monkeypatch.context() as patched:
        refuse_to_write(patched, "summary.json", errno.ENOSPC)
        with pytest.raises(NotYet, match=r"summary\.json: cannot write"):
            serve(out)
    assert not (out / "model.safetensors").exists(), "a folder with a model is of a run that is done"
    assert serve(out).code == 0
    found = summary(out)
    assert (found["steps"], found["loss"], found["stages"]) == (2, [5.5, 4.5], 1)
    assert (found["held_out_loss_before"], found["held_out_loss"]) == (6.5, 3.5)
    assert found["wall_s"] >= 900.0
    assert (found["tokens_per_s"], found["wire_bytes"], found["workers"]) == (None, None, None)


@pytest.mark.parametrize("before", [b'{"steps": 1}', b'{"ste', b"[]"])
def test_the_summary_of_an_earlier_end_is_replaced(out, before):
    """The user had interrupted the run after a step."""
    (out / "summary.json").write_bytes(before)
    serve(out)
    assert summary(out)["steps"] == 2


def test_a_summary_of_all_steps_is_kept(out):
    """It says what later lives cannot know: the bytes on the wire, and how fast it went."""
    (out / "summary.json").write_text('{"steps": 2, "wire_bytes": 7}')
    serve(out)
    assert summary(out) == {"steps": 2, "wire_bytes": 7}


def test_a_life_without_room_for_the_last_checkpoint_sums_nothing_up(monkeypatch):
    """The run is not over; how it went is said by the life that ends it."""
    end = Exit(code=TRY_LATER, text="no space left")
    monkeypatch.setattr(service, "Loop", lambda *_, **__: SimpleNamespace(run=lambda _turned: end))
    report = SimpleNamespace(write_summary=lambda **_: pytest.fail("a summary is written"))
    trainer = TrainerService(settings(), source=None, report=report, disk=None, interruption=None)
    with Switchboard(key=None) as switchboard, pytest.raises(DiskFull, match="no space left"):
        trainer.run(switchboard)


def test_the_user_hears_of_a_stage_that_nobody_is_in(monkeypatch):
    """The terminal said on whom a run waits before its first step, and nothing later."""
    now = 100.0
    said = []
    monkeypatch.setattr(service, "monotonic", lambda: now)
    report = SimpleNamespace(say=said.append)
    trainer = TrainerService(settings(), source=None, report=report, disk=None, interruption=None)
    monkeypatch.setattr(trainer.coordinator, "phase", Phase.TRAINING)
    for _ in range(10):
        trainer._turned(NOBODY)
        now += 1.0
    assert said == [
        "stages 0 and 1 have no worker: waiting for one each",
        "stages 0 and 1 have no broker: waiting for one each",
    ]
