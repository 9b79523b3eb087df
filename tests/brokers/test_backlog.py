"""In which order a worker gets what waits. `F2` is the forward of microbatch 2, `B2` its backward."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from brokers.backlog import Backlog
from brokers.entries import Entry, EntryState, Worker
from tests.letters import key, load
from zswarm.ids import JobKind, Link, NodeId

ME, OTHER = 1, 2


@dataclass
class Pool:
    workers: dict[int, Worker] = field(default_factory=dict)

    def __post_init__(self):
        for session in (ME, OTHER):
            self.workers[session] = Worker(
                session=session,
                node=NodeId(f"worker-{session}"),
                heard_at_s=0.0,
                work=Link(b""),
                version=(0, 0),
                slots=2,
                job_s=1.0,
            )
        self.backlog = Backlog(self.workers)

    def add(self, name: str, *, kept_by: int | None = None, step: int = 0, again: bool = False) -> Entry:
        entry = Entry(
            key=key(int(name[1:]), step=step),
            kind=JobKind.FORWARD,
            route=(),
            mask=b"",
            accumulate=True,
            emit=True,
            x=load("x"),
            arrived_at_s=0.0,
            credit_bytes=0,
        )
        entry.state = EntryState.BACKWARD_QUEUED if name[0] == "B" else EntryState.FORWARD_QUEUED
        entry.affine = kept_by
        self.backlog.add(entry, again=again)
        return entry

    def take(self, session: int = ME) -> str | None:
        entry = self.backlog.choose(self.workers[session])
        if entry is None:
            return None
        self.backlog.remove(entry)
        return f"{'B' if entry.state is EntryState.BACKWARD_QUEUED else 'F'}{entry.key[3]}"

    def occupy(self, session: int, leases: int) -> None:
        self.workers[session].leases = dict.fromkeys(range(leases))


@pytest.fixture
def pool():
    return Pool()


def test_own_backward_then_orphan_then_forward(pool):
    pool.add("F1")
    pool.add("F2")
    pool.add("B3", kept_by=OTHER)
    pool.add("B4")
    pool.add("B5", kept_by=ME)
    pool.add("B6", kept_by=ME)
    assert [pool.take() for _ in range(6)] == ["B5", "B6", "B4", "F1", "F2", None]
    assert pool.take(OTHER) == "B3"
    assert pool.backlog.num_entries == 0


def test_only_jobs_of_the_own_parameters(pool):
    pool.add("F1", step=1)
    assert pool.take() is None
    pool.workers[ME].version = (0, 1)
    assert pool.take() == "F1"


def test_nothing_for_a_worker_that_has_not_said_what_it_holds(pool):
    pool.add("F1")
    pool.workers[ME].version = None
    assert pool.take() is None


def test_what_comes_back_goes_first(pool):
    pool.add("F1")
    pool.add("F2")
    pool.add("F0", again=True)
    assert [pool.take() for _ in range(3)] == ["F0", "F1", "F2"]


@pytest.mark.parametrize(
    ("own_leases", "owner_leases", "num_queued", "job_s", "taken"),
    [
        (0, 2, 1, 1.0, "B0"),
        (0, 1, 9, 1.0, None),
        (1, 2, 1, 1.0, None),
        (0, 2, 1, 0.0, None),
    ],
    ids=["the owner is busy", "the owner has a slot", "the thief is busy", "nothing is known of speeds"],
)
def test_a_backward_is_stolen_only_from_a_busy_owner(pool, own_leases, owner_leases, num_queued, job_s, taken):
    pool.occupy(ME, own_leases)
    pool.occupy(OTHER, owner_leases)
    pool.workers[OTHER].job_s = pool.workers[ME].job_s = job_s
    for microbatch in range(num_queued):
        pool.add(f"B{microbatch}", kept_by=OTHER)
    assert pool.take() == taken


def test_a_slow_thief_leaves_it_to_the_owner(pool):
    pool.occupy(OTHER, 2)
    pool.workers[ME].job_s = 10.0
    pool.add("B0", kept_by=OTHER)
    assert pool.take() is None


def test_what_a_leaver_kept_is_an_orphans(pool):
    pool.add("B1")
    pool.add("B2", kept_by=OTHER)
    pool.add("B3", kept_by=OTHER)
    del pool.workers[OTHER]
    pool.backlog.forget_worker(OTHER)
    late = pool.add("B4", kept_by=OTHER)
    assert late.affine is None
    assert [pool.take() for _ in range(4)] == ["B1", "B2", "B3", "B4"]


def test_old_shelves_go(pool):
    old = pool.add("F1")
    pool.add("F2", step=1)
    pool.backlog.remove(old)
    pool.backlog.drop_before((0, 1))
    assert pool.take() is None
    pool.workers[ME].version = (0, 1)
    assert pool.take() == "F2"


@pytest.mark.parametrize("name", ["F1", "B1"])
def test_who_failed_at_it_gets_it_when_everybody_has(pool, name):
    entry = pool.add(name)
    entry.failed_at = frozenset({"worker-1"})
    pool.add("F2")
    assert [pool.take(), pool.take()] == ["F2", None]
    entry.failed_at |= {"worker-2"}
    assert pool.take() == name


def test_a_new_life_of_who_failed_at_it_is_still_the_same_worker(pool):
    pool.add("F1").failed_at = frozenset({"worker-1"})
    del pool.workers[ME]
    again = Worker(session=7, node=NodeId("worker-1"), heard_at_s=0.0, work=Link(b""), version=(0, 0), slots=2)
    pool.workers[7] = again
    assert pool.take(7) is None
    assert pool.take(OTHER) == "F1"


def test_nobody_steals_what_it_failed_at(pool):
    pool.occupy(OTHER, 2)
    pool.add("B0", kept_by=OTHER).failed_at = frozenset({"worker-1"})
    assert pool.take() is None
    pool.add("B1", kept_by=OTHER)
    assert pool.take() == "B1"
