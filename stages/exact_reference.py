"""The same run in one process with `accumulation = "exact"`: the bits that a swarm ends with, whatever died there.

One `Compute` per stage, called one after the other:

    samples --encoded--> FORWARD --encoded--> ... --encoded--> FUSED --encoded--> ... BACKWARD
    each microbatch in turn, then Snapshot, Assemble and Apply at each stage with the norm of all

The model is cut as in a swarm, what passes between stages goes through the codec, and the products are those of the
engine, not of a plain loop as in stages/reference.py: equal bits need equal arithmetic. What is left out is what
must not make a difference: brokers, queues, sockets, other workers, all-reduce, recovery.

The bits are those of a swarm on equal processors whose workers use as many threads for one operation as this process
does, and on a GPU where its kernels are deterministic. A layer with a state that its forward changes (running
statistics of one's own) has another state at each worker of a swarm, and no exact reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from stages.compute import Compute
from stages.partition import plan
from stages.reference import ReferenceResult, ReferenceStep, Samples
from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Emitted,
    Export,
    Exported,
    Failed,
    Outcome,
    Ran,
    Run,
    Snapshot,
    Snapshotted,
    Task,
)
from zswarm.clipping import clip_scale
from zswarm.compression import CPU, encode
from zswarm.config import RunConfig
from zswarm.errors import RunFailed
from zswarm.ids import Attempt, Branch, JobKind, Lease, Microbatch, Purpose, Round, Stage, StatePart, Step
from zswarm.messages import Key, Load
from zswarm.schedule import learning_rate

Found = TypeVar("Found", bound=Outcome)


def exact_reference(
    config: RunConfig, source: Samples, on_step: Callable[[ReferenceStep], None], device: torch.device = CPU
) -> ReferenceResult:
    """Train on a device; `on_step` is called after each step.

    Raises:
        UserError: the model does not exist or does not chain.
        RunFailed: a layer raised.

    """
    counts = plan(config).layers_per_stage
    stages = _Stages(config, device)
    before = _held_out_loss(config, source, stages)
    losses = []
    for number in range(config.run.steps):
        step = Step(number)
        sums = [
            stages.train(step, Microbatch(index), _pack(source.samples(step, index)))
            for index in range(config.num_microbatches)
        ]
        losses.append(math.fsum(sums) / (config.batch.global_batch * config.sequence_length))
        lr = learning_rate(config.optimizer, step, config.run.steps)
        norm = stages.apply(step, lr=lr)
        on_step(ReferenceStep(step=step, loss=losses[-1], gradient_norm=norm, lr=lr))
    return ReferenceResult(
        loss=losses,
        held_out_loss_before=before,
        held_out_loss=_held_out_loss(config, source, stages),
        state=stages.state(counts),
    )


class _Stages:
    """All stages of a run, called one after the other."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._config = config
        self._computes = [Compute(device=device) for _ in range(config.pipeline.stages)]
        self._last = self._computes[-1]
        for index, compute in enumerate(self._computes):
            build = Build(stage=Stage(index), num_stages=len(self._computes), configuration=config.canonical_json())
            _perform(compute, build, Built)

    def train(self, step: Step, microbatch: Microbatch, x: Load) -> float:
        """Send a microbatch forward and backward; return its loss sum."""
        key = _key(step, Purpose.TRAIN, microbatch)
        for compute in self._computes[:-1]:
            x = _output(_run(compute, JobKind.FORWARD, key, x=x)[0].y)
        ran, dy = _run(self._last, JobKind.FUSED, key, x=x)
        for compute in reversed(self._computes[:-1]):
            _, dy = _run(compute, JobKind.BACKWARD, key, dy=_output(dy))
        return ran.loss_sum

    def evaluate(self, microbatch: Microbatch, x: Load) -> tuple[float, int]:
        """Send a microbatch forward; return its loss sum and its number of targets."""
        key = _key(Step(0), Purpose.EVALUATE, microbatch)
        for compute in self._computes[:-1]:
            x = _output(_run(compute, JobKind.FORWARD, key, x=x)[0].y)
        ran, _ = _run(self._last, JobKind.EVALUATE, key, x=x)
        return ran.loss_sum, ran.num_targets

    def apply(self, step: Step, *, lr: float) -> float:
        """Take the optimizer step, at all stages or at none; return the gradient's norm, NaN if it is not finite."""
        round_ = Round(step + 1)
        reduced = []
        for compute in self._computes:
            own = _perform(compute, Snapshot(round=round_, num_shards=1), Snapshotted)
            reduced.append(_perform(compute, Assemble(round=round_, shards=own.shards), Assembled))
        is_finite = all(one.finite for one in reduced)
        scale, norm = 1.0, math.nan
        if is_finite:
            scale, norm = clip_scale([one.square_norm for one in reduced], self._config.optimizer.grad_clip)
        task = Apply(step=step, round=round_, scale=scale, lr=lr, apply=is_finite, snapshot=False)
        for compute in self._computes:
            _perform(compute, task, Applied)
        return norm

    def state(self, counts: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the state of all layers, of which each stage has as many as `counts` says."""
        found: dict[str, Tensor] = {}
        layer = 0
        for compute, count in zip(self._computes, counts, strict=True):
            for _ in range(count):
                tensors = load(_file(compute, layer))
                found |= {f"layers.{layer}.{name}": tensor for name, tensor in tensors.items()}
                layer += 1
        return found


def _held_out_loss(config: RunConfig, source: Samples, stages: _Stages) -> float:
    results = [
        stages.evaluate(Microbatch(index), _pack(source.held_out(index)))
        for index in range(config.data.held_out_microbatches)
    ]
    return math.fsum(loss for loss, _ in results) / sum(num_targets for _, num_targets in results)


def _pack(samples: tuple[NDArray[Any], NDArray[Any]]) -> Load:
    return encode([torch.from_numpy(array) for array in samples], "none")


def _key(step: Step, purpose: Purpose, microbatch: Microbatch) -> Key:
    return (Branch(0), step, purpose, microbatch, Attempt(0))


def _run(
    compute: Compute, kind: JobKind, key: Key, *, x: Load | None = None, dy: Load | None = None
) -> tuple[Ran, Load | None]:
    """Do a job; return how it ended and dx."""
    task = Run(lease=Lease(0), kind=kind, key=key, accumulate=True, emit=True, x=x, dy=dy)
    dx, ran = None, None
    for outcome in compute.perform(task):
        if isinstance(outcome, Emitted):
            dx = outcome.dx
        else:
            ran = _checked(outcome, Ran)
    assert ran is not None
    return ran, dx


def _perform(compute: Compute, task: Task, kind: type[Found]) -> Found:
    (outcome,) = compute.perform(task)
    return _checked(outcome, kind)


def _checked(outcome: Outcome, kind: type[Found]) -> Found:
    if isinstance(outcome, Failed):
        raise RunFailed(f"{outcome.layer or 'the model'} raised {outcome.text}")
    assert isinstance(outcome, kind), outcome
    return outcome


def _output(load: Load | None) -> Load:
    assert load is not None
    return load


def _file(compute: Compute, layer: int) -> bytes:
    """Fetch a layer's parameters range by range."""
    content = b""
    total_bytes = 1
    while len(content) < total_bytes:
        task = Export(part=StatePart.PARAMETERS, layer=layer, offset_bytes=len(content), from_snapshot=False)
        exported = _perform(compute, task, Exported)
        total_bytes = exported.total_bytes
        content += b"".join(exported.load.frames)
    return content
