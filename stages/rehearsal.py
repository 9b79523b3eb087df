"""A job and a round of the all-reduce with made-up numbers, before a worker is given real ones.

What is slow or fails the first time is so while nobody waits for it: kernels are loaded, libraries imported, memory is found to
be too little. And of each task, also of the first of its sort, it is known about how long it takes, so that one that
does not end is noticed soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from stages.partition import TOKEN_DTYPE, StagePlan
from stages.tasks import Assemble, Outcome, Ran, Reset, Run, Snapshot, Snapshotted, Sum, Summed, Task
from zswarm.compression import decode_untrusted, encode
from zswarm.config import RunConfig
from zswarm.ids import Attempt, Branch, JobKind, Lease, Microbatch, Purpose, Round, Step

KEY = (Branch(0), Step(0), Purpose.TRAIN, Microbatch(0), Attempt(0))
ROUND = Round(0)


def rehearse(
    perform: Callable[[Task], Iterator[Outcome]], stage: StagePlan, config: RunConfig, *, is_last: bool
) -> float:
    """Have every task done that leaves the parameters as they are, on one microbatch; returns the seconds that they took.

    Nothing is counted or kept afterwards. What the tasks raise is passed on: a layer may refuse numbers that no layer made.
    """
    codec = config.wire.codec
    labels = torch.zeros((config.batch.microbatch, config.sequence_length), dtype=TOKEN_DTYPE)
    x = encode([_made_up(stage.input_shape, stage.input_dtype), labels], codec)
    run = partial(Run, lease=Lease(0), key=KEY, accumulate=True, emit=True, x=x)
    begun_s = time.perf_counter()
    if is_last:
        _last(perform(run(kind=JobKind.FUSED, dy=None)))
    else:
        ran = _last(perform(run(kind=JobKind.FORWARD, dy=None)))
        assert isinstance(ran, Ran)
        assert ran.y is not None
        _last(perform(run(kind=JobKind.BACKWARD, dy=encode(decode_untrusted(ran.y)[:1], codec))))
    snapshotted = _last(perform(Snapshot(round=ROUND, num_shards=1)))
    assert isinstance(snapshotted, Snapshotted)
    summed = _last(perform(Sum(round=ROUND, shard=0, contributions=snapshotted.shards)))
    assert isinstance(summed, Summed)
    _last(perform(Assemble(round=ROUND, shards=(summed.chunks,))))
    _last(perform(Reset()))
    return time.perf_counter() - begun_s


def buffers_of(layers: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Return each buffer with a copy: what a forward has changed can be put back."""
    return [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]


def _last(outcomes: Iterator[Outcome]) -> Outcome:
    *_, last = outcomes
    return last


def _made_up(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return numbers as they come out of a normalised layer; tokens are all the same."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
