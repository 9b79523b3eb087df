"""What the queue does when attempts count at some stages only, and when workers leave, fail or fall silent."""

from __future__ import annotations

from typing import Any

import pytest

from brokers.entries import EntryState
from tests.brokers.test_queue import BROKER, FIRST, STATES, Broker, advance_to, jobs
from tests.letters import SIZE_BYTES, of_type
from zswarm.ids import JobKind, JobStatus, NackCode, Purpose
from zswarm.messages import Ack, Drained, Job, Nack, Revoke

FORWARD, BACKWARD, FUSED = JobKind.FORWARD, JobKind.BACKWARD, JobKind.FUSED


@pytest.fixture
def broker():
    return Broker()


def do(broker: Broker, worker: int, microbatch: int) -> None:
    """Have a worker, which must have no lease, do a microbatch to its end."""
    broker.ready(worker, slots=1)
    if (entry := broker.entry(microbatch)) is None:
        broker.forward(microbatch, producer=12)
        entry = broker.entry(microbatch)
    for kind in [FUSED] if entry.kind is FUSED else [FORWARD, BACKWARD]:
        ((lease, record),) = broker.queue.workers[worker].leases.items()
        assert (record.entry, record.kind) == (entry, kind)
        if kind is FORWARD:
            broker.result(worker, lease - FIRST + 1, slots=1)
            broker.backward(microbatch)
    ((lease, _),) = broker.queue.workers[worker].leases.items()
    broker.result(worker, lease - FIRST + 1, slots=0)


def lent(broker: Broker, worker: int, microbatch: int, **of: Any) -> None:
    """Have a worker at the last job of a microbatch."""
    broker.ready(worker, slots=1)
    broker.forward(microbatch, producer=12, **of)
    ((lease, _),) = broker.queue.workers[worker].leases.items()
    broker.result(worker, lease - FIRST + 1, slots=1)
    broker.backward(microbatch)
    assert broker.entry(microbatch).state is EntryState.BACKWARD_LEASED


# -- masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "accumulate", "emit", "has_backward"),
    [
        (0b111, True, True, True),
        (0b010, True, False, True),
        (0b001, False, True, True),
        (0b100, False, False, False),
        (0b110, True, False, True),
    ],
)
def test_a_middle_stage_counts_and_passes_on_what_the_mask_says(broker, mask, accumulate, emit, has_backward):
    broker.ready(21)
    (job,) = of_type(broker.forward(0, mask=bytes([mask])), Job)
    assert (job.kind, job.accumulate, job.emit, job.mask) == (FORWARD, accumulate, emit, bytes([mask]))
    broker.result(21, 1)
    assert (broker.entry(0) is not None) == has_backward
    sends = broker.backward(0)
    if not has_backward:
        assert of_type(sends, Job) == []
        assert broker.queue.credits.reserved_bytes == 0
        return
    (job,) = of_type(sends, Job)
    assert (job.kind, job.accumulate, job.emit) == (BACKWARD, accumulate, emit)
    broker.result(21, 2)
    assert (broker.entry(0), len(broker.queue.retention)) == (None, accumulate)
    assert broker.queue.credits.reserved_bytes == 0


@pytest.mark.parametrize(
    ("mask", "accumulate", "emit"), [(b"\x04", True, False), (b"\x05", True, True), (b"\x01", False, True)]
)
def test_the_last_stage_computes_all_at_once_whatever_the_mask(mask, accumulate, emit):
    broker = Broker(stage=2)
    broker.ready(21)
    (job,) = of_type(broker.forward(0, mask=mask), Job)
    assert (job.kind, job.accumulate, job.emit) == (FUSED, accumulate, emit)


def test_a_mask_of_an_evaluation_is_ignored(broker):
    broker.ready(21)
    (job,) = of_type(broker.forward(0, mask=b"\xff", purpose=Purpose.EVALUATE), Job)
    assert (job.accumulate, job.emit) == (False, False)
    broker.result(21, 1)
    assert broker.queue.entries == {}


@pytest.mark.parametrize("route", [(), (BROKER - 1,), (BROKER, 3)])
def test_what_is_meant_for_an_earlier_life_is_refused(broker, route):
    (nack,) = of_type(broker.forward(0, route=route), Nack)
    assert nack.code is NackCode.STALE
    assert broker.queue.entries == {}
    assert broker.queue.credits.account(11).received_bytes == 0


def test_leases_of_two_lives_of_a_broker_differ(broker):
    """A Result for the one before would settle a job of this one that is still in work."""
    broker.ready(21)
    broker.forward(0)
    broker.result(21, 2 - FIRST, slots=1)
    assert broker.entry(0).state is EntryState.FORWARD_LEASED
    assert FIRST != 1


# -- what was leased to a worker that leaves ----------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "of", "goes_on"),
    [
        (1, {}, False),
        (1, {"mask": b"\x04"}, False),
        (1, {"purpose": Purpose.EVALUATE}, True),
        (2, {}, True),
        (2, {"purpose": Purpose.EVALUATE}, True),
    ],
    ids=["forward", "forward without a backward", "evaluated forward", "fused", "evaluated"],
)
def test_whether_what_a_leaver_had_is_leased_again(stage, of, goes_on):
    """Not what may have been sent on: done twice, one attempt had two homes at the next stage, and was counted twice."""
    broker = Broker(stage=stage)
    broker.ready(21)
    (first,) = of_type(broker.forward(0, **of), Job)
    broker.ready(22)
    again = of_type(broker.set_members((22,)), Job)
    assert [(job.worker, job.kind, job.key) for job in again] == ([(22, first.kind, first.key)] if goes_on else [])
    assert broker.queue.leasing.depth == goes_on


def test_a_backward_that_a_leaver_had_is_leased_again_with_its_input(broker):
    advance_to(broker, EntryState.BACKWARD_LEASED)
    broker.ready(22)
    (job,) = of_type(broker.set_members((22,)), Job)
    assert (job.kind, job.worker, job.x is not None, job.emit) == (BACKWARD, 22, True, True)


def test_what_a_leaver_may_have_sent_on_waits_for_its_gradient(broker):
    """It is not active any more: if its output was lost the coordinator finds nobody who has it, and voids it."""
    advance_to(broker, EntryState.FORWARD_LEASED)
    broker.set_members((22,))
    entry = broker.entry(0)
    assert (entry.state, entry.affine, entry.record) == (EntryState.WAITING, None, None)
    assert (broker.queue.active((0, 0)), broker.queue.leasing.depth) == (0, 0)
    assert broker.queue.credits.reserved_bytes == 2 * SIZE_BYTES
    assert broker.result(21, 1) == []
    broker.ready(22)
    assert [type(message) for message in of_type(broker.forward(0), (Ack, Nack, Job))] == [Ack]
    (send,) = [s for s in broker.backward(0) if isinstance(s.message, Job)]
    assert (send.message.kind, send.message.worker, send.frames) == (BACKWARD, 22, ("x0", "dy0"))


def test_what_a_leaver_may_have_sent_on_ends_where_no_gradient_comes():
    broker = Broker(capacity_bytes=0)
    broker.ready(21)
    for microbatch in range(2):
        broker.forward(microbatch, mask=b"\x04")
    assert of_type(broker.forward(2), Nack), "there is room for two"
    assert {int(send.peer) for send in broker.set_members((22,))} == {11}, "the credit for it is told"
    assert (broker.queue.entries, broker.queue.credits.reserved_bytes) == ({}, 0)
    broker.ready(22)
    assert [type(message) for message in of_type(broker.forward(0, mask=b"\x04"), (Ack, Nack, Job))] == [Ack]


# -- what its worker knows to be void -----------------------------------------------------------------


@pytest.mark.parametrize("state", [EntryState.FORWARD_LEASED, EntryState.BACKWARD_LEASED])
def test_what_its_worker_knows_to_be_void_is_forgotten(broker, state):
    """The worker said nothing, and the broker repeated the job for ever. Copies of what was sent here are no news."""
    advance_to(broker, state)
    broker.ready(22)
    lease = 1 if state is EntryState.FORWARD_LEASED else 2
    assert of_type(broker.result(21, lease, JobStatus.VOID), Job) == [], "nobody else gets it"
    assert (broker.queue.entries, broker.queue.credits.reserved_bytes, broker.queue.leasing.depth) == ({}, 0, 0)
    assert (len(broker.queue.retention), broker.queue.workers[21].leases) == (0, {})
    assert [type(send.message) for send in broker.forward(0)] == [Ack]
    assert [type(send.message) for send in broker.backward(0)] == [Ack]
    assert of_type(broker.forward(0, attempt=1), Job), "the next attempt is another matter"


def test_room_that_a_void_job_frees_is_told():
    broker = Broker(capacity_bytes=0)
    broker.ready(21)
    for microbatch in range(2):
        broker.forward(microbatch)
    assert of_type(broker.forward(2), Nack)
    assert [int(send.peer) for send in broker.result(21, 1, JobStatus.VOID, slots=0)] == [11]


# -- what was counted by a worker that leaves ----------------------------------------------------------


def test_what_a_leaver_counted_is_done_again_from_what_is_kept(broker):
    do(broker, 21, 0)
    broker.ready(22)
    assert of_type(broker.set_members((21, 22)), Job) == [], "nobody has left"
    (send,) = [s for s in broker.set_members((22,)) if isinstance(s.message, Job)]
    job = send.message
    assert (job.kind, job.worker, job.accumulate, job.emit) == (BACKWARD, 22, True, False)
    assert (send.frames, job.x is not None) == (("x0", "dy0"), True)
    assert (len(broker.queue.retention), broker.queue.credits.reserved_bytes) == (0, 2 * SIZE_BYTES)
    broker.result(22, job.lease - FIRST + 1)
    assert (broker.queue.entries, broker.queue.credits.reserved_bytes) == ({}, 0)
    broker.ready(23)
    broker.set_members((23,))
    assert key_of(broker.queue) == [0], "what was done again is kept for the next time"


def key_of(queue) -> list[int]:
    return [key[3] for key in queue.entries]


def test_the_last_stage_does_it_again_as_a_whole():
    broker = Broker(stage=2)
    do(broker, 21, 0)
    broker.ready(22)
    (job,) = of_type(broker.set_members((22,)), Job)
    assert (job.kind, job.accumulate, job.emit, job.x is not None) == (FUSED, True, False, True)


def test_what_others_counted_stays_done(broker):
    do(broker, 21, 0)
    do(broker, 22, 1)
    broker.set_members((21,))
    assert key_of(broker.queue) == [1]
    assert len(broker.queue.retention) == 1


def test_what_was_lost_goes_before_all_others(broker):
    for microbatch in (0, 1):
        do(broker, 21, microbatch)
    for microbatch in (2, 3):
        broker.forward(microbatch)
        broker.backward(microbatch)
    broker.ready(21, slots=1)
    broker.set_members((22,))
    sends = broker.ready(22, slots=9)
    assert [microbatch for _, _, microbatch in jobs(sends)] == [0, 1, 2, 3], "what was counted, what was leased"


def test_duplicates_of_what_is_kept_or_done_again_are_acknowledged(broker):
    do(broker, 21, 0)
    for workers in ((21, 22), (22,)):
        broker.set_members(workers)
        for sends in (broker.forward(0), broker.backward(0)):
            assert [type(message) for message in of_type(sends, (Ack, Nack))] == [Ack]
    assert key_of(broker.queue) == [0]


def test_what_is_kept_makes_way_for_credit_the_oldest_first():
    """With the least capacity each of two producers may have two units, and nothing else fits."""
    broker = Broker(capacity_bytes=10 * SIZE_BYTES)
    for microbatch in range(3):
        do(broker, 21, microbatch)
        assert broker.queue.credits.reserved_bytes == 0
        assert broker.queue.credits.account(12).credit_bytes == 2 * SIZE_BYTES, "it may always have two units"
        assert len(broker.queue.retention) == 1
    broker.set_members((22,))
    assert key_of(broker.queue) == [2]
    (ack,) = of_type(broker.forward(0), Ack)
    assert ack.key[3] == 0, "what was given up was done all the same"
    assert key_of(broker.queue) == [2]


def test_a_producer_that_comes_takes_the_room_of_what_is_kept():
    broker = Broker(capacity_bytes=10 * SIZE_BYTES)
    do(broker, 21, 0)
    assert len(broker.queue.retention) == 1
    broker.set_members((21,), producers=(11, 12, 13))
    assert len(broker.queue.retention) == 0
    assert broker.queue.credits.kept_bytes == 0


def test_nothing_is_kept_beyond_the_step(broker):
    do(broker, 21, 0)
    broker.ready(22, step=1)
    broker.set_members((22,))
    assert (len(broker.queue.retention), broker.queue.entries, broker.queue.credits.kept_bytes) == (0, {}, 0)


# -- voids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_a_void_ends_every_earlier_attempt(broker, state):
    advance_to(broker, state)
    broker.forward(1)
    broker.void(1, 0)
    assert key_of(broker.queue) == [1]
    assert (len(broker.queue.retention), broker.queue.credits.reserved_bytes) == (0, 2 * SIZE_BYTES)
    assert broker.queue.voids.newest == 1
    broker.result(21, 1)
    broker.result(21, 2)
    (nack,) = of_type(broker.backward(0), Nack)
    assert nack.code is NackCode.STALE
    assert key_of(broker.queue) == [1]
    broker.set_members((22,))
    assert key_of(broker.queue) == [1]


def test_an_attempt_that_was_taken_is_not_refused_and_one_that_was_not_is(broker):
    """The producer takes a refusal for credit that it may spend again."""
    broker.forward(0)
    broker.void(1, 0, 1)
    assert of_type(broker.forward(0), Ack)
    (nack,) = of_type(broker.forward(1), Nack)
    assert nack.code is NackCode.STALE
    assert broker.queue.credits.account(11).received_bytes == SIZE_BYTES
    broker.ready(21, step=1)
    assert of_type(broker.forward(0), Ack)
    assert of_type(broker.forward(1), Nack)
    assert broker.queue.entries == {}


def test_the_new_attempt_is_taken(broker):
    broker.void(1, 0)
    assert of_type(broker.forward(0, attempt=1), Ack)
    assert key_of(broker.queue) == [0]


def test_a_void_of_a_step_to_come_is_kept_for_it(broker):
    broker.forward(0, step=1)
    broker.void(1, 0, 1, step=1)
    assert broker.queue.entries == {}
    assert broker.queue.version == (0, 0)
    broker.ready(21, step=1)
    assert of_type(broker.forward(1, step=1), Nack)


def test_a_void_of_a_step_that_is_over_is_answered(broker):
    broker.ready(21, step=1)
    broker.forward(0, step=1)
    broker.void(7, 0)
    assert broker.queue.voids.newest == 7
    assert key_of(broker.queue) == [0]


def test_room_that_a_void_frees_is_told():
    broker = Broker(capacity_bytes=0)
    for microbatch in range(4):
        broker.forward(microbatch, producer=11 + microbatch % 2)
    assert {int(send.peer) for send in broker.void(1, 0, 1)} == {11, 12}


# -- jobs that two workers have ------------------------------------------------------------------------

MASKED = bytes([0b001])
"""Stage 1 passes the gradient on and counts nothing."""


def slow_and_idle(broker: Broker) -> None:
    """Let 21 have a backward that is not counted for long; 22, which takes a second, has nothing to do."""
    broker.ready(22, slots=1)
    broker.forward(7, producer=12)
    broker.result(22, 1, compute_s=1.0, slots=0)
    broker.ready(21, slots=1)
    broker.forward(0, mask=MASKED)
    broker.result(21, 2, kept=True, slots=1)
    assert jobs(broker.backward(0)) == [(21, BACKWARD, 0)]


def late(broker: Broker, *, slots: int = 1) -> list[tuple[int, JobKind, int]]:
    """Return what 22 gets when 21 has had it for more than three of its jobs."""
    broker.now_s = 3.01
    return jobs(broker.ready(22, slots=slots))


def test_a_job_without_effects_is_done_by_an_idle_worker_too_when_it_takes_long(broker):
    slow_and_idle(broker)
    broker.now_s = 2.99
    assert jobs(broker.ready(22, slots=1)) == []
    broker.now_s = 3.01
    (job,) = of_type(broker.ready(22, slots=1), Job)
    assert (job.kind, job.key[3], job.accumulate, job.worker) == (BACKWARD, 0, False, 22)
    assert job.x is not None, "its forward was done elsewhere"
    assert jobs(broker.ready(22, held=(3,), slots=1)) == []
    assert broker.queue.leasing.depth == 1


@pytest.mark.parametrize(("first", "second", "lease"), [(21, 22, 3), (22, 21, 4)])
def test_the_first_answer_counts(broker, first, second, lease):
    slow_and_idle(broker)
    late(broker)
    sends = broker.result(first, lease, slots=0)
    assert revoked(sends) == [(second, second, 7 - lease)], "the other one may leave it"
    assert broker.entry(0) is None
    assert (broker.queue.leasing.num_leased, broker.queue.credits.reserved_bytes) == (0, 2 * SIZE_BYTES)
    assert not broker.result(second, 7 - lease, slots=0), "it comes too late"


def test_who_is_late_gets_nothing_more_until_that_is_over(broker):
    """It cannot stop in the middle of a job: the next one waited behind what nobody needed any more."""
    slow_and_idle(broker)
    late(broker)
    broker.result(22, 4, slots=1)
    broker.ready(21, held=(FIRST + 2,), slots=1)
    assert jobs(broker.forward(1)) == [(22, FORWARD, 1)], "22 has no lease, 21 has one that is of no use"
    broker.forward(2, producer=12)
    sends = broker.result(21, 3, compute_s=60.0, slots=1)
    assert jobs(sends) == [(21, FORWARD, 2)]
    assert broker.queue.workers[21].job_s > broker.queue.workers[22].job_s, "what it took is learnt"


def test_a_job_that_nobody_needs_is_forgotten_with_whoever_has_it(broker):
    slow_and_idle(broker)
    late(broker)
    broker.result(22, 4, slots=0)
    broker.ready(21, held=(), slots=1)
    assert not broker.queue.workers[21].leases, "it never came"
    slow_and_idle(other := Broker())
    late(other)
    other.result(22, 4, slots=0)
    other.set_members((22,))
    assert other.entry(0) is None
    assert (other.queue.leasing.num_leased, other.queue.leasing.depth) == (0, 0), "nobody is to do it again"


def test_who_leaves_is_let_go_when_it_is_rid_of_a_job_that_nobody_needs(broker):
    slow_and_idle(broker)
    late(broker)
    broker.result(22, 4, slots=0)
    assert of_type(broker.ready(21, held=(FIRST + 2,), leaves=True), Drained) == []
    assert of_type(broker.result(21, 3, slots=0), Drained)


def test_a_job_is_hedged_whose_owner_does_not_say_that_it_has_begun(broker):
    """22 asked for the second of two evaluations, which runs; no answer comes, and nothing else was tried."""
    broker.ready(22, slots=1)
    broker.forward(7, producer=12)
    broker.result(22, 1, compute_s=1.0, slots=0)
    broker.ready(21, slots=2)
    for microbatch in range(2):
        broker.forward(microbatch, purpose=Purpose.EVALUATE, producer=11 + microbatch)
    assert len(revoked(broker.ready(22, slots=1))) == 1
    broker.now_s = 5.0
    (given,) = jobs(broker.ready(22, slots=1))
    assert given[:2] == (22, FORWARD)


@pytest.mark.parametrize(("leaver", "lease"), [(21, 3), (22, 4)])
@pytest.mark.parametrize("how", ["leaves", "fails"])
def test_of_two_workers_one_may_be_lost(broker, leaver, lease, how):
    slow_and_idle(broker)
    late(broker)
    if how == "leaves":
        broker.set_members((43 - leaver,))
    else:
        assert jobs(broker.result(leaver, lease, JobStatus.FAILED, slots=0)) == []
    assert broker.queue.leasing.num_leased == 1
    assert broker.entry(0).record.worker == 43 - leaver
    broker.result(43 - leaver, 7 - lease, slots=0)
    assert broker.entry(0) is None


def test_a_void_takes_it_from_both(broker):
    slow_and_idle(broker)
    late(broker)
    broker.void(1, 0)
    assert broker.queue.leasing.num_leased == 0
    assert not any(worker.leases for worker in broker.queue.workers.values())


@pytest.mark.parametrize(
    ("purpose", "stage", "kind"), [(Purpose.EVALUATE, 1, FORWARD), (Purpose.EVALUATE, 2, JobKind.EVALUATE)]
)
def test_evaluations_are_hedged(purpose, stage, kind):
    broker = Broker(stage=stage)
    slow_worker_has(broker, purpose=purpose)
    assert late(broker) == [(22, kind, 0)]


@pytest.mark.parametrize(("stage", "mask"), [(1, b"\xff"), (1, MASKED), (2, b"\xff")])
def test_what_is_counted_or_has_a_home_at_the_next_stage_is_not(stage, mask):
    """Twice done it would be counted twice, or an attempt would have two homes."""
    broker = Broker(stage=stage)
    slow_worker_has(broker, mask=mask)
    assert late(broker) == []


def slow_worker_has(broker: Broker, **of) -> None:
    """Let 21 have a stage input for long; 22, which takes a second, has nothing to do."""
    broker.ready(22, slots=1)
    broker.forward(7, producer=12)
    broker.result(22, 1, compute_s=1.0, slots=0)
    broker.ready(21, slots=1)
    assert len(jobs(broker.forward(0, **of))) == 1


def test_nobody_knows_how_long_a_worker_takes_that_has_done_nothing(broker):
    broker.ready(21, slots=1)
    broker.forward(0, purpose=Purpose.EVALUATE)
    broker.now_s = 100.0
    assert jobs(broker.ready(22, slots=1)) == []


# -- leases that are asked back ------------------------------------------------------------------------


def revoked(sends) -> list[tuple[int, int, int]]:
    """Return (link, worker, lease counted from 1) of each Revoke."""
    return [
        (int(s.peer), s.message.worker, s.message.lease - FIRST + 1) for s in sends if isinstance(s.message, Revoke)
    ]


def test_an_idle_worker_gets_what_a_busy_one_has_not_begun(broker):
    broker.ready(21)
    broker.forward(0)
    assert revoked(broker.ready(22)) == [], "it has only one"
    broker.ready(22, slots=0)
    broker.forward(1)
    assert revoked(broker.ready(22)) == [(21, 21, 2)]
    assert broker.entry(1).record.worker == 21, "it is its worker's until that one says that it is not"
    sends = broker.result(21, 2, JobStatus.REVOKED, slots=2)
    assert jobs(sends) == [(22, FORWARD, 1)]
    assert broker.ready(21) == broker.ready(22) == []


def test_it_is_asked_again_with_patience(broker):
    broker.ready(21)
    broker.forward(0)
    broker.forward(1)
    assert len(revoked(broker.ready(22))) == 1
    for now_s, count in ((2.0, 0), (2.1, 1), (6.0, 0), (6.2, 1)):
        broker.now_s = now_s
        assert len(revoked(broker.ready(22, held=(1, 2)))) == count


def test_it_is_not_asked_again_when_it_has_come_to_its_turn(broker):
    broker.ready(21)
    broker.forward(0)
    broker.forward(1)
    broker.ready(22)
    broker.result(21, 1, slots=0)
    broker.now_s = 9.0
    assert revoked(broker.ready(22)) == []


def test_each_idle_worker_asks_for_one():
    broker = Broker(workers=(21, 22, 23, 24))
    broker.ready(21)
    broker.ready(22)
    for microbatch in range(4):
        broker.forward(microbatch, producer=11 + microbatch % 2)
    first, second = revoked(broker.ready(23)), revoked(broker.ready(24))
    assert {worker for _, worker, _ in first + second} == {21, 22}
    broker.set_members((21, 22, 24, 25))
    broker.attach(25)
    broker.now_s = 2.1
    assert set(revoked(broker.ready(25))) == {*first, *second}, "who was to get the first one has left"


def test_the_slowest_is_asked_first():
    broker = Broker(workers=(21, 22, 23))
    for worker, compute_s in ((21, 3.0), (22, 1.0)):
        broker.ready(worker)
        broker.forward(worker)
        broker.result(worker, worker - 20, compute_s=compute_s)
    for microbatch in range(4):
        broker.forward(microbatch, producer=11 + microbatch % 2)
    ((_, worker, _),) = revoked(broker.ready(23))
    assert worker == 21


@pytest.mark.parametrize(("kinds", "asked"), [("FF", [2]), ("BF", [2]), ("FB", []), ("BB", [2]), ("FBF", [3])])
def test_what_may_be_running_is_not_asked_for(broker, kinds, asked):
    """A worker begins in the order of arrival, but backwards before forwards: either may have decided."""
    for microbatch, kind in enumerate(kinds):
        broker.forward(microbatch, producer=11 + microbatch % 2)
        if kind == "B":
            broker.backward(microbatch)
        broker.ready(21, slots=microbatch + 1)
    assert [lease for _, _, lease in revoked(broker.ready(22))] == asked


@pytest.mark.parametrize(("job_s", "count"), [(2.0, 0), (2.1, 1)], ids=["alike", "much slower"])
def test_what_its_worker_has_kept_is_asked_for_only_if_that_one_is_slow(broker, job_s, count):
    for microbatch in range(2):
        broker.ready(21)
        broker.forward(microbatch)
    for lease in (1, 2):
        broker.result(21, lease, kept=True, slots=2)
    for microbatch in range(2):
        broker.backward(microbatch)
    broker.queue.workers[21].job_s, broker.queue.workers[22].job_s = job_s, 1.0
    assert len(revoked(broker.ready(22))) == count


# -- workers that fail or are silent -------------------------------------------------------------------


def test_what_a_worker_failed_at_goes_to_another(broker):
    broker.ready(21)
    broker.forward(0)
    assert jobs(broker.result(21, 1, JobStatus.FAILED, slots=2)) == []
    assert broker.queue.leasing.backlog.num_entries == 1
    assert jobs(broker.ready(22)) == [(22, FORWARD, 0)]
    assert jobs(broker.result(22, 2, JobStatus.FAILED, slots=0)) == [(21, FORWARD, 0)], "nobody else is left"


def test_who_has_a_lease_and_is_silent_is_accused(broker):
    broker.ready(21)
    broker.ready(22)
    broker.forward(0)
    assert broker.queue.accused(3.0) == ()
    assert broker.queue.accused(3.1) == (21,)


@pytest.mark.parametrize("speak", ["attach", "ready", "result"])
def test_whoever_says_anything_is_not_silent(broker, speak):
    broker.ready(21)
    broker.forward(0)
    broker.now_s = 2.0
    if speak == "result":
        broker.result(21, 77)
    else:
        getattr(broker, speak)(21)
    assert broker.queue.accused(5.0) == ()
    assert broker.queue.accused(5.1) == (21,)


def test_nobody_is_to_blame_for_what_this_broker_slept_through(broker):
    broker.ready(21)
    broker.forward(0)
    broker.queue.excuse(5.0, 4.0)
    assert broker.queue.accused(7.0) == ()
    assert broker.queue.accused(7.1) == (21,)
    broker.queue.excuse(8.0, 99.0)
    assert broker.queue.accused(11.1) == (21,), "it is excused up to now, not longer"


def test_a_heartbeat_names_so_many_silent_ones_at_most():
    workers = tuple(range(1021, 1041))
    broker = Broker(workers=workers, capacity_bytes=1000 * SIZE_BYTES)
    for microbatch, worker in enumerate(workers):
        broker.now_s = microbatch / 100
        broker.ready(worker, slots=1)
        broker.forward(microbatch)
    assert broker.queue.accused(9.0) == workers[:16], "those that have been silent for longest"


def test_what_is_active_has_a_job_to_do(broker):
    assert broker.queue.active((0, 0)) == 0
    broker.ready(21, slots=1)
    for microbatch in range(2):
        broker.forward(microbatch)
    broker.forward(5, producer=12, step=1)
    broker.forward(6, producer=12, purpose=Purpose.EVALUATE)
    assert (broker.queue.active((0, 0)), broker.queue.active((0, 1))) == (0b11, 0b100000)
    broker.result(21, 1, slots=0)
    assert broker.queue.active((0, 0)) == 0b10, "one waits for its gradient"
    broker.backward(0)
    assert broker.queue.active((0, 0)) == 0b11


# -- what a worker leaves to another one -------------------------------------------------------------


def test_what_has_an_heir_is_not_done_again(broker):
    do(broker, 21, 0)
    assert of_type(broker.set_members((22,), heirs={21: (22, 0b1)}), Job) == []
    assert broker.queue.retention.owners() == {22}
    broker.ready(23, slots=1)
    broker.set_members((22, 23), heirs={21: (22, 0b1)})
    assert broker.entry(0) is None


def test_what_the_heir_had_is_done_again_when_that_is_gone_as_well(broker):
    do(broker, 21, 0)
    do(broker, 22, 1)
    broker.set_members((22,), heirs={21: (22, 0b1)})
    broker.set_members((23,), heirs={21: (22, 0b1)})
    assert {broker.entry(0).state, broker.entry(1).state} == {EntryState.BACKWARD_QUEUED}


def test_the_heir_of_an_heir_may_have_come_and_gone_between_two_views(broker):
    """21 left to 30, and that to 22; or to 31, who died before this broker ever heard of it."""
    do(broker, 21, 0)
    broker.set_members((22,), heirs={21: (30, 0b1), 30: (22, 0b1)})
    assert broker.queue.retention.owners() == {22}
    broker.set_members((23,), heirs={21: (30, 0b1), 30: (22, 0b1), 22: (31, 0b1)})
    assert broker.entry(0).state is EntryState.BACKWARD_QUEUED


def test_heirs_in_a_circle_end(broker):
    do(broker, 21, 0)
    broker.set_members((23,), heirs={21: (22, 0b1), 22: (21, 0b1)})
    assert broker.entry(0).state is EntryState.BACKWARD_QUEUED


def test_what_the_lost_worker_has_counted_since_the_copy_is_done_again(broker):
    do(broker, 21, 0)
    do(broker, 21, 1)
    broker.set_members((22,), heirs={21: (22, 0b01)})
    assert broker.queue.retention.owners() == {22}
    assert broker.entry(0) is None
    assert broker.entry(1).state is EntryState.BACKWARD_QUEUED


def test_what_was_counted_and_not_told_is_the_heirs_as_well(broker):
    """Its result was on its way when it died: done again it would be counted twice."""
    lent(broker, 21, 0)
    broker.set_members((22,), heirs={21: (22, 0b01)})
    assert broker.queue.retention.owners() == {22}
    assert broker.entry(0) is None
    assert broker.queue.leasing.depth == 0


def test_a_gradient_that_is_only_passed_on_is_not_done_because_it_was_counted_before(broker):
    """An earlier attempt of it was counted; this one brings dx to a stage that lacks it."""
    lent(broker, 21, 0, mask=b"\x01")
    broker.set_members((22,), heirs={21: (22, 0b01)})
    assert broker.entry(0).state is EntryState.BACKWARD_QUEUED
