"""Jobs of one stage, payload in and payload out.

    FORWARD    x [activation, labels] -> y [activation, labels]      keeps what Kept has room for
    BACKWARD   dy [gradient], x where it is not kept -> dx           runs forward again where no graph is kept
    FUSED      x -> dx, loss                                         the last stage of a training microbatch
    EVALUATE   x -> loss                                             the last stage of an evaluation

What rides along with the activation goes on unchanged. Checksums have been looked at on arrival. dx comes only where
the task says that somebody wants it, the gradient is counted only where it says so.

Once dx is out nobody waits for the rest of a backward, the gradients of the linear layers' weights. It is *unfinished*:
`go_on` does a part of it, and jobs that somebody waits for may come in between, as in zero-bubble schedules. It is
done at once where memory is short, and where each microbatch's gradient has to be counted by itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.accumulation import Accumulator
from stages.engine import Graph, Place, StageEngine
from stages.kept import Kept
from stages.tasks import Emitted, Ran, Run
from zswarm.compression import decode_untrusted, encode
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.ids import JobKind, JobStatus, Lease, Purpose
from zswarm.messages import Load


@dataclass(slots=True, kw_only=True)
class _Unfinished:
    """A backward whose dx is out."""

    task: Run
    rest: Iterator[None]
    spent_s: float
    """On this job until now."""
    found: dict[str, Any]
    """What Ran will say of it."""
    may_wait: bool
    """Its worker knows that dx is out, and its gradient need not be counted by itself."""


class Passes:
    """See the module. `codec` encodes what leaves; `accumulator` is told of each gradient that is to be counted."""

    def __init__(self, engine: StageEngine, kept: Kept, *, accumulator: Accumulator, codec: str) -> None:
        self._engine = engine
        self._kept = kept
        self._accumulator = accumulator
        self._codec = codec
        self._unfinished: deque[_Unfinished] = deque()

    @property
    def unfinished(self) -> Lease | None:
        """The lease of the job that `go_on` would go on with; None if there is nothing to do."""
        return self._unfinished[0].task.lease if self._unfinished else None

    @property
    def is_urgent(self) -> bool:
        """Must what is unfinished be done before anything else?"""
        return bool(self._unfinished) and not (self._unfinished[-1].may_wait and self._kept.has_room())

    def run(self, task: Run) -> Iterator[Emitted | Ran]:
        """Do a job, but for what it leaves unfinished.

        Raises:
            LayerFailed: a layer or the loss raised.
            LocalProtocolError: the task lacks a payload that its kind needs.
            RemoteProtocolError: a payload is not what the job needs.

        """
        begun_s = time.perf_counter()
        match task.kind:
            case JobKind.FORWARD:
                yield self._forward(task, begun_s)
            case JobKind.BACKWARD:
                yield from self._backward(task, begun_s)
            case JobKind.FUSED:
                yield from self._fused(task, begun_s)
            case JobKind.EVALUATE:
                yield self._evaluate(task, begun_s)

    def _forward(self, task: Run, begun_s: float) -> Ran:
        x, *riders = self._decode_input(task.x)
        graph = None
        is_training = task.key[2] is Purpose.TRAIN
        if is_training and self._kept.has_room():
            graph = self._forward_graph(x, _place(task))
            y = graph.y
        else:
            y = self._engine.forward(x, _place(task), training=is_training)
        load = encode([y, *riders], self._codec)
        kept = is_training and task.x is not None and self._kept.put(task.key, task.x, graph)
        return _ran(task, time.perf_counter() - begun_s, y=load, kept=kept)

    def _backward(self, task: Run, begun_s: float) -> Iterator[Emitted | Ran]:
        if task.dy is None:
            raise LocalProtocolError("a backward without the gradient of its output")
        dy = decode_untrusted(task.dy, self._engine.device)[0]
        graph, kept_x = self._kept.take(task.key)
        if graph is None:
            x = task.x or kept_x
            if x is None:
                yield _ran(task, time.perf_counter() - begun_s, status=JobStatus.NEEDS_INPUT)
                return
            graph = self._forward_graph(self._decode_input(x)[0], _place(task))
        if dy.shape != graph.y.shape or dy.dtype != graph.y.dtype:
            raise RemoteProtocolError(f"a gradient {list(dy.shape)} for an output {list(graph.y.shape)}")
        dx = self._engine.backward(graph, dy, accumulate=task.accumulate, wants_dx=task.emit)
        del graph
        yield from self._emit(task, begun_s, dx)

    def _fused(self, task: Run, begun_s: float) -> Iterator[Emitted | Ran]:
        x, labels = self._decode_labelled(task.x)
        graph = self._forward_graph(x, _place(task))
        loss_sum, dx = self._engine.backward_loss(graph, labels, accumulate=task.accumulate, wants_dx=task.emit)
        del graph
        yield from self._emit(task, begun_s, dx, loss_sum=loss_sum, num_targets=labels.numel())

    def _evaluate(self, task: Run, begun_s: float) -> Ran:
        x, labels = self._decode_labelled(task.x)
        loss_sum = self._engine.evaluate(x, labels, _place(task))
        return _ran(task, time.perf_counter() - begun_s, loss_sum=loss_sum, num_targets=labels.numel())

    def _emit(self, task: Run, begun_s: float, dx: Tensor | None, **found: Any) -> Iterator[Emitted | Ran]:
        """Hand out dx first: the stage before waits for it, nobody waits for the weights' gradients."""
        rest = self._engine.rest()
        emitted = Emitted(lease=task.lease, dx=encode([dx], self._codec)) if dx is not None else None
        spent_s = time.perf_counter() - begun_s
        may_wait = emitted is not None and not self._accumulator.is_exclusive
        self._unfinished.append(_Unfinished(task=task, rest=rest, spent_s=spent_s, found=found, may_wait=may_wait))
        if emitted is not None:
            yield emitted

    def go_on(self) -> Iterator[Ran]:
        """Do a part of the oldest job that is unfinished; it ends with its last part."""
        job, begun_s = self._unfinished[0], time.perf_counter()
        try:
            is_complete = next(job.rest, self) is self
            if is_complete and job.task.accumulate:
                self._accumulator.take()
        except Exception:
            self._unfinished.popleft()
            raise
        job.spent_s += time.perf_counter() - begun_s
        if is_complete:
            self._unfinished.popleft()
            yield _ran(job.task, job.spent_s, **job.found)

    def clear(self) -> None:
        """Give up what is unfinished."""
        self._unfinished.clear()

    def _forward_graph(self, x: Tensor, place: Place) -> Graph:
        if self._kept.graph_bytes:
            return self._engine.forward_graph(x, place)
        with _measured(self._engine.parameters.values) as sizes:
            graph = self._engine.forward_graph(x, place)
        self._kept.graph_bytes = max(1, sum(sizes.values()))
        return graph

    def _decode_input(self, load: Load | None) -> list[Tensor]:
        if load is None:
            raise LocalProtocolError("a job without the stage's input")
        tensors = decode_untrusted(load, self._engine.device)
        if not tensors:
            raise RemoteProtocolError("a stage input without a tensor")
        return tensors

    def _decode_labelled(self, load: Load | None) -> tuple[Tensor, Tensor]:
        tensors = self._decode_input(load)
        if len(tensors) < 2 or tensors[1].is_floating_point():
            raise RemoteProtocolError("the last stage's input without labels")
        return tensors[0], tensors[1]


def _place(task: Run) -> Place:
    return Place(step=task.key[1], microbatch=task.key[3])


def _ran(task: Run, compute_s: float, **found: Any) -> Ran:
    """Say that a job has ended; `found` is what differs from nothing."""
    nothing = {"status": JobStatus.DONE, "y": None, "kept": False, "loss_sum": 0.0, "num_targets": 0}
    return Ran(lease=task.lease, compute_s=compute_s, **nothing | found)


@contextmanager
def _measured(parameters: Tensor) -> Iterator[dict[int, int]]:
    """Collect address and size of the memory that the graph made within holds on to."""
    sizes: dict[int, int] = {}
    known = parameters.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != known:
            sizes[storage.data_ptr()] = storage.nbytes()
        # Detached, since an output that its own node holds on to would never be freed without a backward.
        return tensor.detach(), tensor._version  # noqa: SLF001 - autograd leaves the check to whoever has hooks

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpacked):
        yield sizes


def _unpacked(packed: tuple[Tensor, int]) -> Tensor:
    tensor, version = packed
    if tensor._version != version:  # noqa: SLF001
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{list(tensor.shape)}"
        )
    return tensor
