"""The simulated disk: what a crash leaves of the log, and of a checkpoint that is being made."""

from __future__ import annotations

from random import Random
from typing import Any

from zswarm.ids import STATE_FILES, Address, Branch, Generation, RunId, Session, StatePart, Step
from zswarm.messages import Load, Parcel, Pull
from zswarm.simulation.disk import Disk
from zswarm.simulation.states import STATE_BYTES, content_of, range_of
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.settings import Read, Seal, Sealed, Store

SEEDS = range(40)


def disk(seed: int = 0, *, is_faulty: bool = False) -> Disk:
    return Disk(Random(seed), is_faulty=is_faulty, last_step=9)


def record(number: int) -> dict[str, Any]:
    return {"event": "join", "number": number}


def filled(made: Disk) -> Disk:
    for number in range(6):
        made.append(record(number), durable=number == 2)
    return made


def test_a_process_that_dies_loses_nothing_that_it_has_written() -> None:
    made = filled(disk())
    made.crash()
    assert made.read_log() == [record(number) for number in range(6)]


def test_a_machine_that_loses_power_loses_some_of_what_is_not_synced() -> None:
    """Never what was synced, never one in the middle, and not again what has survived once."""
    lengths = set()
    for seed in SEEDS:
        made = filled(disk(seed, is_faulty=True))
        made.crash()
        assert made.records == [record(number) for number in range(len(made.records))]
        lengths.add(len(made.records))
        assert made.num_lost == 6 - len(made.records)
        left = list(made.records)
        made.crash()
        assert made.records == left
    assert lengths == {3, 4, 5, 6}


def store(made: Disk, step: int, part: StatePart, offset_bytes: int) -> str:
    load = range_of(content_of(7, part, 0), offset_bytes)
    return made.store(
        Store(
            branch=Branch(0),
            step=Step(step),
            part=part,
            layer=0,
            offset_bytes=offset_bytes,
            total_bytes=STATE_BYTES,
            load=load,
        )
    )


def stored(made: Disk, step: int) -> tuple[float, Sealed]:
    for part in STATE_FILES:
        for offset_bytes in range(0, STATE_BYTES, 16):
            assert store(made, step, part, offset_bytes) == ""
    return made.seal(Seal(branch=Branch(0), step=Step(step)))


def recovered(*, rollbacks: tuple[tuple[Branch, Step], ...] = ()) -> Recovered:
    return Recovered(
        run=RunId(1),
        generation=Generation(2),
        next_session=Session(5),
        branch=Branch(len(rollbacks)),
        step=Step(9),
        members=(),
        commit=None,
        rollbacks=rollbacks,
    )


def test_a_checkpoint_is_there_as_a_whole_and_the_two_newest_are_kept() -> None:
    made = disk()
    assert made.newest(recovered()) is None
    for step in (2, 4, 6):
        in_s, sealed = stored(made, step)
        assert in_s >= 0.0
        assert not sealed.problem
        assert (0, step) not in made.checkpoints
        made.finish_sealing(sealed)
    assert sorted(made.checkpoints) == [(0, 4), (0, 6)]
    assert made.checkpoints[Branch(0), Step(6)][0, StatePart.PARAMETERS] == content_of(7, StatePart.PARAMETERS, 0)
    assert made.newest(recovered()) == (0, 6)
    assert made.newest(recovered(rollbacks=((Branch(1), Step(5)),))) == (0, 4)


def test_a_crash_while_a_checkpoint_is_made_leaves_it_or_leaves_it_not() -> None:
    found = set()
    for seed in SEEDS:
        made = disk(seed)
        stored(made, 2)
        store(made, 4, StatePart.PARAMETERS, 0)
        made.crash()
        found.add(tuple(sorted(made.checkpoints)))
        assert store(made, 4, StatePart.PARAMETERS, 16) != ""
    assert found == {(), ((0, 2),)}


def test_a_faulty_disk_is_full_at_times_and_keeps_the_last_good_checkpoint() -> None:
    problems = set()
    for seed in SEEDS:
        made = disk(seed, is_faulty=True)
        _, sealed = stored(made, 2)
        made.finish_sealing(sealed)
        assert bool(made.checkpoints) is not bool(sealed.problem)
        problems.add(bool(sealed.problem))
        _, last = stored(made, 9)
        assert not last.problem
    assert problems == {True, False}


def test_ranges_come_in_order_or_begin_anew() -> None:
    made = disk()
    assert store(made, 2, StatePart.PARAMETERS, 16) != ""
    assert store(made, 2, StatePart.PARAMETERS, 0) == ""
    assert store(made, 2, StatePart.PARAMETERS, 32) != ""
    assert store(made, 2, StatePart.PARAMETERS, 0) == ""
    made.forsake((Branch(0), Step(2)))
    assert made.unfinished((Branch(0), Step(2))) == {}


def test_what_is_kept_can_be_read() -> None:
    made = disk()
    made.finish_sealing(stored(made, 2)[1])
    pull = Pull(
        run=RunId(1),
        generation=Generation(1),
        session=Session(3),
        branch=Branch(1),
        step=Step(2),
        part=StatePart.OPTIMIZER,
        layer=0,
        offset_bytes=16,
    )
    _, was_read = made.read(Read(peer=Address("a"), pull=pull, checkpoint=(Branch(0), Step(2))))
    chunk = content_of(7, StatePart.OPTIMIZER, 0)[16:32]
    assert was_read.load == Load(parcel=Parcel(tensors=(), size_bytes=16, crc=0), frames=(chunk,))
    assert (was_read.total_bytes, was_read.problem) == (STATE_BYTES, "")
    _, was_read = made.read(Read(peer=Address("a"), pull=pull, checkpoint=(Branch(0), Step(4))))
    assert was_read.load is None
    assert was_read.problem
    assert (was_read.is_damaged, was_read.left) == (True, ((0, 2),))
