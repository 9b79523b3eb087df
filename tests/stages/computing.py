"""Computes of all stages, wired by hand: what machines and sockets do, without either."""

from __future__ import annotations

import itertools

import torch
from safetensors.torch import load as load_safetensors

from stages.compute import Compute
from stages.memory import Memory
from stages.partition import plan
from stages.rehearsal import KEY
from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Emitted,
    Export,
    Failed,
    Import,
    Imported,
    Ran,
    Run,
    Snapshot,
    Sum,
)
from zswarm.clipping import clip_scale
from zswarm.config import Commission
from zswarm.ids import Attempt, Branch, JobKind, Lease, Microbatch, Purpose, Round, Stage, StatePart, Step
from zswarm.schedule import learning_rate
from zswarm.trainer.samples import pack
from zswarm.wire import parcelled, verify


def perform(worker, task):
    """Carry out a task and all that it leaves unfinished."""
    outcomes = list(worker.perform(task))
    while worker.has_unfinished:
        outcomes += worker.go_on()
    return outcomes


PLENTY = Memory(total_bytes=1 << 40, free_bytes=1 << 40)


def key(step, microbatch, purpose=Purpose.TRAIN, attempt=0):
    return (Branch(0), Step(step), purpose, Microbatch(microbatch), Attempt(attempt))


def commissioned(config):
    """Return what a trainer would tell its workers."""
    return Commission(**dict(config), inputs=tuple(stage.input_shape for stage in plan(config).stages))


def built(commission, stage, device="cpu"):
    """Return a worker that has built a stage, and what it says of that."""
    compute = Compute(device=torch.device(device), gauge=lambda: PLENTY)
    stages, configuration = commission.pipeline.stages, commission.canonical_json()
    return compute, only(compute.perform(Build(stage=Stage(stage), num_stages=stages, configuration=configuration)))


def is_untouched(compute):
    """Is nothing counted, kept, measured, reduced or unfinished?"""
    counted = only(compute.perform(Snapshot(round=Round(1), num_shards=2))).shards[0][0]
    kept = compute._built.kept
    is_kept = kept.take(KEY) != (None, None) or kept.graph_bytes or compute._reduced is not None
    return not (any(bytes(counted.frames[0])) or is_kept or compute.has_unfinished)


def finish(unfinished):
    """Do all that a backward has left."""
    for _ in unfinished.rest():
        pass


class Swarm:
    """All stages with some workers each; each stage's are on `devices` in turn."""

    def __init__(self, config, workers=1, devices=("cpu",)):
        self.config = config
        self.is_mixed = len(set(devices)) > 1
        self.num_stages = config.pipeline.stages
        self._leases = itertools.count(1)
        self.wire_bytes = 0
        self.stages = []
        for stage in range(self.num_stages):
            on = [torch.device(devices[index % len(devices)]) for index in range(workers)]
            self.stages.append([Compute(device=device, gauge=lambda: PLENTY) for device in on])
            build = Build(stage=Stage(stage), num_stages=self.num_stages, configuration=config.canonical_json())
            built = [only(worker.perform(build)) for worker in self.stages[-1]]
            assert all(isinstance(one, Built) for one in built), built
            assert len({one.parameter_digest for one in built}) == 1
        self.digests = {}

    def run(self, worker, kind, key, *, x=None, dy=None, accumulate=True, emit=True):
        lease = Lease(next(self._leases))
        task = Run(lease=lease, kind=kind, key=key, accumulate=accumulate, emit=emit, x=x, dy=dy)
        outcomes = perform(worker, task)
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

    def commit(self, step, *, snapshot=False, orders=None, **kept):
        """All-reduce and apply, stage by stage, with the global norm; `orders` are those of each stage's shares."""
        round_ = Round(step + 1)
        orders = orders or [range(len(workers)) for workers in self.stages]
        assembled = [self.reduce(workers, round_, order) for workers, order in zip(self.stages, orders, strict=True)]
        assert all(one.finite for one in assembled)
        scale, norm = clip_scale([one.square_norm for one in assembled], self.config.optimizer.grad_clip)
        lr = learning_rate(self.config.optimizer, step, self.config.run.steps)
        apply = Apply(step=Step(step), round=round_, scale=scale, lr=lr, apply=True, snapshot=snapshot, **kept)
        for stage, workers in enumerate(self.stages):
            applied = [only(worker.perform(apply)) for worker in workers]
            assert all(isinstance(one, Applied) and one.step == step for one in applied)
            (self.digests[stage],) = {one.parameter_digest for one in applied}
        return norm

    def reduce(self, workers, round_, order):
        snapshots = [only(w.perform(Snapshot(round=round_, num_shards=len(workers)))).shards for w in workers]
        sums = [
            only(
                worker.perform(
                    Sum(round=round_, shard=shard, contributions=tuple(snapshots[index][shard] for index in order))
                )
            ).chunks
            for shard, worker in enumerate(workers)
        ]
        assembled = [only(worker.perform(Assemble(round=round_, shards=tuple(sums)))) for worker in workers]
        assert len({one.digest for one in assembled}) == 1
        assert len({one.square_norm for one in assembled}) == 1 or self.is_mixed
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


def export(worker, layer, part=StatePart.PARAMETERS, **of):
    """Fetch a layer's file range by range."""
    buffer = b""
    while True:
        task = Export(part=part, layer=layer, offset_bytes=len(buffer), **of)
        outcome = only(worker.perform(task))
        if isinstance(outcome, Failed):
            return outcome
        assert outcome.offset_bytes == len(buffer)
        assert verify(outcome.load.parcel, outcome.load.frames)
        buffer += b"".join(outcome.load.frames)
        if len(buffer) == outcome.total_bytes:
            return buffer


def send(worker, layer, part, content, *, range_bytes=1000, **of):
    """Give a worker a layer's file in ranges; return what it has to say but that it has taken them."""
    said = []
    for offset in range(0, len(content), range_bytes):
        load = parcelled(content[offset : offset + range_bytes], ())
        task = Import(part=part, layer=layer, offset_bytes=offset, total_bytes=len(content), load=load, **of)
        said += worker.perform(task)
    return [outcome for outcome in said if not isinstance(outcome, Imported)]


def only(outcomes):
    (outcome,) = outcomes
    return outcome
