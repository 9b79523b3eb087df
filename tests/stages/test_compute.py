from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load as load_safetensors

from stages.compute import Compute
from stages.reference import reference
from stages.tasks import (
    Apply,
    Assemble,
    Broken,
    Build,
    Discard,
    Emitted,
    Export,
    Failed,
    Import,
    Imported,
    Ran,
    Reset,
    Run,
    ShareTaken,
    Snapshot,
    Snapshotted,
    Sum,
    TakeShare,
    Unfit,
    WasReset,
)
from tests.stages.computing import PLENTY, Swarm, export, key, only, perform, send
from zswarm import limits
from zswarm.compression import decode_untrusted, encode
from zswarm.ids import JobKind, JobStatus, Lease, Round, Stage, StatePart, Step
from zswarm.messages import Load
from zswarm.trainer.samples import pack
from zswarm.wire import parcelled, verify


def train(config, source, workers=1, *, move_backwards=False):
    swarm = Swarm(config, workers)
    losses = []
    for step in range(config.run.steps):
        results = [
            swarm.train(step, microbatch, source.samples(step, microbatch), move_backwards=move_backwards)
            for microbatch in range(config.num_microbatches)
        ]
        losses.append(sum(loss for loss, _ in results) / sum(targets for _, targets in results))
        swarm.commit(step)
    return swarm, losses


def difference(found, expected):
    assert found.keys() == expected.keys()
    squares = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return math.sqrt(squares / sum(float(tensor.double().square().sum()) for tensor in expected.values()))


@pytest.mark.parametrize("recompute", ["always", "never"])
@pytest.mark.parametrize(
    ("stages", "workers", "move_backwards"), [(1, 1, False), (2, 1, False), (4, 2, False), (2, 3, True), (1, 3, False)]
)
def test_a_swarm_trains_as_one_process_does(make_config, make_source, stages, workers, move_backwards, recompute):
    """Losses of all steps, final parameters and held-out loss are the reference's, however it is spread out."""
    config = make_config(
        run={"steps": 4}, pipeline={"stages": stages, "recompute": recompute}, optimizer={"momentum": 0.5}
    )
    source = make_source(config)
    expected = reference(config, source, lambda _: None)
    swarm, losses = train(config, source, workers, move_backwards=move_backwards)
    assert losses == pytest.approx(expected.loss, rel=1e-5)
    assert difference(swarm.state(), expected.state) < 1e-6
    held_out = [swarm.evaluate(source.held_out(microbatch), microbatch) for microbatch in range(2)]
    assert sum(held_out) / 2 == pytest.approx(expected.held_out_loss, rel=1e-5)


@pytest.mark.parametrize("name", ["dropping", "odd", "regression"])
def test_own_models_train_as_in_one_process(make_config, make_source, name):
    """Dropout, layers of other kinds, frozen and unused parameters, a loss of one's own: the reference's numbers."""
    stages = {"regression": 2}.get(name, 4)
    model = {"factory": f"own_models:{name}", "sequence_length": 12}
    config = make_config(model=model, pipeline={"stages": stages}, optimizer={"name": "adamw", "weight_decay": 0.1})
    source = make_source(config)
    expected = reference(config, source, lambda _: None)
    swarm, losses = train(config, source, 2)
    assert losses == pytest.approx(expected.loss, rel=1e-4)
    assert difference(swarm.state(), expected.state) < 1e-4


@pytest.mark.parametrize(("codec", "most"), [("bf16", 2.1), ("int8", 1.2), ("bnb8", 1.2)])
def test_lossy_codecs_train_nearly_alike(make_config, make_source, codec, most):
    """Compression changes the loss a little and the bytes on the wire a lot."""
    config = make_config(run={"steps": 4}, pipeline={"stages": 2}, wire={"codec": codec})
    source = make_source(config)
    expected = reference(config, source, lambda _: None)
    swarm, losses = train(config, source)
    assert losses == pytest.approx(expected.loss, rel=1e-3)
    values = 4 * 4 * 2 * (2 * 12 * 16)
    assert swarm.wire_bytes < most * values


def test_gradients_that_are_added_up_as_bfloat16_train_nearly_alike(make_config, make_source):
    """All workers of a stage hold the same bits (`Swarm.commit` looks), near those of float32 and not equal to them."""
    config = make_config(run={"steps": 4}, pipeline={"stages": 2}, wire={"codec": "none", "all_reduce": "bf16"})
    source = make_source(config)
    expected = reference(config, source, lambda _: None)
    swarm, losses = train(config, source, 3)
    assert losses == pytest.approx(expected.loss, rel=1e-3)
    assert 1e-6 < difference(swarm.state(), expected.state) < 1e-2


def test_keeping_and_recomputing_give_equal_bits(make_config, make_source):
    """Kept graph, kept input, and input sent again, on any worker: the parameters are the same bit for bit."""
    digests = []
    for recompute, move in (("never", False), ("always", False), ("always", True), ("never", True)):
        config = make_config(pipeline={"stages": 2, "recompute": recompute}, wire={"codec": "int8"})
        swarm, _ = train(config, make_source(config), 1, move_backwards=move)
        digests.append(swarm.digests)
    assert all(one == digests[0] for one in digests)


@pytest.fixture
def pair(make_config, make_source):
    """Two stages, and a microbatch between them."""
    config = make_config(pipeline={"stages": 2, "recompute": "always"})
    swarm = Swarm(config)
    x = pack(*make_source(config).samples(0, 0))
    ran, _ = swarm.run(swarm.worker(0, 0), JobKind.FORWARD, key(0, 0), x=x)
    _, dy = swarm.run(swarm.worker(1, 0), JobKind.FUSED, key(0, 0), x=ran.y)
    return swarm, x, ran.y, dy


def test_labels_ride_along_unchanged(pair):
    """What stage 0 gets behind the tokens, the last stage gets behind the activation, byte for byte."""
    _, x, y, _ = pair
    assert torch.equal(decode_untrusted(x)[1], decode_untrusted(y)[1])
    assert y.parcel.tensors[1] == x.parcel.tensors[1]


def test_a_backward_without_its_input_asks_for_it(pair):
    """After the backward, or after the step, nothing is kept: NEEDS_INPUT, and with the input it works."""
    swarm, x, _, dy = pair
    worker = swarm.worker(0, 0)
    other = key(0, 0, attempt=1)
    assert swarm.run(worker, JobKind.BACKWARD, other, dy=dy)[0].status is JobStatus.NEEDS_INPUT
    assert swarm.run(worker, JobKind.BACKWARD, other, x=x, dy=dy)[0].status is JobStatus.DONE
    assert swarm.run(worker, JobKind.BACKWARD, key(0, 0), dy=dy)[0].status is JobStatus.DONE
    assert swarm.run(worker, JobKind.BACKWARD, key(0, 0), dy=dy)[0].status is JobStatus.NEEDS_INPUT
    swarm.run(worker, JobKind.FORWARD, key(0, 1), x=x)
    only(worker.perform(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=False, snapshot=False)))
    assert swarm.run(worker, JobKind.BACKWARD, key(0, 1), dy=dy)[0].status is JobStatus.NEEDS_INPUT


def test_without_accumulate_only_dx_comes_of_it(pair):
    """Asked for dx alone, a worker hands out the same bytes and its contribution stays as it was."""
    swarm, _, y, dy = pair
    worker = swarm.worker(1, 0)
    before = only(worker.perform(Snapshot(round=Round(1), num_shards=2)))
    ran, dx = swarm.run(worker, JobKind.FUSED, key(0, 0, attempt=1), x=y, accumulate=False)
    after = only(worker.perform(Snapshot(round=Round(2), num_shards=2)))
    assert bytes(dx.frames[0]) == bytes(dy.frames[0])
    assert ran.loss_sum > 0
    assert [chunk.parcel for chunk in before.shards[0]] == [chunk.parcel for chunk in after.shards[0]]


@pytest.mark.parametrize("kind", [JobKind.FUSED, JobKind.BACKWARD])
def test_without_emit_the_gradient_is_the_same_and_dx_is_not_handed_out(make_config, make_source, kind):
    """A stage in the middle and the last one: what is counted has the same bits, and there is no Emitted."""
    config = make_config(pipeline={"stages": 3})
    contributions = []
    for emit in (True, False):
        swarm = Swarm(config)
        first, middle, last = (swarm.worker(stage, 0) for stage in range(3))
        x, _ = swarm.run(first, JobKind.FORWARD, key(0, 0), x=pack(*make_source(config).samples(0, 0)))
        y, _ = swarm.run(middle, JobKind.FORWARD, key(0, 0), x=x.y)
        _, dy = swarm.run(last, JobKind.FUSED, key(0, 0), x=y.y, emit=emit or kind is JobKind.BACKWARD)
        worker = last
        if kind is JobKind.BACKWARD:
            worker = middle
            _, dy = swarm.run(middle, JobKind.BACKWARD, key(0, 0), dy=dy, emit=emit)
        assert (dy is not None) == emit
        contributions.append(only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards[0][0])
    assert any(bytes(contributions[0].frames[0]))
    assert contributions[0].parcel == contributions[1].parcel


def test_with_neither_a_count_nor_dx_a_loss_is_all_that_comes(pair):
    """A microbatch of which nothing is missing but the loss adds nothing."""
    swarm, _, y, _ = pair
    worker = swarm.worker(1, 0)
    before = only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards[0][0]
    ran, dx = swarm.run(worker, JobKind.FUSED, key(0, 0, attempt=1), x=y, accumulate=False, emit=False)
    assert dx is None
    assert ran.loss_sum > 0
    assert only(worker.perform(Snapshot(round=Round(2), num_shards=2))).shards[0][0].parcel == before.parcel


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
def test_a_reset_forgets_the_step_and_nothing_else(make_config, make_source, accumulation):
    """What was counted, kept and reduced is gone, parameters stay; the microbatch done again counts once."""
    config = make_config(pipeline={"stages": 2, "recompute": "never"}, batch={"accumulation": accumulation})
    swarm = Swarm(config)
    worker = swarm.worker(0, 0)
    x = pack(*make_source(config).samples(0, 0))
    y, _ = swarm.run(worker, JobKind.FORWARD, key(0, 0), x=x)
    _, dy = swarm.run(swarm.worker(1, 0), JobKind.FUSED, key(0, 0), x=y.y)
    swarm.run(worker, JobKind.BACKWARD, key(0, 0), dy=dy)
    swarm.run(worker, JobKind.FORWARD, key(0, 1), x=x)
    counted = only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards
    only(worker.perform(Assemble(round=Round(1), shards=counted)))
    parameters = export(worker, 0)
    assert only(worker.perform(Reset())) == WasReset()
    assert export(worker, 0) == parameters
    assert swarm.run(worker, JobKind.BACKWARD, key(0, 1), dy=dy)[0].status is JobStatus.NEEDS_INPUT
    apply = Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=True, snapshot=False)
    assert "no reduced gradient of round 1" in only(worker.perform(apply)).text
    assert not any(bytes(only(worker.perform(Snapshot(round=Round(2), num_shards=2))).shards[0][0].frames[0]))
    swarm.run(worker, JobKind.BACKWARD, key(0, 0), x=x, dy=dy)
    again = only(worker.perform(Snapshot(round=Round(3), num_shards=2))).shards
    assert again[0][0].parcel == counted[0][0].parcel


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
def test_who_reduces_alone_has_the_bits_of_a_round_and_sends_nothing(make_config, make_source, accumulation):
    """Also after a round that was given up, of which nothing is left."""
    config = make_config(batch={"accumulation": accumulation})
    swarm, source = Swarm(config), make_source(config)
    worker = swarm.worker(0, 0)

    def reduce(round_, num_shards):
        own = only(worker.perform(Snapshot(round=Round(round_), num_shards=num_shards))).shards
        sums = [
            only(worker.perform(Sum(round=Round(round_), shard=shard, contributions=(share,)))).chunks
            for shard, share in enumerate(own)
        ]
        return own, only(worker.perform(Assemble(round=Round(round_), shards=tuple(sums))))

    swarm.train(0, 0, source.samples(0, 0))
    _, several = reduce(1, 3)
    assert not list(worker.perform(Discard(round=Round(1))))
    own, alone = reduce(2, 1)
    assert own == ((),)
    assert (alone.digest, alone.finite, alone.square_norm) == (several.digest, True, several.square_norm)
    only(worker.perform(Snapshot(round=Round(3), num_shards=1)))
    assert not list(worker.perform(Discard(round=Round(3))))
    assert worker._alone is None
    assert isinstance(only(worker.perform(Assemble(round=Round(3), shards=((),)))), Failed)
    only(worker.perform(Snapshot(round=Round(4), num_shards=1)))
    swarm.train(0, 1, source.samples(0, 1))
    assert only(worker.perform(Assemble(round=Round(4), shards=((),)))).digest == alone.digest, "it is a copy"
    assert reduce(5, 1)[1].digest == reduce(6, 3)[1].digest != alone.digest


@pytest.mark.parametrize("accumulation", ["float32", "exact"])
def test_a_reset_takes_back_half_a_gradient(make_config, make_source, accumulation):
    """A layer that raised in its backward leaves the gradients of the layers behind it, until the reset."""
    model = {"factory": "own_models:raising", "sequence_length": 12, "where": "backward"}
    config = make_config(model=model, batch={"accumulation": accumulation})
    worker = Swarm(config).worker(0, 0)
    x = pack(*make_source(config).samples(0, 0))
    run = Run(lease=Lease(4), kind=JobKind.FUSED, key=key(0, 0), accumulate=True, emit=False, x=x, dy=None)
    assert only(worker.perform(run)).lease == 4
    gradients = worker._built.engine.parameters.gradients
    assert gradients.count_nonzero() > 0
    only(worker.perform(Reset()))
    assert gradients.count_nonzero() == 0


@pytest.fixture
def two_jobs(make_config, make_source):
    """Return a last stage of a run file section, and two jobs for it."""

    def make(**sections):
        config = make_config(**{"pipeline": {"stages": 2, "recompute": "never"}} | sections)
        swarm, source, runs = Swarm(config), make_source(config), []
        for microbatch in range(2):
            x = pack(*source.samples(0, microbatch))
            ran, _ = swarm.run(swarm.worker(0, 0), JobKind.FORWARD, key(0, microbatch), x=x)
            of = {"key": key(0, microbatch), "x": ran.y, "dy": None}
            runs.append(Run(lease=Lease(100 + microbatch), kind=JobKind.FUSED, accumulate=True, emit=True, **of))
        return swarm.worker(1, 0), runs

    return make


def rest(worker):
    """Do all that is unfinished."""
    outcomes = []
    while worker.has_unfinished:
        outcomes += worker.go_on()
    return outcomes


def counted(worker):
    """Return the bytes of what has been counted."""
    *_, snapshotted = worker.perform(Snapshot(round=Round(1), num_shards=2))
    return b"".join(bytes(frame) for chunk in snapshotted.shards[0] for frame in chunk.frames)


def test_another_job_may_come_before_the_rest_of_a_backward(two_jobs):
    """Both gradients of inputs are out before either of parameters is complete; the sum has the same bits as in turn."""
    worker, runs = two_jobs()
    assert [type(only(worker.perform(run))) for run in runs] == [Emitted, Emitted]
    assert list(worker.go_on()) == [], "a part is one product, and there are more"
    assert [(type(end), end.lease, end.num_targets > 0) for end in rest(worker)] == [(Ran, 100, True), (Ran, 101, True)]
    in_turn, runs = two_jobs()
    for run in runs:
        perform(in_turn, run)
    assert counted(worker) == counted(in_turn)


def test_the_time_of_a_job_is_its_own(two_jobs, monkeypatch):
    """What another one takes in between does not count: by a clock that goes on with each look, equal jobs are equal."""
    worker, (first, second) = two_jobs()
    monkeypatch.setattr("stages.passes.time", SimpleNamespace(perf_counter=count().__next__))
    only(worker.perform(first))
    assert list(worker.go_on()) == []
    only(worker.perform(second))
    times_s = [ran.compute_s for ran in rest(worker)]
    assert times_s[0] == times_s[1] > 2


def test_a_snapshot_holds_what_was_unfinished(two_jobs):
    worker, (first, _) = two_jobs()
    assert isinstance(only(worker.perform(first)), Emitted)
    ran, snapshotted = worker.perform(Snapshot(round=Round(1), num_shards=2))
    assert (type(ran), type(snapshotted), worker.has_unfinished) == (Ran, Snapshotted, False)
    other, (first, _) = two_jobs()
    perform(other, first)
    assert counted(worker) == counted(other)


def test_a_reset_gives_up_what_is_unfinished(two_jobs):
    worker, (first, second) = two_jobs()
    only(worker.perform(first))
    assert only(worker.perform(Reset())) == WasReset()
    assert not worker.has_unfinished
    perform(worker, second)
    other, (_, second) = two_jobs()
    perform(other, second)
    assert counted(worker) == counted(other)


@pytest.mark.parametrize(
    "sections", [{"batch": {"accumulation": "exact"}}, {"pipeline": {"stages": 2, "recompute": "always"}}]
)
def test_nothing_is_left_where_that_may_not_be(two_jobs, sections):
    """Exact sums need each gradient by itself, and an unfinished backward needs memory."""
    worker, (first, _) = two_jobs(**sections)
    assert [type(outcome) for outcome in worker.perform(first)] == [Emitted, Ran]
    assert not worker.has_unfinished


def test_a_part_that_raises_fails_its_own_job(two_jobs, monkeypatch):
    worker, runs = two_jobs()
    for run in runs:
        only(worker.perform(run))

    def raising(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(type(worker._built.engine._deferred.kernels), "add_weight_gradient", raising)
        failed = only(worker.go_on())
    assert failed == Failed(layer="Run", text="RuntimeError: out of memory", lease=Lease(100))
    ran, _ = worker.perform(Snapshot(round=Round(1), num_shards=2))
    assert (type(ran), ran.lease) == (Ran, 101)


def test_a_part_that_has_to_be_done_at_once_fails_its_own_job_too(two_jobs, monkeypatch):
    """The memory that the second job leaves is short; that the first one fails then is not the second one's failure."""
    worker, (first, second) = two_jobs()
    only(worker.perform(first))
    kernels = type(worker._built.engine._deferred.kernels)
    add, errors = kernels.add_weight_gradient, [RuntimeError("out of memory")]

    def raising_once(*args):
        if errors:
            raise errors.pop()
        add(*args)

    monkeypatch.setattr(kernels, "add_weight_gradient", raising_once)
    monkeypatch.setattr(worker._built.kept, "has_room", lambda: False)
    outcomes = [(type(outcome), outcome.lease) for outcome in worker.perform(second)]
    assert outcomes == [(Emitted, 101), (Failed, 100), (Ran, 101)]


def test_a_snapshot_is_a_copy(pair):
    """What is on its way to others does not change when more is accumulated."""
    swarm, _, y, _ = pair
    worker = swarm.worker(1, 0)
    (chunk,) = only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards[0]
    swarm.run(worker, JobKind.FUSED, key(0, 1), x=y)
    assert verify(chunk.parcel, chunk.frames)
    (now,) = only(worker.perform(Snapshot(round=Round(2), num_shards=2))).shards[0]
    assert now.parcel.crc != chunk.parcel.crc


def test_a_step_that_is_not_applied_clears_and_nothing_else(pair):
    """With `apply` false the parameters stay; the accumulator begins anew."""
    swarm, _, _, _ = pair
    worker = swarm.worker(1, 0)
    before = export(worker, 3)
    only(worker.perform(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=False, snapshot=False)))
    assert export(worker, 3) == before
    (chunk,) = only(worker.perform(Snapshot(round=Round(2), num_shards=2))).shards[0]
    assert not any(bytes(chunk.frames[0]))


def test_only_the_round_that_is_held_can_be_applied(pair):
    """A result that was discarded, or belongs to another round, is not applied."""
    swarm, _, _, _ = pair
    worker = swarm.worker(1, 0)
    own = only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards
    only(worker.perform(Assemble(round=Round(1), shards=own)))
    apply = Apply(step=Step(0), round=Round(2), scale=1.0, lr=0.1, apply=True, snapshot=False)
    assert "no reduced gradient of round 2" in only(worker.perform(apply)).text
    assert list(worker.perform(Discard(round=Round(7)))) == []
    assert list(worker.perform(Discard(round=Round(1)))) == []
    apply = Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=True, snapshot=False)
    assert "no reduced gradient of round 1" in only(worker.perform(apply)).text


def test_a_gradient_that_is_not_finite_is_reported(pair):
    """NaN in one activation: finite is false and the norm 0, for the coordinator to skip the step."""
    swarm, _, y, _ = pair
    worker = swarm.worker(1, 0)
    x, labels = decode_untrusted(y)
    x[0, 0, 0] = math.nan
    swarm.run(worker, JobKind.FUSED, key(0, 1), x=encode([x, labels], "none"))
    own = only(worker.perform(Snapshot(round=Round(1), num_shards=2))).shards
    assembled = only(worker.perform(Assemble(round=Round(1), shards=own)))
    assert (assembled.finite, assembled.square_norm) == (False, 0.0)


def test_a_layer_that_raises_is_named(make_config):
    """Layer, one line and the job's lease reach whoever asks; the thread goes on."""
    config = make_config(
        model={"factory": "own_models:raising", "sequence_length": 12, "where": "forward"}, pipeline={"stages": 3}
    )
    swarm = Swarm(config)
    worker = swarm.worker(1, 0)
    run = Run(
        lease=Lease(1),
        kind=JobKind.FORWARD,
        key=key(0, 0),
        accumulate=True,
        emit=True,
        x=encode([torch.zeros(1, 12, 8)], "none"),
        dy=None,
    )
    failed = Failed(layer="layer 1 (Raising)", text="ValueError: the sky is falling", lease=Lease(1))
    assert only(worker.perform(run)) == failed
    assert swarm.run(worker, JobKind.FORWARD, key(0, 0), x=encode([torch.zeros(2, 12, 8)], "none"))[0].kept


def test_what_autograd_forbids_fails_in_the_first_job_too(make_config, make_source):
    """While it was measured what a graph holds on to, autograd did not look: one wrong gradient was counted."""
    model = {"factory": "own_models:overwriting", "sequence_length": 12}
    config = make_config(model=model, pipeline={"stages": 3, "split": [1, 1, 1], "recompute": "never"})
    swarm = Swarm(config)
    worker = swarm.stages[1][0]
    x = encode([torch.ones(2, 12, 8), torch.zeros(2, 12, dtype=torch.uint8)], "none")
    swarm.run(worker, JobKind.FORWARD, key(0, 0), x=x)
    dy = encode([torch.ones(2, 12, 8)], "none")
    task = Run(lease=Lease(9), kind=JobKind.BACKWARD, key=key(0, 0), accumulate=True, emit=True, x=None, dy=dy)
    (failed,) = perform(worker, task)
    assert isinstance(failed, Failed)
    assert "modified by an inplace operation" in failed.text


def test_a_graph_that_is_given_up_is_freed(make_config, make_source):
    """The first one, of which it was measured what it holds on to, went in a circle that nobody sees."""
    model = {"factory": "own_models:overwriting", "sequence_length": 12}
    config = make_config(model=model, pipeline={"stages": 3, "split": [1, 1, 1], "recompute": "never"})
    swarm = Swarm(config)
    worker = swarm.stages[1][0]
    held = []
    layer = worker._built.engine.layers[0]
    layer.register_forward_hook(lambda _, __, y: held.append(weakref.ref(y)))
    x = encode([torch.ones(2, 12, 8), torch.zeros(2, 12, dtype=torch.uint8)], "none")
    swarm.run(worker, JobKind.FORWARD, key(0, 0), x=x)
    assert held[0]() is not None
    only(worker.perform(Reset()))
    gc.collect()
    assert held[0]() is None


def spoiled(load, **changes):
    from dataclasses import replace

    spec = replace(load.parcel.tensors[0], **changes)
    return Load(parcel=replace(load.parcel, tensors=(spec, *load.parcel.tensors[1:])), frames=load.frames)


@pytest.mark.parametrize(
    ("kind", "make_payloads", "says"),
    [
        (JobKind.FORWARD, lambda x, y, dy: (spoiled(x, codec="zip"), None), "codec 'zip'"),
        (JobKind.FORWARD, lambda x, y, dy: (None, None), "without the stage's input"),
        (JobKind.BACKWARD, lambda x, y, dy: (x, None), "without the gradient of its output"),
        (
            JobKind.BACKWARD,
            lambda x, y, dy: (x, spoiled(dy, shape=(2, 16, 12))),
            "a gradient [2, 16, 12] for an output",
        ),
        (JobKind.FUSED, lambda x, y, dy: (encode(decode_untrusted(y)[:1], "none"), None), "without labels"),
        (JobKind.EVALUATE, lambda x, y, dy: (encode([torch.ones(2, 12, 16)] * 2, "none"), None), "without labels"),
    ],
)
def test_payloads_that_do_not_fit_fail(pair, kind, make_payloads, says):
    """A payload that a job cannot use is described, and does no harm to the next job."""
    swarm, x, y, dy = pair
    worker = swarm.worker(1 if kind in (JobKind.FUSED, JobKind.EVALUATE) else 0, 0)
    payload_x, payload_dy = make_payloads(x, y, dy)
    task = Run(lease=Lease(9), kind=kind, key=key(0, 5), accumulate=True, emit=True, x=payload_x, dy=payload_dy)
    outcome = only(worker.perform(task))
    assert isinstance(outcome, Failed)
    assert says in outcome.text
    assert (outcome.layer, outcome.lease) == ("", 9)
    swarm.train(0, 1, [tensor.numpy() for tensor in decode_untrusted(x)])


def test_a_stage_that_cannot_be_built_says_why(make_config):
    """What plan refuses, Build refuses too; nothing works before a Build."""
    compute = Compute(gauge=lambda: PLENTY)
    assert "before Build" in only(compute.perform(Snapshot(round=Round(1), num_shards=2))).text
    for config, says in (
        (make_config(pipeline={"stages": 9}), "the model has 4 layers"),
        (make_config(pipeline={"stages": 2, "split": [1, 1]}), "adds up to 2 layers"),
        (make_config(model={"factory": "own_models:falling", "sequence_length": 12}), "raised KeyError"),
    ):
        build = Build(stage=Stage(0), num_stages=config.pipeline.stages, configuration=config.canonical_json())
        failed = only(compute.perform(build))
        assert (failed.layer, failed.lease) == ("", None)
        assert says in failed.text
    unfit = only(compute.perform(Build(stage=Stage(0), num_stages=1, configuration=b"{}")))
    assert isinstance(unfit, Unfit), "of another version: others may be able to"
    assert "not valid" in unfit.text
    assert "before Build" in only(compute.perform(Snapshot(round=Round(1), num_shards=2))).text


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2.00 GiB"),
    MemoryError("2.00 GiB"),
]


@pytest.mark.parametrize("shortage", SHORTAGES, ids=["card", "torch", "numpy"])
def test_what_a_lack_of_memory_means(make_config, make_source, monkeypatch, shortage):
    """A job has failed, which others may do; a stage does not fit here; anything else is for another life."""
    config = make_config(pipeline={"stages": 2})
    worker, x = Swarm(config).worker(0, 0), pack(*make_source(config).samples(0, 0))

    def full(*_args, **_kwargs):
        raise shortage

    run = Run(lease=Lease(9), kind=JobKind.FORWARD, key=key(0, 0), accumulate=True, emit=True, x=x, dy=None)
    snapshot = Snapshot(round=Round(1), num_shards=2)
    build = Build(stage=Stage(0), num_stages=2, configuration=config.canonical_json())
    for task, place, kind in (
        (run, "torch.nn.Embedding.forward", Failed),
        (snapshot, "stages.shards.cut", Broken),
        (build, "stages.compute.build_layer", Unfit),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, full)
            outcome = only(worker.perform(task))
        assert isinstance(outcome, kind)
        assert "2.00 GiB" in outcome.text
        assert getattr(outcome, "lease", None) == (9 if task is run else None)


def test_a_device_that_does_not_work_any_more_is_no_failure_of_the_run(make_config, make_source, monkeypatch):
    """Whatever it was at: a reset that fails for it ended the run for everybody."""
    config = make_config(pipeline={"stages": 2})
    worker, x = Swarm(config).worker(0, 0), pack(*make_source(config).samples(0, 0))

    class LostDevice(RuntimeError):
        pass

    def lost(*_args, **_kwargs):
        raise LostDevice("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("stages.devices.ACCELERATOR_ERRORS", (LostDevice,))
    run = Run(lease=Lease(9), kind=JobKind.FORWARD, key=key(0, 0), accumulate=True, emit=True, x=x, dy=None)
    for task, place in (
        (run, "torch.nn.Embedding.forward"),
        (Reset(), "stages.engine.StageEngine.clear_gradients"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, lost)
            outcome = only(worker.perform(task))
        assert isinstance(outcome, Broken)
        assert "illegal memory access" in outcome.text


def test_another_stage_does_not_have_to_share_the_memory_with_the_one_before(make_config):
    """A worker that moves: the layers before were held by a circle that nobody looked for."""
    worker = Compute(gauge=lambda: PLENTY)
    config = make_config(pipeline={"stages": 2})
    gc.disable()
    try:
        for stage in (0, 1):
            before = worker._built and weakref.ref(worker._built.engine.layers[1])
            only(worker.perform(Build(stage=Stage(stage), num_stages=2, configuration=config.canonical_json())))
        assert before is not None
        assert before() is None
    finally:
        gc.enable()


def test_a_large_layer_is_exported_in_ranges(make_config, monkeypatch):
    """A layer longer than one answer comes in ranges; an offset behind the end gives the last byte."""
    monkeypatch.setattr(limits, "STATE_RANGE_BYTES", 1000)
    config = make_config()
    swarm = Swarm(config)
    worker = swarm.worker(0, 0)
    tensors = load_safetensors(export(worker, 1))
    assert set(tensors) >= {"up.weight", "attention.qkv.bias"}
    beyond = only(worker.perform(Export(part=StatePart.PARAMETERS, layer=1, offset_bytes=1 << 40, from_snapshot=False)))
    assert beyond.offset_bytes == beyond.total_bytes - 1
    assert "layer 4 is not one of this stage's" in export(worker, 4).text


# -- what is handed over -----------------------------------------------------------------------------


SHARE = 0b0110
"""What a copy is called; it need not be of that."""


@pytest.mark.parametrize(
    ("accumulation", "all_reduce", "width_bytes", "within"),
    [("float32", "none", 4, 1e-6), ("float32", "bf16", 2, 2e-4), ("exact", "none", 8, 0.0)],
)
def test_what_one_worker_has_counted_is_counted_by_another_one(
    make_config, make_source, accumulation, all_reduce, width_bytes, within
):
    """The steps are those of workers that all stay, as near as the share is sent; with `exact` to the bit."""
    config = make_config(batch={"accumulation": accumulation}, pipeline={"stages": 2}, wire={"all_reduce": all_reduce})
    source = make_source(config)
    stay, _ = train(config, source, workers=2)
    swarm = Swarm(config, workers=2)
    for step in range(config.run.steps):
        for microbatch in range(config.num_microbatches):
            swarm.train(step, microbatch, source.samples(step, microbatch))
        for leaver, heir in swarm.stages:
            first, share = (
                leaver._built.engine.first_layer,
                export(leaver, leaver._built.engine.first_layer, StatePart.SHARE),
            )
            assert len(share) == leaver._built.accumulator.num_values * width_bytes
            assert send(heir, first, StatePart.SHARE, share, ledger=SHARE) == []
            assert list(heir.perform(TakeShare(ledger=SHARE))) == [ShareTaken()]
            assert list(leaver.perform(Reset())) == [WasReset()]
        swarm.commit(step)
    found, expected = swarm.state(), stay.state()
    if accumulation == "exact":
        assert swarm.digests == stay.digests
    assert difference(found, expected) <= within


def test_a_share_that_does_not_fit_is_not_added(make_config):
    (worker,) = Swarm(make_config(pipeline={"stages": 1})).stages[0]
    whole = export(worker, 0, StatePart.SHARE)
    (failed,) = send(worker, 0, StatePart.SHARE, whole[:-4], range_bytes=len(whole), ledger=SHARE)
    assert isinstance(failed, Failed)
    (failed,) = worker.perform(TakeShare(ledger=SHARE))
    assert isinstance(failed, Failed)
    assert send(worker, 0, StatePart.SHARE, whole, ledger=SHARE) == []
    assert list(worker.perform(Reset())) == [WasReset()]
    (failed,) = worker.perform(TakeShare(ledger=SHARE))
    assert "not here" in failed.text


def test_the_copy_that_is_asked_for_is_added_though_a_newer_one_has_come(make_config, make_source):
    """The view may say that the older one is ours while the thread has taken the newer one already."""
    config = make_config(batch={"accumulation": "exact"}, pipeline={"stages": 1})
    source = make_source(config)
    swarm = Swarm(config, workers=2)
    ((owner, heir),) = swarm.stages
    swarm.train(0, 0, source.samples(0, 0))
    first = export(owner, 0, StatePart.SHARE)
    swarm.train(0, 2, source.samples(0, 2))
    second = export(owner, 0, StatePart.SHARE)
    assert first != second
    assert (
        send(heir, 0, StatePart.SHARE, first, ledger=0b01)
        == send(heir, 0, StatePart.SHARE, second, ledger=0b11, kept=0b01)
        == []
    )
    assert list(heir.perform(TakeShare(ledger=0b01))) == [ShareTaken()]
    assert export(heir, 0, StatePart.SHARE) == first
    (failed,) = heir.perform(TakeShare(ledger=0b11))
    assert isinstance(failed, Failed), "what one has counted is counted once"


def test_of_two_copies_the_one_that_is_to_be_kept_stays_when_a_third_begins(make_config):
    """The second one's last range may have been taken when it is given up for the third: what is known of is the first."""
    (worker,) = Swarm(make_config(pipeline={"stages": 1})).stages[0]
    whole = export(worker, 0, StatePart.SHARE)
    of = {"part": StatePart.SHARE, "layer": 0, "offset_bytes": 0, "total_bytes": len(whole), "kept": 0b01}
    assert send(worker, 0, StatePart.SHARE, whole, ledger=0b01) == []
    assert send(worker, 0, StatePart.SHARE, whole, ledger=0b11, kept=0b01) == []
    begun = Import(**of, load=parcelled(whole[:8], ()), ledger=0b111)
    assert list(worker.perform(begun)) == [Imported(part=StatePart.SHARE)]
    (failed,) = worker.perform(replace(begun, offset_bytes=8, ledger=0b1111))
    assert "another copy" in failed.text
    (failed,) = worker.perform(TakeShare(ledger=0b11))
    assert isinstance(failed, Failed), "there are never more than two"
    assert list(worker.perform(TakeShare(ledger=0b01))) == [ShareTaken()]
