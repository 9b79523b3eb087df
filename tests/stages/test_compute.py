from __future__ import annotations

import itertools
import math

import pytest
import torch
from safetensors.torch import load as load_safetensors

from stages.compute import Compute
from stages.memory import Memory
from stages.reference import reference
from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Discard,
    Emitted,
    Export,
    Failed,
    Ran,
    Run,
    Snapshot,
    Sum,
)
from zswarm import limits
from zswarm.compression import decode_untrusted, encode
from zswarm.ids import Attempt, Branch, JobKind, JobStatus, Lease, Microbatch, Purpose, Round, Stage, StatePart, Step
from zswarm.messages import Load
from zswarm.schedule import learning_rate
from zswarm.trainer.samples import pack
from zswarm.wire import verify

PLENTY = Memory(total_bytes=1 << 40, free_bytes=1 << 40)


def key(step, microbatch, purpose=Purpose.TRAIN, attempt=0):
    return (Branch(0), Step(step), purpose, Microbatch(microbatch), Attempt(attempt))


class Swarm:
    """Computes of all stages, wired by hand: what machines and sockets do, without either."""

    def __init__(self, config, workers=1):
        self.config = config
        self.num_stages = config.pipeline.stages
        self._leases = itertools.count(1)
        self.wire_bytes = 0
        self.stages = []
        for stage in range(self.num_stages):
            self.stages.append([Compute(gauge=lambda: PLENTY) for _ in range(workers)])
            build = Build(stage=Stage(stage), num_stages=self.num_stages, configuration=config.canonical_json())
            built = [only(worker.perform(build)) for worker in self.stages[-1]]
            assert all(isinstance(one, Built) for one in built), built
            assert len({one.parameter_digest for one in built}) == 1
        self.digests = {}

    def run(self, worker, kind, key, *, x=None, dy=None, accumulate=True):
        task = Run(lease=Lease(next(self._leases)), kind=kind, key=key, accumulate=accumulate, x=x, dy=dy)
        outcomes = list(worker.perform(task))
        assert isinstance(outcomes[-1], Ran), outcomes
        assert all(outcome.lease == task.lease for outcome in outcomes)
        assert all(isinstance(outcome, Emitted) for outcome in outcomes[:-1])
        loads = [outcome.dx for outcome in outcomes[:-1]] + [outcomes[-1].y] * (outcomes[-1].y is not None)
        self.wire_bytes += sum(load.parcel.size_bytes for load in loads)
        assert all(verify(load.parcel, load.frames) for load in loads)
        return outcomes[-1], outcomes[0].dx if len(outcomes) == 2 else None

    def worker(self, stage, microbatch, shift=0):
        workers = self.stages[stage]
        return workers[(microbatch + shift) % len(workers)]

    def train(self, step, microbatch, samples, *, move_backwards=False):
        """Send a microbatch through; `move_backwards` gives each backward to another worker than the forward's."""
        x = pack(*samples)
        inputs = []
        for stage in range(self.num_stages - 1):
            inputs.append(x)
            ran, dx = self.run(self.worker(stage, microbatch), JobKind.FORWARD, key(step, microbatch), x=x)
            assert ran.kept
            assert dx is None
            x = ran.y
        last, dx = self.run(self.worker(-1, microbatch), JobKind.FUSED, key(step, microbatch), x=x)
        for stage in reversed(range(self.num_stages - 1)):
            worker = self.worker(stage, microbatch, shift=move_backwards)
            again = inputs[stage] if move_backwards else None
            _, dx = self.run(worker, JobKind.BACKWARD, key(step, microbatch), x=again, dy=dx)
        assert dx is None
        return last.loss_sum, last.num_targets

    def commit(self, step):
        """All-reduce and apply, stage by stage, with the global norm."""
        round_ = Round(step + 1)
        assembled = [self._reduce(workers, round_) for workers in self.stages]
        assert all(one.finite for one in assembled)
        norm = math.sqrt(sum(one.square_norm for one in assembled))
        clip = self.config.optimizer.grad_clip
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        lr = learning_rate(self.config.optimizer, step, self.config.run.steps)
        apply = Apply(step=Step(step), round=round_, scale=scale, lr=lr, apply=True)
        for stage, workers in enumerate(self.stages):
            applied = [only(worker.perform(apply)) for worker in workers]
            assert all(isinstance(one, Applied) and one.step == step for one in applied)
            (self.digests[stage],) = {one.parameter_digest for one in applied}
        return norm

    def _reduce(self, workers, round_):
        snapshots = [only(w.perform(Snapshot(round=round_, num_shards=len(workers)))).shards for w in workers]
        sums = [
            only(
                worker.perform(Sum(round=round_, shard=shard, contributions=tuple(s[shard] for s in snapshots)))
            ).chunks
            for shard, worker in enumerate(workers)
        ]
        assembled = [only(worker.perform(Assemble(round=round_, shards=tuple(sums)))) for worker in workers]
        assert len({(one.digest, one.square_norm) for one in assembled}) == 1
        assert isinstance(assembled[0], Assembled)
        return assembled[0]

    def evaluate(self, samples, microbatch):
        x = pack(*samples)
        place = key(0, microbatch, Purpose.EVALUATE)
        for stage in range(self.num_stages - 1):
            ran, _ = self.run(self.worker(stage, microbatch), JobKind.FORWARD, place, x=x)
            assert not ran.kept
            x = ran.y
        ran, dx = self.run(self.worker(-1, microbatch), JobKind.EVALUATE, place, x=x)
        assert dx is None
        return ran.loss_sum / ran.num_targets

    def state(self):
        found, layer = {}, 0
        for workers in self.stages:
            while not isinstance(outcome := export(workers[0], layer), Failed):
                found |= {f"layers.{layer}.{name}": tensor for name, tensor in load_safetensors(outcome).items()}
                layer += 1
        return found


def export(worker, layer):
    """Fetch a layer range by range."""
    buffer = b""
    while True:
        task = Export(part=StatePart.PARAMETERS, layer=layer, offset_bytes=len(buffer))
        outcome = only(worker.perform(task))
        if isinstance(outcome, Failed):
            return outcome
        assert outcome.offset_bytes == len(buffer)
        assert verify(outcome.load.parcel, outcome.load.frames)
        buffer += b"".join(outcome.load.frames)
        if len(buffer) == outcome.total_bytes:
            return buffer


def only(outcomes):
    (outcome,) = outcomes
    return outcome


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
    only(worker.perform(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=False)))
    assert swarm.run(worker, JobKind.BACKWARD, key(0, 1), dy=dy)[0].status is JobStatus.NEEDS_INPUT


def test_without_accumulate_only_dx_comes_of_it(pair):
    """Asked for dx alone, a worker hands out the same bytes and its contribution stays as it was."""
    swarm, _, y, dy = pair
    worker = swarm.worker(1, 0)
    before = only(worker.perform(Snapshot(round=Round(1), num_shards=1)))
    ran, dx = swarm.run(worker, JobKind.FUSED, key(0, 0, attempt=1), x=y, accumulate=False)
    after = only(worker.perform(Snapshot(round=Round(2), num_shards=1)))
    assert bytes(dx.frames[0]) == bytes(dy.frames[0])
    assert ran.loss_sum > 0
    assert [chunk.parcel for chunk in before.shards[0]] == [chunk.parcel for chunk in after.shards[0]]


def test_a_snapshot_is_a_copy(pair):
    """What is on its way to others does not change when more is accumulated."""
    swarm, _, y, _ = pair
    worker = swarm.worker(1, 0)
    (chunk,) = only(worker.perform(Snapshot(round=Round(1), num_shards=1))).shards[0]
    swarm.run(worker, JobKind.FUSED, key(0, 1), x=y)
    assert verify(chunk.parcel, chunk.frames)
    (now,) = only(worker.perform(Snapshot(round=Round(2), num_shards=1))).shards[0]
    assert now.parcel.crc != chunk.parcel.crc


def test_a_step_that_is_not_applied_clears_and_nothing_else(pair):
    """With `apply` false the parameters stay; the accumulator begins anew."""
    swarm, _, _, _ = pair
    worker = swarm.worker(1, 0)
    before = export(worker, 3)
    only(worker.perform(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=False)))
    assert export(worker, 3) == before
    (chunk,) = only(worker.perform(Snapshot(round=Round(2), num_shards=1))).shards[0]
    assert not any(bytes(chunk.frames[0]))


def test_only_the_round_that_is_held_can_be_applied(pair):
    """A result that was discarded, or belongs to another round, is not applied."""
    swarm, _, _, _ = pair
    worker = swarm.worker(1, 0)
    own = only(worker.perform(Snapshot(round=Round(1), num_shards=1))).shards
    only(worker.perform(Assemble(round=Round(1), shards=own)))
    apply = Apply(step=Step(0), round=Round(2), scale=1.0, lr=0.1, apply=True)
    assert "no reduced gradient of round 2" in only(worker.perform(apply)).text
    assert list(worker.perform(Discard(round=Round(7)))) == []
    assert list(worker.perform(Discard(round=Round(1)))) == []
    apply = Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=True)
    assert "no reduced gradient of round 1" in only(worker.perform(apply)).text


def test_a_gradient_that_is_not_finite_is_reported(pair):
    """NaN in one activation: finite is false and the norm 0, for the coordinator to skip the step."""
    swarm, _, y, _ = pair
    worker = swarm.worker(1, 0)
    x, labels = decode_untrusted(y)
    x[0, 0, 0] = math.nan
    swarm.run(worker, JobKind.FUSED, key(0, 1), x=encode([x, labels], "none"))
    own = only(worker.perform(Snapshot(round=Round(1), num_shards=1))).shards
    assembled = only(worker.perform(Assemble(round=Round(1), shards=own)))
    assert (assembled.finite, assembled.square_norm) == (False, 0.0)


def test_a_layer_that_raises_is_named(make_config):
    """Stage, layer and one line reach whoever asks; the thread goes on."""
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
        x=encode([torch.zeros(1, 12, 8)], "none"),
        dy=None,
    )
    assert only(worker.perform(run)) == Failed(layer="layer 1 (Raising)", text="ValueError: the sky is falling")
    assert swarm.run(worker, JobKind.FORWARD, key(0, 0), x=encode([torch.zeros(2, 12, 8)], "none"))[0].kept


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
    task = Run(lease=Lease(1), kind=kind, key=key(0, 5), accumulate=True, x=payload_x, dy=payload_dy)
    outcome = only(worker.perform(task))
    assert isinstance(outcome, Failed)
    assert says in outcome.text
    assert outcome.layer == ""
    swarm.train(0, 1, [tensor.numpy() for tensor in decode_untrusted(x)])


def test_a_stage_that_cannot_be_built_says_why(make_config):
    """What plan refuses, Build refuses too; nothing works before a Build."""
    compute = Compute(gauge=lambda: PLENTY)
    assert "before Build" in only(compute.perform(Snapshot(round=Round(1), num_shards=1))).text
    for config, says in (
        (make_config(pipeline={"stages": 9}), "the model has 4 layers"),
        (make_config(pipeline={"stages": 2, "split": [1, 1]}), "adds up to 2 layers"),
        (make_config(model={"factory": "own_models:nowhere", "sequence_length": 12}), "has no 'nowhere'"),
    ):
        build = Build(stage=Stage(0), num_stages=config.pipeline.stages, configuration=config.canonical_json())
        failed = only(compute.perform(build))
        assert failed.layer == ""
        assert says in failed.text
    assert "not valid" in only(compute.perform(Build(stage=Stage(0), num_stages=1, configuration=b"{}"))).text
    assert "before Build" in only(compute.perform(Snapshot(round=Round(1), num_shards=1))).text


def test_a_large_layer_is_exported_in_ranges(make_config, monkeypatch):
    """A layer longer than one answer comes in ranges; an offset behind the end gives the last byte."""
    monkeypatch.setattr(limits, "STATE_RANGE_BYTES", 1000)
    config = make_config()
    swarm = Swarm(config)
    worker = swarm.worker(0, 0)
    tensors = load_safetensors(export(worker, 1))
    assert set(tensors) >= {"up.weight", "attention.qkv.bias"}
    beyond = only(worker.perform(Export(part=StatePart.PARAMETERS, layer=1, offset_bytes=1 << 40)))
    assert beyond.offset_bytes == beyond.total_bytes - 1
    assert "layer 4 is not one of this stage's" in export(worker, 4).text
