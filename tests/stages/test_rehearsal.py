"""What a worker does with made-up numbers before it is given real ones."""

from __future__ import annotations

import pytest
import torch

from stages.compute import Compute
from stages.rehearsal import KEY
from stages.tasks import Build, Built, Snapshot, Unfit
from tests.stages.computing import PLENTY, only
from zswarm.ids import JobKind, Round, Stage

OWN = {"sequence_length": 12}


def built(config, stage):
    compute = Compute(gauge=lambda: PLENTY)
    build = Build(stage=Stage(stage), num_stages=config.pipeline.stages, configuration=config.canonical_json())
    return compute, only(compute.perform(build))


def is_untouched(compute):
    """Is nothing counted, kept or unfinished?"""
    counted = only(compute.perform(Snapshot(round=Round(1), num_shards=1))).shards[0][0]
    is_kept = compute._built.kept.take(KEY) != (None, None)
    return not (any(bytes(counted.frames[0])) or is_kept or compute.has_unfinished)


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
@pytest.mark.parametrize("codec", ["none", "int8", "bnb8"])
@pytest.mark.parametrize("stages", [1, 3])
def test_each_stage_rehearses_and_begins_a_run_as_if_it_had_not(make_config, codec, accumulation, stages):
    config = make_config(pipeline={"stages": stages}, wire={"codec": codec}, batch={"accumulation": accumulation})
    for stage in range(stages):
        compute, outcome = built(config, stage)
        assert isinstance(outcome, Built)
        assert outcome.rehearsed_s > 0.0
        assert is_untouched(compute)


@pytest.mark.parametrize(("stage", "kinds"), [(0, ["FORWARD", "BACKWARD"]), (2, ["FUSED"])])
def test_it_is_what_a_step_consists_of(make_config, monkeypatch, stage, kinds):
    """All sorts of tasks but for the optimizer's, and the kinds of jobs that the stage has, through the codec."""
    done = []
    perform = Compute._perform

    def spy(self, task):
        done.append(JobKind(task.kind).name if hasattr(task, "kind") else type(task).__name__)
        return perform(self, task)

    monkeypatch.setattr(Compute, "_perform", spy)
    built(make_config(pipeline={"stages": 3}), stage)
    assert done == ["Build", *kinds, "Snapshot", "Sum", "Assemble", "Reset"]


def test_what_layers_remember_is_put_back(make_config):
    compute, outcome = built(make_config(model={"factory": "own_models:remembering", **OWN}), 0)
    assert outcome.rehearsed_s > 0.0
    (seen,) = (buffer for layer in compute._built.engine.layers for buffer in layer.buffers())
    assert torch.equal(seen, torch.zeros(8))


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
def test_layers_may_refuse_what_no_layer_made(make_config, accumulation):
    """A number out of range, say: nobody knows how long a job takes then, and half a gradient is not counted."""
    config = make_config(
        model={"factory": "own_models:raising", "where": "backward", **OWN}, batch={"accumulation": accumulation}
    )
    compute, outcome = built(config, 0)
    assert isinstance(outcome, Built)
    assert outcome.rehearsed_s == 0.0
    assert is_untouched(compute)


def test_a_stage_for_which_there_is_too_little_memory_is_refused_before_anybody_waits_for_it(make_config, monkeypatch):
    def full(*_args):
        raise MemoryError("2.00 GiB")

    monkeypatch.setattr("stages.shards.cut", full)
    _, outcome = built(make_config(), 0)
    assert isinstance(outcome, Unfit)
    assert "does not fit into the device's memory" in outcome.text
