"""Jobs and a round of the all-reduce with made-up numbers, before a worker is given real ones.

What is slow or fails the first time is so while nobody waits for it: kernels are loaded, libraries imported, memory is found to
be too little. And it is known about how long tasks take, also the first of their sort, so that one that does not
end is noticed soon. Nobody uses layers that have rehearsed for anything else: see `Compute`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from stages.passes import Passes
from stages.tasks import Assemble, Assembled, Build, Ran, Run, Snapshot, Snapshotted, Sum, Summed
from zswarm.compression import encode
from zswarm.config import BYTE_VALUES, Commission
from zswarm.ids import Attempt, Branch, JobKind, Lease, Microbatch, Purpose, Round, Step

KEY = (Branch(0), Step(0), Purpose.TRAIN, Microbatch(0), Attempt(0))
HELD_OUT = (Branch(0), Step(0), Purpose.EVALUATE, Microbatch(0), Attempt(0))
ROUND = Round(0)


def rehearse_jobs(passes: Passes, task: Build, config: Commission) -> float:
    """Do all jobs of one microbatch to train on and of one to evaluate with; returns the seconds that they took.

    Raises whatever they raise: a layer may refuse numbers that no layer made.
    """
    shape = (config.batch.microbatch, config.sequence_length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, BYTE_VALUES, shape, generator=generator, dtype=torch.uint8)
    # Zeros are the numbers that most layers take, of which some are an index or a share, and the label that every loss has.
    x = tokens if task.stage == 0 else torch.zeros(config.inputs[task.stage])
    given = encode([x, torch.zeros_like(tokens)], config.wire.codec)
    run = partial(Run, lease=Lease(0), key=KEY, accumulate=True, emit=True, x=given)
    evaluate = partial(Run, lease=Lease(0), key=HELD_OUT, accumulate=False, emit=False, x=given, dy=None)
    begun_s = time.perf_counter()
    if task.stage == task.num_stages - 1:
        _do(passes, run(kind=JobKind.FUSED, dy=None))
        _do(passes, evaluate(kind=JobKind.EVALUATE))
    else:
        y = _do(passes, run(kind=JobKind.FORWARD, dy=None)).y
        _do(passes, run(kind=JobKind.BACKWARD, dy=y))
        _do(passes, evaluate(kind=JobKind.FORWARD))
    return time.perf_counter() - begun_s


def rehearse_round(
    snapshot: Callable[[Snapshot], Snapshotted], add: Callable[[Sum], Summed], assemble: Callable[[Assemble], Assembled]
) -> float:
    """Reduce the gradient with itself; returns the seconds that it took."""
    begun_s = time.perf_counter()
    first, second = snapshot(Snapshot(round=ROUND, num_shards=2)).shards
    chunks = add(Sum(round=ROUND, shard=0, contributions=(first, first))).chunks
    assemble(Assemble(round=ROUND, shards=(chunks, second)))
    return time.perf_counter() - begun_s


def _do(passes: Passes, task: Run) -> Ran:
    """Do a job and what it leaves unfinished."""
    outcomes = list(passes.run(task))
    while passes.unfinished is not None:
        outcomes += passes.go_on()
    *_, ran = outcomes
    assert isinstance(ran, Ran)
    return ran
