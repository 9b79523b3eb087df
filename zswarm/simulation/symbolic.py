"""A worker's compute thread with symbols for tensors: tasks one after the other, each takes its time.

It does what `stages.compute` does and as blindly: it adds to the accumulator whatever it is told to add,
and applies what it is told to apply. Whether that was right is what the invariants look at. What no
correct machine can ask for (a gradient that does not belong to the input, chunks of two rounds in one
sum) is a Violation here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import assert_never

from stages import tasks
from zswarm.ids import JobKind, JobStatus, Purpose, Round, Stage
from zswarm.messages import Key, Load, Parcel
from zswarm.simulation.symbols import (
    Activation,
    Contribution,
    Gradient,
    Part,
    Share,
    fingerprint,
    initial_version,
    is_finite,
    load,
    loss_sum,
    next_version,
    square_norm,
)
from zswarm.simulation.violation import require

PART_BYTES = 64
STATE_BYTES = 40
STATE_RANGE_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a worker is and how well it remembers."""

    forward_s: float = 0.05
    jitter: float = 0.2
    keep: float = 1.0
    """Probability that a forward keeps its input."""
    evict: float = 0.0
    """Probability that a kept input is gone when the backward comes."""
    unit_bytes: int = 1000
    """Size of every activation and gradient."""


class SymbolicCompute:
    """See the module. `start` is called when the task before has ended."""

    def __init__(self, pace: Pace, random: Random, *, seed: int) -> None:
        self.version = 0
        self.accumulator: Counter[Contribution] = Counter()
        self.kept: dict[Key, tuple[Activation, int]] = {}
        self.assembled: dict[Round, tuple[Contribution, ...]] = {}
        """The result of the newest round, if it has one: there is room for one."""
        self.applied: list[tuple[int, int]] = []
        self._pace = pace
        self._random = random
        self._seed = seed
        self._stage = Stage(0)
        self._num_stages = 0
        self._snapshots: dict[Round, Share] = {}

    def start(self, task: tasks.Task) -> list[tuple[float, tasks.Outcome]]:
        """Begin a task: its outcomes and how many seconds from now each comes, the last at the task's end."""
        took_s = self._duration_s(task)
        outcomes = self._carry_out(task, took_s)
        if len(outcomes) < 2:
            return [(took_s, outcome) for outcome in outcomes]
        return [(took_s * (0.5 + 0.5 * place / (len(outcomes) - 1)), o) for place, o in enumerate(outcomes)]

    def _duration_s(self, task: tasks.Task) -> float:
        pace = self._pace
        units = 0.1
        if isinstance(task, tasks.Run):
            units = {JobKind.FORWARD: 1.0, JobKind.BACKWARD: 2.0, JobKind.FUSED: 3.0, JobKind.EVALUATE: 1.0}[task.kind]
        elif isinstance(task, (tasks.Build, tasks.Apply)):
            units = 1.0
        return pace.forward_s * units * (1.0 + pace.jitter * self._random.expovariate(1.0))

    def _carry_out(self, task: tasks.Task, took_s: float) -> list[tasks.Outcome]:
        match task:
            case tasks.Build():
                return [self._build(task)]
            case tasks.Run():
                return self._run(task, took_s)
            case tasks.Snapshot():
                return [self._snapshot(task)]
            case tasks.Sum():
                return [self._sum(task)]
            case tasks.Assemble():
                return [self._assemble(task)]
            case tasks.Discard():
                self._snapshots.pop(task.round, None)
                self.assembled.pop(task.round, None)
                return []
            case tasks.Apply():
                return [self._apply(task)]
            case tasks.Export():
                return [self._export(task)]
            case _:
                assert_never(task)

    def _build(self, task: tasks.Build) -> tasks.Built:
        self._stage, self._num_stages = task.stage, task.num_stages
        self.version = initial_version(self._seed, task.stage)
        return tasks.Built(num_parameters=100, first_layer=task.stage, num_layers=1, parameter_digest=self.version)

    # -- jobs ----------------------------------------------------------------------------------------

    def _run(self, task: tasks.Run, took_s: float) -> list[tasks.Outcome]:
        if task.kind is JobKind.BACKWARD:
            return self._backward(task, took_s)
        assert task.x is not None, "only a backward may come without its input"
        x = self._input(task, task.x)
        path = (*x.path, self.version)
        if task.kind is JobKind.FORWARD:
            kept = x.purpose is Purpose.TRAIN and self._random.random() < self._pace.keep
            if kept:
                self.kept[task.key] = (x, self.version)
            y = load(x._replace(path=path), self._pace.unit_bytes)
            return [self._ran(task, took_s, y=y, kept=kept)]
        require(len(path) == self._num_stages, "I2", f"{task.kind.name} of {task.key} at stage {self._stage}")
        if task.kind is JobKind.EVALUATE:
            return [self._ran(task, took_s, with_loss=True)]
        return [*self._add(task, x, path, ()), self._ran(task, took_s, with_loss=True)]

    def _backward(self, task: tasks.Run, took_s: float) -> list[tasks.Outcome]:
        assert task.dy is not None, "a backward needs the gradient of its output"
        (dy,) = task.dy.frames
        kept = self.kept.pop(task.key, None)
        if kept is not None and self._random.random() < self._pace.evict:
            kept = None
        if kept is None:
            if task.x is None:
                return [self._ran(task, took_s, status=JobStatus.NEEDS_INPUT)]
            kept = (self._input(task, task.x), self.version)
        x, forward_version = kept
        path = (*x.path, forward_version)
        require(
            isinstance(dy, Gradient)
            and (dy.step, dy.microbatch) == (x.step, x.microbatch)
            and dy.path[: len(path)] == path
            and len(dy.way_back) == self._num_stages - 1 - self._stage,
            "I2",
            f"the gradient {dy} does not belong to the input {x} at stage {self._stage}, version {forward_version}",
        )
        return [*self._add(task, x, dy.path, dy.way_back), self._ran(task, took_s)]

    def _input(self, task: tasks.Run, payload: Load) -> Activation:
        (x,) = payload.frames
        _, step, purpose, microbatch, _ = task.key
        require(
            isinstance(x, Activation)
            and (x.purpose, x.step, x.microbatch) == (purpose, step, microbatch)
            and len(x.path) == self._stage,
            "I2",
            f"job {task.key} at stage {self._stage} came with {x}",
        )
        assert isinstance(x, Activation)
        return x

    def _add(
        self, task: tasks.Run, x: Activation, path: tuple[int, ...], way_back: tuple[int, ...]
    ) -> list[tasks.Outcome]:
        way_back = (*way_back, self.version)
        if task.accumulate:
            self.accumulator[Contribution(x.step, x.microbatch, path, way_back)] += 1
        if self._stage == 0:
            return []
        dx = Gradient(x.step, x.microbatch, path, way_back)
        return [tasks.Emitted(lease=task.lease, dx=load(dx, self._pace.unit_bytes))]

    def _ran(
        self,
        task: tasks.Run,
        took_s: float,
        *,
        status: JobStatus = JobStatus.DONE,
        y: Load | None = None,
        kept: bool = False,
        with_loss: bool = False,
    ) -> tasks.Ran:
        _, step, purpose, microbatch, _ = task.key
        return tasks.Ran(
            lease=task.lease,
            status=status,
            y=y,
            kept=kept,
            loss_sum=loss_sum(purpose, step, microbatch) if with_loss else 0.0,
            num_targets=1 if with_loss else 0,
            compute_s=took_s,
        )

    # -- rounds --------------------------------------------------------------------------------------

    def _num_chunks(self, shard: int, num_shards: int) -> int:
        return 1 + (shard + num_shards + self._stage) % 3

    def _parts(self, round_: Round, shard: int, num_shards: int, shares: tuple[Share, ...]) -> tuple[Load, ...]:
        num_chunks = self._num_chunks(shard, num_shards)
        return tuple(
            load(Part(round_, shard, num_shards, chunk, num_chunks, shares), PART_BYTES) for chunk in range(num_chunks)
        )

    def _snapshot(self, task: tasks.Snapshot) -> tasks.Snapshotted:
        contributions = tuple(sorted(self.accumulator.elements()))
        share = Share(contributions, fingerprint(contributions))
        self._snapshots[task.round] = share
        shards = tuple(self._parts(task.round, shard, task.num_shards, (share,)) for shard in range(task.num_shards))
        return tasks.Snapshotted(round=task.round, shards=shards)

    def _sum(self, task: tasks.Sum) -> tasks.Summed:
        num_shards = len(task.contributions)
        shares: list[Share] = []
        for chunks in task.contributions:
            shares += self._check_parts(task.round, task.shard, num_shards, chunks)
        require(
            len(shares) == num_shards,
            "I1",
            f"{num_shards} participants send {len(shares)} shares of shard {task.shard}",
        )
        return tasks.Summed(
            round=task.round, shard=task.shard, chunks=self._parts(task.round, task.shard, num_shards, tuple(shares))
        )

    def _assemble(self, task: tasks.Assemble) -> tasks.Assembled:
        num_shards = len(task.shards)
        sums = [self._check_parts(task.round, shard, num_shards, chunks) for shard, chunks in enumerate(task.shards)]
        require(
            all(shares == sums[0] for shares in sums), "I3", f"the shards of round {task.round} are of different sums"
        )
        contributions = tuple(sorted(c for share in sums[0] for c in share.contributions))
        self.assembled = {task.round: contributions}
        finite = is_finite(self._seed, self._stage, contributions)
        return tasks.Assembled(
            round=task.round,
            digest=fingerprint([share.digest for share in sums[0]]),
            finite=finite,
            square_norm=square_norm(self._stage, contributions) if finite else 0.0,
        )

    def _check_parts(self, round_: Round, shard: int, num_shards: int, chunks: tuple[Load, ...]) -> tuple[Share, ...]:
        """Return the shares that the chunks of one shard hold, after checking that they belong together."""
        parts = [chunk.frames[0] for chunk in chunks]
        expected = self._num_chunks(shard, num_shards)
        require(
            len(parts) == expected
            and all(
                isinstance(part, Part)
                and part[:5] == (round_, shard, num_shards, place, expected)
                and part.shares == parts[0].shares
                for place, part in enumerate(parts)
            ),
            "I3",
            f"shard {shard} of {num_shards} of round {round_} was put together from {parts}",
        )
        shares: tuple[Share, ...] = parts[0].shares
        return shares

    def _apply(self, task: tasks.Apply) -> tasks.Applied:
        contributions = self.assembled.get(task.round)
        require(contributions is not None, "I4", f"round {task.round} is applied and was never assembled")
        assert contributions is not None
        self.version = next_version(self.version, contributions, task.scale, task.lr, apply=task.apply)
        self.applied.append((task.step, self.version))
        self.accumulator.clear()
        self.kept.clear()
        self._snapshots.clear()
        self.assembled.clear()
        return tasks.Applied(step=task.step, parameter_digest=self.version)

    def _export(self, task: tasks.Export) -> tasks.Exported:
        content = (self.version.to_bytes(8, "little") * STATE_BYTES)[:STATE_BYTES]
        chunk = content[task.offset_bytes : task.offset_bytes + STATE_RANGE_BYTES]
        return tasks.Exported(
            part=task.part,
            layer=task.layer,
            offset_bytes=task.offset_bytes,
            total_bytes=len(content),
            load=Load(parcel=Parcel(tensors=(), size_bytes=len(chunk), crc=0), frames=(chunk,)),
        )
