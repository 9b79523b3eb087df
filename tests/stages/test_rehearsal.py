"""What a worker does with made-up numbers before it is given real ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages import kernels
from stages.compute import Compute
from stages.flat import digest
from stages.memory import Memory
from stages.passes import Passes
from stages.rehearsal import unchanged
from stages.tasks import Broken, Build, Built, Unfit
from tests.stages.computing import PLENTY, built, commissioned, is_untouched, only
from zswarm.ids import Stage

OWN = {"sequence_length": 12}
EXHAUSTED = MemoryError("2.00 GiB")


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
@pytest.mark.parametrize("codec", ["none", "int8", "bnb8"])
@pytest.mark.parametrize("stages", [1, 3])
def test_each_stage_rehearses_and_begins_a_run_as_if_it_had_not(make_config, codec, accumulation, stages):
    config = make_config(pipeline={"stages": stages}, wire={"codec": codec}, batch={"accumulation": accumulation})
    for stage in range(stages):
        compute, outcome = built(commissioned(config), stage)
        assert isinstance(outcome, Built)
        assert min(outcome.job_s, outcome.round_s) > 0.0
        assert is_untouched(compute)


@pytest.mark.parametrize(("stage", "kinds"), [(0, ["FORWARD", "BACKWARD"]), (2, ["FUSED"])])
def test_the_jobs_are_those_of_the_stage(make_config, monkeypatch, stage, kinds):
    """Counted, with a dx, and with the weights' gradients that a backward leaves unfinished."""
    done, run, go_on = [], Passes.run, Passes.go_on

    def spy(self, task):
        done.append(task.kind.name)
        assert task.accumulate
        assert task.emit
        return run(self, task)

    def spy_rest(self):
        done.append("rest")
        return go_on(self)

    monkeypatch.setattr(Passes, "run", spy)
    monkeypatch.setattr(Passes, "go_on", spy_rest)
    built(commissioned(make_config(pipeline={"stages": 3})), stage)
    assert [kind for kind in done if kind != "rest"] == kinds
    assert done[-1] == "rest"


def test_without_the_shape_of_the_input_only_the_round_is_rehearsed(make_config):
    compute = Compute(gauge=lambda: PLENTY)
    build = Build(stage=Stage(1), num_stages=3, configuration=make_config(pipeline={"stages": 3}).canonical_json())
    outcome = only(compute.perform(build))
    assert outcome.job_s == 0.0
    assert outcome.round_s > 0.0


def test_what_layers_remember_is_put_back(make_config):
    compute, outcome = built(commissioned(make_config(model={"factory": "own_models:remembering", **OWN})), 0)
    assert outcome.job_s > 0.0
    (seen,) = (buffer for layer in compute._built.engine.layers for buffer in layer.buffers())
    assert torch.equal(seen, torch.zeros(8))


def test_buffers_of_any_kind_are_put_back():
    """Changed in place, made anew, not there before, one of two modules, or a view that cannot be written to."""
    layer, other, shared = nn.Module(), nn.Module(), torch.zeros(2)
    layer.register_buffer("changed", shared)
    layer.register_buffer("made", torch.zeros(2))
    layer.register_buffer("late", None)
    layer.register_buffer("mask", torch.ones(1, 3).expand(4, 3), persistent=False)
    other.register_buffer("changed", shared)
    before = [dict(module._buffers) for module in (layer, other)]
    with unchanged([layer, other]):
        assert layer.changed is other.changed
        layer.changed += 1.0
        layer.made = layer.made + 1.0
        layer.late = torch.ones(1)
        layer.register_buffer("new", torch.ones(1))
    after = [dict(module._buffers) for module in (layer, other)]
    assert [list(buffers) for buffers in before] == [list(buffers) for buffers in after]
    assert all(a[name] is b[name] for a, b in zip(before, after, strict=True) for name in a)
    assert torch.equal(shared, torch.zeros(2))


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
def test_layers_may_refuse_what_no_layer_made(make_config, accumulation):
    """A number out of range, say: nobody knows how long a job takes then, and half a gradient is not counted."""
    config = make_config(
        model={"factory": "own_models:raising", "where": "backward", **OWN}, batch={"accumulation": accumulation}
    )
    compute, outcome = built(commissioned(config), 0)
    assert isinstance(outcome, Built)
    assert outcome.job_s == 0.0
    assert outcome.round_s > 0.0
    assert is_untouched(compute)


@pytest.mark.parametrize(
    "place",
    [
        "torch.nn.Embedding.forward",
        "stages.engine.StageEngine.rest",
        "stages.kernels.TorchKernels.add_weight_gradient",
        "stages.shards.cut",
        "stages.shards.join",
    ],
)
def test_a_stage_for_which_there_is_too_little_memory_is_refused_before_anybody_waits_for_it(
    make_config, monkeypatch, place
):
    """Whatever lacks it, a layer, what a backward leaves unfinished, or the all-reduce."""

    def full(*_args):
        raise EXHAUSTED

    monkeypatch.setattr("stages.engine.kernels_for", lambda _: kernels.TorchKernels())
    config = make_config()
    commission = commissioned(config)
    monkeypatch.setattr(place, full)
    _, outcome = built(commission, 0)
    assert isinstance(outcome, Unfit)
    assert "does not fit into the device's memory" in outcome.text


def test_a_lack_of_memory_that_others_may_be_the_cause_of_is_left_to_real_jobs(make_config, monkeypatch):
    """A worker that began again beside others, whose card they had filled, was sent away for good."""

    def full(*_args):
        raise EXHAUSTED

    monkeypatch.setattr("stages.passes.encode", full)
    commission = commissioned(make_config(pipeline={"stages": 2}))
    build = Build(stage=Stage(0), num_stages=2, configuration=commission.canonical_json())
    for free_bytes, kind in ((80, Built), (95, Unfit)):
        compute = Compute(gauge=lambda free_bytes=free_bytes: Memory(total_bytes=100, free_bytes=free_bytes))
        assert isinstance(only(compute.perform(build)), kind)


def test_what_fails_in_a_rehearsal_ends_nothing_but_a_broken_device(make_config, monkeypatch):
    class LostDevice(RuntimeError):
        pass

    monkeypatch.setattr("stages.devices.ACCELERATOR_ERRORS", (LostDevice,))
    for error, kind in ((ImportError("no library"), Built), (SystemExit(3), Built), (LostDevice("lost"), Broken)):

        def failing(*_args, error=error):
            raise error

        for place in ("stages.rehearsal.encode", "torch.Tensor.clone"):
            commission = commissioned(make_config(model={"factory": "own_models:remembering", **OWN}))
            with monkeypatch.context() as patched:
                patched.setattr(place, failing)
                _, outcome = built(commission, 0)
            assert isinstance(outcome, kind)
            assert getattr(outcome, "job_s", 0.0) == 0.0


def test_layers_that_set_their_parameters_see_real_numbers_first(make_config):
    compute, outcome = built(commissioned(make_config(model={"factory": "own_models:initialising", **OWN})), 0)
    assert outcome.job_s > 0.0
    (layer,) = (layer for layer in compute._built.engine.layers if hasattr(layer, "is_set"))
    assert not layer.is_set
    assert torch.equal(layer.scale, torch.ones(8))
    assert digest(compute._built.engine.parameters.values) == outcome.parameter_digest
    assert is_untouched(compute)
