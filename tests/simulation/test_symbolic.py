"""The compute thread of symbols: as blind as the real one, and strict about what no correct machine asks for."""

from __future__ import annotations

from random import Random

import pytest

from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Discard,
    Emitted,
    Export,
    Outcome,
    Ran,
    Run,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    Task,
)
from zswarm.ids import Attempt, Branch, JobKind, JobStatus, Lease, Microbatch, Purpose, Round, Stage, StatePart, Step
from zswarm.messages import Key, Load
from zswarm.simulation.symbolic import Pace, SymbolicCompute
from zswarm.simulation.symbols import Activation, Gradient, load, next_version
from zswarm.simulation.violation import Violation

NUM_STAGES = 3
SEED = 1


def key(microbatch: int, step: int = 0) -> Key:
    return (Branch(0), Step(step), Purpose.TRAIN, Microbatch(microbatch), Attempt(0))


def made(stage: int, pace: Pace | None = None) -> SymbolicCompute:
    compute = SymbolicCompute(pace or Pace(), Random(0), seed=SEED)
    compute.start(Build(stage=Stage(stage), num_stages=NUM_STAGES, configuration=b"{}"))
    return compute


def done(compute: SymbolicCompute, task: Task) -> list[Outcome]:
    outcomes = compute.start(task)
    times_s = [after_s for after_s, _ in outcomes]
    assert times_s == sorted(times_s)
    return [outcome for _, outcome in outcomes]


def job(kind: JobKind, microbatch: int, x: Load | None = None, dy: Load | None = None, *, counts: bool = True) -> Run:
    return Run(lease=Lease(1), kind=kind, key=key(microbatch), accumulate=counts, x=x, dy=dy)


def tokens(microbatch: int, *path: int) -> Load:
    return load(Activation(Purpose.TRAIN, Step(0), Microbatch(microbatch), path), 10)


def there_and_back(stages: list[SymbolicCompute], microbatch: int, *, counts: bool = True) -> None:
    """Send a microbatch through all stages."""
    x: Load | None = tokens(microbatch)
    for compute in stages[:-1]:
        (ran,) = done(compute, job(JobKind.FORWARD, microbatch, x))
        assert isinstance(ran, Ran)
        x = ran.y
    dy: Load | None = None
    for compute in reversed(stages):
        kind = JobKind.FUSED if dy is None else JobKind.BACKWARD
        emitted, *_ = done(compute, job(kind, microbatch, x if dy is None else None, dy, counts=counts))
        dy = emitted.dx if isinstance(emitted, Emitted) else None


@pytest.fixture
def pipeline() -> list[SymbolicCompute]:
    return [made(stage) for stage in range(NUM_STAGES)]


def test_a_contribution_knows_the_parameters_of_its_whole_way(pipeline: list[SymbolicCompute]) -> None:
    there_and_back(pipeline, 5)
    versions = tuple(compute.version for compute in pipeline)
    for stage, compute in enumerate(pipeline):
        ((contribution, count),) = compute.accumulator.items()
        assert count == 1
        assert (contribution.microbatch, contribution.path) == (5, versions)
        assert contribution.way_back == tuple(reversed(versions[stage:]))


def test_it_counts_whatever_it_is_told_to_count(pipeline: list[SymbolicCompute]) -> None:
    """Exactly once is the machines' affair: the thread adds a duplicate, and adds nothing where not told to."""
    there_and_back(pipeline, 5)
    there_and_back(pipeline, 5)
    there_and_back(pipeline, 6, counts=False)
    assert [list(compute.accumulator.values()) for compute in pipeline] == [[2]] * NUM_STAGES


def test_a_backward_without_input_needs_it_once_it_is_forgotten() -> None:
    compute = made(1, Pace(evict=1.0))
    (ran,) = done(compute, job(JobKind.FORWARD, 2, tokens(2, 7)))
    assert isinstance(ran, Ran)
    assert ran.kept
    dy = load(Gradient(Step(0), 2, (7, compute.version, 9), (9,)), 10)
    (ran,) = done(compute, job(JobKind.BACKWARD, 2, None, dy))
    assert isinstance(ran, Ran)
    assert ran.status is JobStatus.NEEDS_INPUT
    assert not compute.accumulator
    emitted, ran = done(compute, job(JobKind.BACKWARD, 2, tokens(2, 7), dy))
    assert isinstance(emitted, Emitted)
    assert compute.accumulator.total() == 1


@pytest.mark.parametrize(
    "gradient",
    [
        Gradient(Step(0), 3, (7, 0, 9), (9,)),
        Gradient(Step(1), 2, (7, 0, 9), (9,)),
        Gradient(Step(0), 2, (7, 8, 9), (9,)),
        Gradient(Step(0), 2, (7, 0, 9), ()),
        "no gradient",
    ],
    ids=["microbatch", "step", "path", "way back", "kind"],
)
def test_a_gradient_must_belong_to_its_input(gradient: object) -> None:
    """A dy of another microbatch, step, way there or way back is what a mixed-up queue would send."""
    compute = made(1)
    if isinstance(gradient, Gradient):
        gradient = gradient._replace(path=tuple(v or compute.version for v in gradient.path))
    with pytest.raises(Violation, match="does not belong"):
        compute.start(job(JobKind.BACKWARD, 2, tokens(2, 7), load(gradient, 10)))


@pytest.mark.parametrize("x", [tokens(3, 7), tokens(2), tokens(2, 7, 8)], ids=["microbatch", "too early", "too late"])
def test_an_input_must_be_the_jobs(x: Load) -> None:
    with pytest.raises(Violation, match="came with"):
        made(1).start(job(JobKind.FORWARD, 2, x))


def reduced(computes: list[SymbolicCompute], round_: int) -> list[Assembled]:
    """All-reduce between the replicas of one stage."""
    number, count = Round(round_), len(computes)
    shares = []
    for compute in computes:
        (snapshotted,) = done(compute, Snapshot(round=number, num_shards=count))
        assert isinstance(snapshotted, Snapshotted)
        shares.append(snapshotted.shards)
    sums = []
    for shard, compute in enumerate(computes):
        contributions = tuple(share[shard] for share in shares)
        (summed,) = done(compute, Sum(round=number, shard=shard, contributions=contributions))
        assert isinstance(summed, Summed)
        sums.append(summed.chunks)
    results = [done(compute, Assemble(round=number, shards=tuple(sums)))[0] for compute in computes]
    assert all(isinstance(result, Assembled) for result in results)
    return [result for result in results if isinstance(result, Assembled)]


def fused(compute: SymbolicCompute, *microbatches: int) -> None:
    for microbatch in microbatches:
        compute.start(job(JobKind.FUSED, microbatch, tokens(microbatch, 7, 8)))


def test_replicas_that_reduce_and_apply_hold_the_same_parameters() -> None:
    computes = [made(2), made(2), made(2)]
    fused(computes[0], 0, 3)
    fused(computes[1], 1)
    fused(computes[2], 2)
    results = reduced(computes, 5)
    assert len({result.digest for result in results}) == 1
    apply = Apply(step=Step(0), round=Round(5), scale=0.5, lr=0.1, apply=True)
    digests = set()
    for compute in computes:
        contributions = compute.assembled[Round(5)]
        assert [c.microbatch for c in contributions] == [0, 1, 2, 3]
        before = compute.version
        (applied,) = done(compute, apply)
        assert isinstance(applied, Applied)
        assert applied.parameter_digest == next_version(before, contributions, 0.5, 0.1, apply=True)
        assert not compute.accumulator
        digests.add(applied.parameter_digest)
    assert len(digests) == 1


def test_a_skipped_step_leads_to_another_version_than_a_taken_one() -> None:
    taken, skipped = made(2), made(2)
    for compute, apply in ((taken, True), (skipped, False)):
        fused(compute, 0)
        reduced([compute], 1)
        compute.start(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=apply))
    assert taken.version != skipped.version


def test_chunks_of_two_rounds_make_no_sum() -> None:
    """What a reduction with one inbox for all rounds would do."""
    first, second = made(2), made(2)
    (own,) = done(first, Snapshot(round=Round(2), num_shards=2))
    (other,) = done(second, Snapshot(round=Round(1), num_shards=2))
    assert isinstance(own, Snapshotted)
    assert isinstance(other, Snapshotted)
    with pytest.raises(Violation, match="was put together from"):
        first.start(Sum(round=Round(2), shard=0, contributions=(own.shards[0], other.shards[0])))


def test_a_missing_or_swapped_chunk_makes_no_sum() -> None:
    compute = made(2)
    (own,) = done(compute, Snapshot(round=Round(2), num_shards=2))
    assert isinstance(own, Snapshotted)
    whole = next(shard for shard in own.shards if len(shard) > 1)
    index = own.shards.index(whole)
    for broken in (whole[:-1], whole[::-1]):
        with pytest.raises(Violation, match="was put together from"):
            compute.start(Sum(round=Round(2), shard=index, contributions=(whole, broken)))


def test_a_round_that_was_discarded_cannot_be_applied() -> None:
    compute = made(2)
    reduced([compute], 1)
    assert done(compute, Discard(round=Round(1))) == []
    with pytest.raises(Violation, match="never assembled"):
        compute.start(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=True))


def test_exported_ranges_make_the_whole_state() -> None:
    compute = made(0)
    content = b""
    total = 1
    while len(content) < total:
        (exported,) = done(compute, Export(part=StatePart.PARAMETERS, layer=0, offset_bytes=len(content)))
        content += exported.load.frames[0]  # type: ignore[union-attr]
        total = exported.total_bytes  # type: ignore[union-attr]
    assert content == compute.version.to_bytes(8, "little") * 5
