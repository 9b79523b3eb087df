"""The compute thread of symbols: as blind as the real one, and strict about what no correct machine asks for."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from stages.tasks import (
    Adopt,
    Adopted,
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Discard,
    Emitted,
    Export,
    Exported,
    Failed,
    Import,
    Imported,
    Outcome,
    Ran,
    Reset,
    Run,
    ShareTaken,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    TakeShare,
    Task,
    WasReset,
)
from zswarm.ids import (
    STATE_FILES,
    Attempt,
    Branch,
    JobKind,
    JobStatus,
    Lease,
    Microbatch,
    Purpose,
    Round,
    Stage,
    StatePart,
    Step,
)
from zswarm.messages import Key, Load
from zswarm.simulation.poison import Poison, Poisons
from zswarm.simulation.states import content_of, step_of
from zswarm.simulation.symbolic import Pace, SymbolicCompute
from zswarm.simulation.symbols import Activation, Gradient, load, next_version
from zswarm.simulation.violation import Violation

NUM_STAGES = 3
SEED = 1


def key(microbatch: int, step: int = 0) -> Key:
    return (Branch(0), Step(step), Purpose.TRAIN, Microbatch(microbatch), Attempt(0))


def made(
    stage: int, pace: Pace | None = None, *, seed: int = SEED, name: str = "worker", poisons: Poisons | None = None
) -> SymbolicCompute:
    """The last stage has two layers, the others one."""
    compute = SymbolicCompute(pace or Pace(), Random(0), seed=seed, name=name, poisons=poisons)
    compute.start(Build(stage=Stage(stage), num_stages=NUM_STAGES, configuration=b"[1, 1, 2]"))
    return compute


def done(compute: SymbolicCompute, task: Task) -> list[Outcome]:
    """Carry out a task and what it leaves unfinished."""
    timed, _ = compute.start(task)
    while compute.unfinished:
        timed += compute.go_on()[0]
    return [outcome for _, outcome in timed]


def job(
    kind: JobKind,
    microbatch: int,
    x: Load | None = None,
    dy: Load | None = None,
    *,
    counts: bool = True,
    emits: bool = True,
) -> Run:
    return Run(lease=Lease(1), kind=kind, key=key(microbatch), accumulate=counts, emit=emits, x=x, dy=dy)


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


def test_a_gradient_counts_when_its_last_part_is_done() -> None:
    """Another job may come in between; a reset leaves nothing of either."""
    compute = made(2)
    for microbatch in range(2):
        ((_, emitted),), _ = compute.start(job(JobKind.FUSED, microbatch, tokens(microbatch, 7, 8)))
        assert isinstance(emitted, Emitted)
    assert (len(compute.unfinished), compute.accumulator.total()) == (2, 0)
    while len(compute.unfinished) == 2:
        outcomes, _ = compute.go_on()
    assert [type(outcome) for _, outcome in outcomes] == [Ran]
    assert [contribution.microbatch for contribution in compute.accumulator.elements()] == [0]
    compute.start(Reset())
    assert (len(compute.unfinished), compute.accumulator.total()) == (0, 0)


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


def applying(round_: int, *, scale: float = 0.5, apply: bool = True, snapshot: bool = False) -> Apply:
    return Apply(step=Step(0), round=Round(round_), scale=scale, lr=0.1, apply=apply, snapshot=snapshot)


def fused(compute: SymbolicCompute, *microbatches: int) -> None:
    for microbatch in microbatches:
        done(compute, job(JobKind.FUSED, microbatch, tokens(microbatch, 7, 8)))


def test_replicas_that_reduce_and_apply_hold_the_same_parameters() -> None:
    computes = [made(2), made(2), made(2)]
    fused(computes[0], 0, 3)
    fused(computes[1], 1)
    fused(computes[2], 2)
    results = reduced(computes, 5)
    assert len({result.digest for result in results}) == 1
    apply = applying(5)
    digests = set()
    for compute in computes:
        contributions = compute.rounds.assembled[Round(5)]
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
        compute.start(applying(1, apply=apply))
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
        compute.start(applying(1))


def test_nobody_gets_a_gradient_that_nobody_wants() -> None:
    """What is done again for the stage's own count has sent its gradient on already."""
    (ran,) = done(made(2), job(JobKind.FUSED, 0, tokens(0, 7, 8), emits=False))
    assert isinstance(ran, Ran)


def moved(giver: SymbolicCompute, taker: SymbolicCompute, layers: range, **of: Any) -> None:
    """Carry ranges of a state from one worker to another."""
    for layer in layers:
        for part in STATE_FILES:
            offset_bytes, total_bytes = 0, 1
            while offset_bytes < total_bytes:
                export = Export(part=part, layer=layer, offset_bytes=offset_bytes, **of)
                (exported,) = done(giver, export)
                assert isinstance(exported, Exported)
                total_bytes = exported.total_bytes
                task = Import(
                    part=part, layer=layer, offset_bytes=offset_bytes, total_bytes=total_bytes, load=exported.load
                )
                assert done(taker, task) == [Imported(part=task.part)]
                offset_bytes += exported.load.parcel.size_bytes


def stepped(compute: SymbolicCompute, *, snapshot: bool = False) -> int:
    """Take an optimizer step; returns the version that it leads to."""
    fused(compute, 0)
    reduced([compute], 1)
    (applied,) = done(compute, applying(1, snapshot=snapshot))
    assert isinstance(applied, Applied)
    return applied.parameter_digest


def test_a_state_that_was_adopted_is_the_givers() -> None:
    giver, taker = made(2), made(2)
    fused(taker, 0)
    version = stepped(giver)
    moved(giver, taker, range(2, 4))
    (adopted,) = done(taker, Adopt())
    assert adopted == Adopted(parameter_digest=version)
    assert taker.version == version
    assert not taker.accumulator


def test_a_mixture_of_two_versions_cannot_be_adopted() -> None:
    """What a worker holds that has been given one layer before a commit and one after it."""
    giver, taker = made(2), made(2)
    moved(giver, taker, range(2, 3))
    stepped(giver)
    moved(giver, taker, range(3, 4))
    with pytest.raises(Violation, match=r"I3: .*mixture of the versions"):
        taker.start(Adopt())


def imported(compute: SymbolicCompute, part: StatePart, layer: int, content: bytes) -> None:
    for offset_bytes in range(0, 40, 16):
        chunk = content[offset_bytes : offset_bytes + 16]
        load_ = Load(parcel=load(None, len(chunk)).parcel, frames=(chunk,))
        compute.start(Import(part=part, layer=layer, offset_bytes=offset_bytes, total_bytes=40, load=load_))


def test_a_file_of_two_versions_is_none() -> None:
    """The ranges of one file are of one version, and so are the two files of a layer."""
    mixed = content_of(7, StatePart.PARAMETERS, 0)[:16] + content_of(8, StatePart.PARAMETERS, 0)[16:]
    taker = made(0)
    imported(taker, StatePart.PARAMETERS, 0, mixed)
    with pytest.raises(Violation, match="I3: PARAMETERS of layer 0 is a mixture"):
        imported(taker, StatePart.OPTIMIZER, 0, content_of(7, StatePart.OPTIMIZER, 0))
    taker = made(0)
    imported(taker, StatePart.PARAMETERS, 0, content_of(8, StatePart.PARAMETERS, 0))
    with pytest.raises(Violation, match="I3: layer 0 is made of two versions"):
        imported(taker, StatePart.OPTIMIZER, 0, content_of(7, StatePart.OPTIMIZER, 0))


def test_a_state_with_a_gap_is_none() -> None:
    chunk = load(b"x" * 16, 16)
    with pytest.raises(Violation, match=r"I3: .* from 16 on after 0 bytes"):
        made(2).start(Import(part=StatePart.OPTIMIZER, layer=2, offset_bytes=16, total_bytes=40, load=chunk))


def test_a_layer_takes_the_steps_that_it_lacks_once_and_in_their_order() -> None:
    giver, taker = made(2), made(2)
    moved(giver, taker, range(2, 3))
    before = giver.version
    fused(giver, 0)
    reduced([giver], 1)
    done(giver, replace(applying(1), gradients=(Step(0),), retained=((3, Step(0)),)))
    moved(giver, taker, range(3, 4), step=Step(0))
    for layer in (2, 3):
        with pytest.raises(Violation, match="takes a step that leads on from 5"):
            imported(taker, StatePart.GRADIENT, layer, step_of(5, 6, layer))
        (exported,) = done(giver, Export(part=StatePart.GRADIENT, layer=layer, offset_bytes=0, step=Step(0)))
        assert isinstance(exported, Exported)
        imported(taker, StatePart.GRADIENT, layer, step_of(before, giver.version, layer))
        with pytest.raises(Violation, match="takes a step that leads on from"):
            imported(taker, StatePart.GRADIENT, layer, step_of(before, giver.version, layer))
    assert done(taker, Adopt()) == [Adopted(parameter_digest=giver.version)]


def test_what_was_not_kept_cannot_be_given() -> None:
    for part in (*STATE_FILES, StatePart.GRADIENT):
        with pytest.raises(Violation, match="which it has not kept"):
            made(2).start(Export(part=part, layer=2, offset_bytes=0, step=Step(0)))


def shared(giver: SymbolicCompute, taker: SymbolicCompute, *offsets: int, said: int = 0) -> None:
    """Copy ranges of a share; `said` is the bitmap that they are said to be of."""
    for offset_bytes in offsets:
        (exported,) = done(giver, Export(part=StatePart.SHARE, layer=2, offset_bytes=offset_bytes))
        assert isinstance(exported, Exported)
        of = {"part": exported.part, "layer": 2, "total_bytes": exported.total_bytes, "load": exported.load}
        assert done(taker, Import(offset_bytes=offset_bytes, ledger=said, **of)) == [Imported(part=StatePart.SHARE)]


def test_a_share_is_added_once_all_of_it_is_here() -> None:
    giver, taker = made(2), made(2)
    fused(giver, 0)
    fused(taker, 1)
    before = list(taker.accumulator)
    shared(giver, taker, 0, 16, said=0b1)
    with pytest.raises(Violation, match=r"I1: .*a share that is not here"):
        taker.start(TakeShare(ledger=0b1))
    shared(giver, taker, 0, 16, 32, said=0b1)
    assert done(taker, TakeShare(ledger=0b1)) == [ShareTaken()]
    assert sorted(taker.accumulator) == sorted([*before, *giver.accumulator])


def test_a_share_with_a_gap_or_of_two_moments_is_none() -> None:
    giver = made(2)
    with pytest.raises(Violation, match=r"I1: .*a gap at 16"):
        shared(giver, made(2), 16)
    taker = made(2)
    shared(giver, taker, 0)
    fused(giver, 0)
    done(giver, Export(part=StatePart.SHARE, layer=2, offset_bytes=0))
    with pytest.raises(Violation, match=r"I1: .*a mixture"):
        shared(giver, taker, 16)
    with pytest.raises(Violation, match=r"I1: .*is said to be of \[1\]"):
        shared(giver, taker, 0, said=0b10)


def test_a_copy_outlives_the_steps_and_resets_after_it() -> None:
    giver, taker = made(2), made(2)
    kept = stepped(giver, snapshot=True)
    assert stepped(giver) != kept
    assert done(giver, Reset()) == [WasReset()]
    moved(giver, taker, range(2, 4), from_snapshot=True)
    taker.start(Adopt())
    assert taker.version == kept


def test_a_copy_that_was_not_kept_cannot_be_given() -> None:
    with pytest.raises(Violation, match="a copy that it has not kept"):
        made(2).start(Export(part=StatePart.PARAMETERS, layer=2, offset_bytes=0, from_snapshot=True))


def test_a_reset_forgets_what_was_counted_and_keeps_the_parameters() -> None:
    compute = made(2)
    version = stepped(compute)
    fused(compute, 1)
    reduced([compute], 2)
    compute.start(Reset())
    assert (compute.version, compute.accumulator.total(), compute.rounds.assembled) == (version, 0, {})


def test_as_many_workers_fail_at_a_poisoned_microbatch_as_it_says_each_time_they_try() -> None:
    """A process that has failed fails again, whatever its session; what it has added half stays until a reset."""
    poisons = Poisons((Poison(step=0, microbatch=1, stage=2, num_workers=2),))
    first, second, third = (made(2, name=name, poisons=poisons) for name in ("a", "b", "c"))
    x = tokens(1, 7, 8)
    for compute in (first, second, first):
        *_, failed = done(compute, job(JobKind.FUSED, 1, x))
        assert failed == Failed(layer="layer 2", text="it is poisoned", lease=Lease(1))
    assert first.accumulator.total() == 2
    *_, ran = done(third, job(JobKind.FUSED, 1, x))
    assert isinstance(ran, Ran)
    *_, ran = done(first, job(JobKind.FUSED, 0, tokens(0, 7, 8)))
    assert isinstance(ran, Ran)
    assert poisons.failed == {(0, 1, 2): ["a", "b", "a"]}


def test_a_worker_that_is_slowed_down_takes_longer() -> None:
    fast, slow = made(2), made(2)
    slow.slowdown = 10.0
    times_s = [compute.start(job(JobKind.FUSED, 0, tokens(0, 7, 8)))[1] for compute in (fast, slow)]
    assert times_s[1] == pytest.approx(10 * times_s[0])
