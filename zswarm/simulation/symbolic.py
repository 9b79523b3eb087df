"""A worker's compute thread with symbols for tensors: tasks one after the other, each takes its time. What is left of a
job whose dx is out is done in parts, and counts with the last of them.

It does what `stages.compute` does and as blindly: it adds to the accumulator whatever it is told to add,
and applies and adopts what it is told to. Whether that was right is what the invariants look at. What no
correct machine can ask for (a gradient that does not belong to the input, chunks of two rounds in one
sum, a state that is of two versions) is a Violation here.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass
from random import Random
from typing import assert_never

from stages import tasks
from zswarm.ids import JobKind, JobStatus, Purpose, Stage, StatePart, Step
from zswarm.ledger import members
from zswarm.messages import Key, Load, Parcel
from zswarm.simulation.poison import Poisons
from zswarm.simulation.rounds import Rounds
from zswarm.simulation.states import STATE_BYTES, STATE_RANGE_BYTES, Imports, content_of, range_of, step_of
from zswarm.simulation.symbols import Activation, Contribution, Gradient, initial_version, load, loss_sum, next_version
from zswarm.simulation.violation import require


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


@dataclass(slots=True)
class Unfinished:
    """A backward whose dx is out, and what it does when its last part is done."""

    left_s: float
    num_parts: int
    contribution: Contribution | None
    outcome: tasks.Outcome | None = None


Timed = tuple[float, tasks.Outcome]
"""In how many seconds what comes."""
MOST_PARTS = 3
UNITS = {JobKind.FORWARD: 1.0, JobKind.BACKWARD: 2.0, JobKind.FUSED: 3.0, JobKind.EVALUATE: 1.0}
"""How long a job takes, in forwards."""


class SymbolicCompute:
    """See the module. `start` is called when the task before has ended.

    The configuration that Build brings is a JSON list, the number of layers of each stage.
    """

    def __init__(
        self, pace: Pace, random: Random, *, seed: int, name: str = "worker", poisons: Poisons | None = None
    ) -> None:
        self.version = 0
        self.accumulator: Counter[Contribution] = Counter()
        self.kept: dict[Key, tuple[Activation, int]] = {}
        self.applied: list[tuple[int, int, int]] = []
        """Each step that was applied since the parameters were made or adopted, with the version before and after."""
        self.slowdown = 1.0
        self._pace = pace
        self._random = random
        self._seed = seed
        self._name = name
        self._poisons = poisons or Poisons(())
        self._stage = Stage(0)
        self._num_stages = 0
        self._layers = range(0)
        self.rounds = Rounds(Stage(0), seed=seed)
        self.unfinished: deque[Unfinished] = deque()
        """Jobs whose dx is out."""
        self.copy: int | None = None
        """The version that Apply has kept for a checkpoint."""
        self._retained: dict[tuple[int, Step], int] = {}
        """The version that layers were of at the beginning of a step."""
        self._gradients: dict[Step, tuple[int, int]] = {}
        """From which version to which a step has led."""
        self._imports = Imports()
        self.shares: dict[int, tuple[Contribution, ...]] = {}
        """What another worker has counted, once all of it is here, by what is said of it."""
        self._given: tuple[Contribution, ...] = ()
        """The copy of what has been counted that was begun last."""
        self._share_bytes = 0
        self._share_seen: tuple[Contribution, ...] = ()

    def start(self, task: tasks.Task) -> tuple[list[Timed], float]:
        """Begin a task: its outcomes and how many seconds from now each comes, and when the thread is free."""
        took_s = self._duration_s(task)
        outcomes = self._carry_out(task, took_s)
        if len(outcomes) == 1:
            return [(took_s, outcomes[0])], took_s
        if not outcomes:
            return [], 0.0
        emitted, self.unfinished[-1].outcome = outcomes
        return [(0.5 * took_s, emitted)], 0.5 * took_s

    def go_on(self) -> tuple[list[Timed], float]:
        """Do a part of the oldest job that is unfinished; its outcome comes with the last one."""
        job = self.unfinished[0]
        took_s, job.num_parts = job.left_s / job.num_parts, job.num_parts - 1
        job.left_s -= took_s
        if job.num_parts:
            return [], took_s
        self.unfinished.popleft()
        assert job.outcome is not None
        if job.contribution is not None:
            self.accumulator[job.contribution] += 1
        return [(took_s, job.outcome)], took_s

    def _duration_s(self, task: tasks.Task) -> float:
        pace = self._pace
        units = 0.1
        if isinstance(task, tasks.Run):
            units = UNITS[task.kind]
        elif isinstance(task, (tasks.Build, tasks.Apply, tasks.Adopt)):
            units = 1.0
        return pace.forward_s * units * self.slowdown * (1.0 + pace.jitter * self._random.expovariate(1.0))

    def _carry_out(self, task: tasks.Task, took_s: float) -> list[tasks.Outcome]:
        match task:
            case tasks.Run():
                return self._run(task, took_s)
            case tasks.Build():
                return [self._build(task, took_s)]
            case tasks.Snapshot():
                return [self.rounds.snapshot(task, self.accumulator.elements())]
            case tasks.Sum():
                return [self.rounds.sum(task)]
            case tasks.Assemble():
                return [self.rounds.assemble(task)]
            case tasks.Discard():
                self.rounds.discard(task.round)
                return []
            case tasks.Reset():
                self._clear()
                return [tasks.WasReset()]
            case tasks.Apply():
                return [self._apply(task)]
            case tasks.Export():
                return [self._export(task)]
            case tasks.Import():
                if task.part is StatePart.SHARE:
                    self._inherit(task)
                else:
                    self._imports.put(task, self.version)
                return [tasks.Imported(part=task.part)]
            case tasks.TakeShare():
                require(task.ledger in self.shares, "I1", f"{self._name} counts a share that is not here")
                self.accumulator.update(self.shares.pop(task.ledger))
                return [tasks.ShareTaken()]
            case tasks.Adopt():
                return [self._adopt()]
            case _:
                assert_never(task)

    # -- jobs ----------------------------------------------------------------------------------------

    def _run(self, task: tasks.Run, took_s: float) -> list[tasks.Outcome]:
        if not self._poisons.raises(self._name, self._stage, task.key):
            return self._compute(task, took_s)
        failed = tasks.Failed(layer=f"layer {self._layers[0]}", text="it is poisoned", lease=task.lease)
        if self._random.random() < 0.5:
            return [*self._compute(task, took_s)[:-1], failed]
        if task.accumulate:
            # Raised in the middle: what has been added until then stays in the accumulator.
            _, step, _, microbatch, _ = task.key
            self.accumulator[Contribution(step, microbatch, (), ())] += 1
        return [failed]

    def _compute(self, task: tasks.Run, took_s: float) -> list[tasks.Outcome]:
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
        return [*self._add(task, x, path, (), took_s), self._ran(task, took_s, with_loss=True)]

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
        return [*self._add(task, x, dy.path, dy.way_back, took_s), self._ran(task, took_s)]

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
        self, task: tasks.Run, x: Activation, path: tuple[int, ...], way_back: tuple[int, ...], took_s: float
    ) -> list[tasks.Outcome]:
        way_back = (*way_back, self.version)
        contribution = Contribution(x.step, x.microbatch, path, way_back) if task.accumulate else None
        if self._stage == 0 or not task.emit:
            if contribution is not None:
                self.accumulator[contribution] += 1
            return []
        num_parts = 1 + int(self._random.random() * MOST_PARTS)
        self.unfinished.append(Unfinished(0.5 * took_s, num_parts, contribution))
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

    # -- parameters ----------------------------------------------------------------------------------

    def _clear(self) -> None:
        self.accumulator.clear()
        self.unfinished.clear()
        self.kept.clear()
        self.rounds.clear()
        self.shares.clear()

    def _build(self, task: tasks.Build, took_s: float) -> tasks.Built:
        split = json.loads(task.configuration)
        first = sum(split[: task.stage])
        self._stage, self._num_stages = task.stage, task.num_stages
        self._layers = range(first, first + split[task.stage])
        self.rounds = Rounds(task.stage, seed=self._seed)
        self._clear()
        self.copy, self._imports = None, Imports()
        self._retained, self._gradients = {}, {}
        self.version = initial_version(self._seed, task.stage)
        self.applied = []
        return tasks.Built(
            num_parameters=100,
            parameter_digest=self.version,
            job_s=took_s * (UNITS[JobKind.FORWARD] + UNITS[JobKind.BACKWARD]),
            round_s=0.3 * took_s,
        )

    def _apply(self, task: tasks.Apply) -> tasks.Applied:
        contributions = self.rounds.assembled.get(task.round)
        require(contributions is not None, "I4", f"round {task.round} is applied and was never assembled")
        assert contributions is not None
        before = self.version
        self.version = next_version(before, contributions, task.scale, task.lr, apply=task.apply)
        self.applied.append((task.step, before, self.version))
        self._retained = {key: before if key[1] == task.step else self._retained[key] for key in task.retained}
        steps = {**self._gradients, task.step: (before, self.version)}
        self._gradients = {step: steps[step] for step in task.gradients}
        self._clear()
        if task.snapshot:
            self.copy = self.version
        return tasks.Applied(step=task.step, parameter_digest=self.version)

    def _adopt(self) -> tasks.Adopted:
        self.version = self._imports.adopt(self._layers, self.version)
        self.applied = []
        self._clear()
        return tasks.Adopted(parameter_digest=self.version)

    def _inherit(self, task: tasks.Import) -> None:
        """Take a range of another worker's share; that says of each range what all of it is."""
        if task.offset_bytes == 0:
            self._share_bytes = 0
            self.shares = {ledger: share for ledger, share in self.shares.items() if ledger == task.kept}
        require(task.offset_bytes == self._share_bytes, "I1", f"{self._name}: a share has a gap at {task.offset_bytes}")
        self._share_bytes += task.load.parcel.size_bytes
        ((contributions, _),) = task.load.frames
        before, self._share_seen = self._share_seen, contributions
        require(task.offset_bytes == 0 or before == contributions, "I1", f"{self._name}: a share is a mixture")
        said = sorted(members(task.ledger))
        text = f"{self._name}: a share of {contributions} is said to be of {said}"
        require(sorted(each.microbatch for each in contributions) == said, "I1", text)
        if self._share_bytes == task.total_bytes:
            self.shares[task.ledger] = contributions

    def _export(self, task: tasks.Export) -> tasks.Exported:
        if task.part is StatePart.SHARE:
            if task.offset_bytes == 0:
                self._given = tuple(sorted(self.accumulator.elements()))
            share = (self._given, task.offset_bytes)
            size_bytes = min(STATE_RANGE_BYTES, STATE_BYTES - task.offset_bytes)
            return tasks.Exported(
                part=task.part,
                layer=task.layer,
                offset_bytes=task.offset_bytes,
                total_bytes=STATE_BYTES,
                load=Load(parcel=Parcel(tensors=(), size_bytes=size_bytes, crc=0), frames=(share,)),
            )
        content = self._content(task)
        return tasks.Exported(
            part=task.part,
            layer=task.layer,
            offset_bytes=task.offset_bytes,
            total_bytes=STATE_BYTES,
            load=range_of(content, task.offset_bytes),
        )

    def _content(self, task: tasks.Export) -> bytes:
        require(task.layer in self._layers, "I3", f"{self._name} exports layer {task.layer}, not one of its own")
        version = self.version
        if task.from_snapshot:
            require(self.copy is not None, "I3", f"{self._name} exports a copy that it has not kept")
            assert self.copy is not None
            version = self.copy
        elif task.step is not None:
            is_step = task.part is StatePart.GRADIENT
            is_kept = task.step in self._gradients if is_step else (task.layer, task.step) in self._retained
            require(is_kept, "I3", f"{self._name} exports {task.part.name} of step {task.step}, which it has not kept")
            if is_step:
                return step_of(*self._gradients[task.step], task.layer)
            version = self._retained[task.layer, task.step]
        return content_of(version, task.part, task.layer)
