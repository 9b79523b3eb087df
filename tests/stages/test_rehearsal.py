"""What a worker does with made-up numbers before it is given real ones."""

from __future__ import annotations

import weakref

import pytest
import torch

from stages import kernels, shards
from stages.compute import Compute
from stages.flat import digest
from stages.memory import Memory
from stages.passes import Passes
from stages.tasks import Broken, Build, Built, Unfit
from tests.stages.computing import PLENTY, built, commissioned, is_untouched, only
from zswarm.ids import Purpose, Stage

OWN = {"sequence_length": 12}
GIB = 1 << 30
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


@pytest.mark.parametrize(("stage", "kinds"), [(0, ["FORWARD", "BACKWARD", "FORWARD"]), (2, ["FUSED", "EVALUATE"])])
def test_the_jobs_are_those_of_the_stage(make_config, monkeypatch, stage, kinds):
    """To train: counted, with a dx, and with the weights' gradients that a backward leaves unfinished. And to evaluate."""
    done, run, go_on = [], Passes.run, Passes.go_on

    def spy(self, task):
        done.append(task.kind.name)
        is_last = len(done) - done.count("rest") == len(kinds)
        assert (task.accumulate, task.emit) == (not is_last, not is_last)
        assert task.key[2] is (Purpose.EVALUATE if is_last else Purpose.TRAIN)
        return run(self, task)

    def spy_rest(self):
        done.append("rest")
        return go_on(self)

    monkeypatch.setattr(Passes, "run", spy)
    monkeypatch.setattr(Passes, "go_on", spy_rest)
    built(commissioned(make_config(pipeline={"stages": 3})), stage)
    assert [kind for kind in done if kind != "rest"] == kinds
    assert done[-2:] == ["rest", kinds[-1]]


def test_without_the_shape_of_the_input_only_the_round_is_rehearsed(make_config):
    compute = Compute(gauge=lambda: PLENTY)
    build = Build(stage=Stage(1), num_stages=3, configuration=make_config(pipeline={"stages": 3}).canonical_json())
    outcome = only(compute.perform(build))
    assert outcome.job_s == 0.0
    assert outcome.round_s > 0.0


def test_a_round_is_rehearsed_as_it_is_going_to_travel(make_config, monkeypatch):
    seen, cut = [], shards.cut
    monkeypatch.setattr(shards, "cut", lambda *args: seen.append(args[2]) or cut(*args))
    _, outcome = built(commissioned(make_config(wire={"all_reduce": "bf16"})), 0)
    assert outcome.round_s > 0.0
    assert seen == ["bf16"]


def test_made_up_numbers_leave_no_trace_in_the_layers(make_config):
    """Buffers were put back, and the count of what they held was not: a table of rotations was zero for a whole run.

    Nor in a buffer, a module made when the shape is known, a frozen parameter, or something that layers have in common.
    """
    compute, outcome = built(commissioned(make_config(model={"factory": "own_models:remembering", **OWN})), 0)
    assert outcome.job_s > 0.0
    _, first, second, _ = compute._built.engine.layers
    assert first.common is second.common
    for layer in (first, second):
        assert (layer.num_seen, layer.made, layer.common) == (0, None, [])
        assert torch.equal(layer.seen, torch.zeros(8))
        assert torch.equal(layer.mean, torch.ones(8))


def test_there_is_never_room_for_two_stages(make_config, monkeypatch):
    """The one that has rehearsed is gone before the one of the run is made."""
    made, make = [], Compute._made

    def spy(self, *args):
        assert not any(one() for one in made)
        stage = make(self, *args)
        made.append(weakref.ref(stage.engine))
        return stage

    monkeypatch.setattr(Compute, "_made", spy)
    compute, _ = built(commissioned(make_config(pipeline={"stages": 2})), 1)
    assert len(made) == 2
    assert made[1]() is compute._built.engine


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
    for free_bytes, own_bytes, kind in ((80, 0, Built), (95, 0, Unfit), (10, 50, Built), (10, 85, Unfit)):
        memory = Memory(total_bytes=100 * GIB, free_bytes=free_bytes * GIB, own_bytes=own_bytes * GIB)
        compute = Compute(gauge=lambda memory=memory: memory)
        assert isinstance(only(compute.perform(build)), kind)


@pytest.mark.parametrize(("free_bytes", "kind"), [(3 * GIB, Unfit), (2 * GIB, Built)])
def test_on_a_small_card_the_driver_is_nobody_else(make_config, monkeypatch, free_bytes, kind):
    """It takes more of it than the share that may be in use: no worker of such a card ever left a stage to others."""

    def full(*_args):
        raise EXHAUSTED

    monkeypatch.setattr("stages.passes.encode", full)
    build = Build(
        stage=Stage(0),
        num_stages=2,
        configuration=commissioned(make_config(pipeline={"stages": 2})).canonical_json(),
    )
    compute = Compute(gauge=lambda: Memory(total_bytes=4 * GIB, free_bytes=free_bytes))
    assert isinstance(only(compute.perform(build)), kind)


def test_workers_that_begin_on_one_card_together_do_not_all_leave_it(make_config, monkeypatch):
    """Each found it empty, and was sent away for good when the others had filled it."""
    others = Memory(total_bytes=100 * GIB, free_bytes=10 * GIB, own_bytes=40 * GIB)
    seen = [Memory(total_bytes=100 * GIB, free_bytes=100 * GIB)]

    def full(*_args):
        seen.append(others)
        raise EXHAUSTED

    monkeypatch.setattr("stages.passes.encode", full)
    config = make_config(pipeline={"stages": 2})
    build = Build(stage=Stage(0), num_stages=2, configuration=commissioned(config).canonical_json())
    assert isinstance(only(Compute(gauge=lambda: seen[-1]).perform(build)), Built)


def test_what_fails_in_a_rehearsal_ends_nothing_but_a_broken_device(make_config, monkeypatch):
    class LostDevice(RuntimeError):
        pass

    monkeypatch.setattr("stages.devices.ACCELERATOR_ERRORS", (LostDevice,))
    for error, kind in ((ImportError("no library"), Built), (SystemExit(3), Built), (LostDevice("lost"), Broken)):

        def failing(*_args, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("stages.rehearsal.encode", failing)
            _, outcome = built(commissioned(make_config()), 0)
        assert isinstance(outcome, kind)
        assert getattr(outcome, "job_s", 0.0) == 0.0


def test_an_evaluation_that_fails_is_not_known(make_config, monkeypatch):
    def failing(*_args):
        raise ValueError("no such numbers")

    monkeypatch.setattr("stages.engine.StageEngine.evaluate", failing)
    compute, outcome = built(commissioned(make_config()), 0)
    assert outcome.job_s == 0.0
    assert is_untouched(compute)


def test_layers_that_set_their_parameters_see_real_numbers_first(make_config):
    compute, outcome = built(commissioned(make_config(model={"factory": "own_models:initialising", **OWN})), 0)
    assert outcome.job_s > 0.0
    (layer,) = (layer for layer in compute._built.engine.layers if hasattr(layer, "is_set"))
    assert not layer.is_set
    assert torch.equal(layer.scale, torch.ones(8))
    assert digest(compute._built.engine.parameters.values) == outcome.parameter_digest
    assert is_untouched(compute)
