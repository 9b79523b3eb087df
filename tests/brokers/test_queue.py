from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from brokers.entries import EMA, EntryState, average, first_lease
from brokers.queue import Queue
from tests.letters import (
    SIZE_BYTES,
    attach,
    backward,
    broker_at,
    forward,
    header,
    key,
    of_type,
    ready,
    result,
    void,
    welcome,
    worker_at,
)
from zswarm.bequests import Left
from zswarm.ids import (
    TRAINER,
    Address,
    Direction,
    JobKind,
    JobStatus,
    Link,
    NackCode,
    NodeId,
    Purpose,
    Role,
)
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Ack, Attach, Credit, HeartbeatAck, Job, Nack

BROKER = 50
FIRST = first_lease(BROKER)
PRODUCERS = (11, 12)
WORKERS = (21, 22)
PEER = Link(b"producer")


def membership(stage: int, num_stages: int = 3) -> Membership:
    me = Membership(
        node=NodeId("broker"),
        boot_nonce=1,
        role=Role.BROKER,
        addresses=(Address("sim://b/c"), Address("sim://b/w")),
        coordinator=Address("sim://trainer"),
    )
    me.welcome(welcome(BROKER, stage=stage, num_stages=num_stages))
    return me


@dataclass
class Broker:
    """A queue with a clock, its producers and workers attached."""

    stage: int = 1
    capacity_bytes: int = 100 * SIZE_BYTES
    workers: tuple[int, ...] = WORKERS
    now_s: float = 0.0
    links: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self):
        self.queue = Queue(membership(self.stage), capacity_bytes=self.capacity_bytes)
        self.set_members(self.workers)
        for session in (*PRODUCERS, *self.workers):
            self.attach(session)

    def set_members(
        self,
        workers: tuple[int, ...],
        producers: tuple[int, ...] = PRODUCERS,
        heirs: dict[int, tuple[int, int]] | None = None,
    ) -> list[Send]:
        self.queue._me.bequests = {leaver: Left(*of) for leaver, of in (heirs or {}).items()}
        members = [broker_at(BROKER, self.stage), worker_at(99, self.stage + 1)]
        members += [worker_at(p, self.stage - 1) for p in producers] + [worker_at(w, self.stage) for w in workers]
        return self.queue.set_members(tuple(members), self.queue.version, self.now_s)

    def attach(self, session: int) -> list[Send]:
        return self.queue.attach(attach(session), Link(b"%d" % session), self.now_s)

    def forward(self, microbatch: int, producer: int = PRODUCERS[0], **of: Any) -> list[Send]:
        message = forward(producer, microbatch, **({"route": (BROKER,)} | of))
        return self.queue.forward(message, (f"x{microbatch}",), PEER, self.now_s)

    def backward(self, microbatch: int, **of: Any) -> list[Send]:
        return self.queue.backward(backward(99, microbatch, **of), (f"dy{microbatch}",), PEER, self.now_s)

    def ready(self, worker: int, **of: Any) -> list[Send]:
        return self.queue.ready(ready(worker, **of), Link(b"%d" % worker), self.now_s)

    def result(self, worker: int, lease: int, *of: Any, **more: Any) -> list[Send]:
        """`lease` counts from 1."""
        return self.queue.result(result(worker, FIRST - 1 + lease, *of, **more), self.now_s)

    def void(self, attempt: int, *microbatches: int, **of: Any) -> list[Send]:
        return self.queue.void(void(attempt, sum(1 << m for m in microbatches), **of), self.now_s)

    def entry(self, microbatch: int) -> Any:
        return self.queue.entries.get(key(microbatch))


def jobs(sends: list[Send]) -> list[tuple[int, JobKind, int]]:
    """Return (worker, kind, microbatch) of each Job."""
    return [(int(s.peer), s.message.kind, s.message.microbatch) for s in sends if isinstance(s.message, Job)]


def credits_told(sends: list[Send]) -> list[int]:
    return [int(s.peer) for s in sends if isinstance(s.message, Credit)]


@pytest.fixture
def broker():
    return Broker()


# -- one microbatch ----------------------------------------------------------------------------------


def test_life_of_a_microbatch(broker):
    ready_and_forward = broker.ready(21) + broker.forward(0, route=(3, BROKER))
    (job,) = of_type(ready_and_forward, Job)
    assert (job.kind, job.key, job.lease, job.worker) == (JobKind.FORWARD, key(0), FIRST, 21)
    assert (job.accumulate, job.emit, job.route, job.mask) == (True, True, (3, BROKER), b"\xff")
    assert (job.x is not None, job.dy) == (True, None)
    assert broker.entry(0).state is EntryState.FORWARD_LEASED
    broker.result(21, 1, kept=True)
    assert broker.entry(0).state is EntryState.WAITING
    (send,) = [s for s in broker.backward(0) if isinstance(s.message, Job)]
    assert (send.message.kind, send.message.x, send.frames) == (JobKind.BACKWARD, None, ("dy0",))
    broker.result(21, 2)
    assert broker.queue.entries == {}
    assert broker.queue.credits.reserved_bytes == 0
    assert key(0) in broker.queue.retention


def test_forward_and_backward_are_acknowledged(broker):
    (ack,) = of_type(broker.forward(0), Ack)
    assert (ack.direction, ack.key, ack.room.granted_bytes) == (Direction.FORWARD, key(0), 3 * SIZE_BYTES)
    (ack,) = of_type(broker.backward(0), Ack)
    assert (ack.direction, ack.room) == (Direction.BACKWARD, None)


@pytest.mark.parametrize(
    ("purpose", "kind", "accumulate"),
    [(Purpose.TRAIN, JobKind.FUSED, True), (Purpose.EVALUATE, JobKind.EVALUATE, False)],
)
def test_the_last_stage_does_all_in_one_job(purpose, kind, accumulate):
    broker = Broker(stage=2)
    broker.ready(21)
    (job,) = of_type(broker.forward(0, purpose=purpose), Job)
    assert (job.kind, job.accumulate) == (kind, accumulate)
    broker.result(21, 1)
    assert broker.queue.entries == {}
    assert len(broker.queue.retention) == accumulate


def test_an_evaluated_microbatch_is_done_after_its_forward(broker):
    broker.ready(21)
    (job,) = of_type(broker.forward(0, purpose=Purpose.EVALUATE), Job)
    assert (job.kind, job.accumulate, job.emit) == (JobKind.FORWARD, False, False)
    broker.result(21, 1)
    assert broker.queue.entries == {}
    assert len(broker.queue.retention) == 0


def test_stage_0_takes_from_the_trainer_alone():
    broker = Broker(stage=0)
    assert list(broker.queue.credits.accounts) == [TRAINER]
    (nack,) = of_type(broker.forward(0, producer=11), Nack)
    assert (nack.code, nack.room) == (NackCode.BUSY, None)
    assert of_type(broker.forward(0, producer=TRAINER), Ack)


# -- any message in any state ------------------------------------------------------------------------


def advance_to(broker: Broker, state: EntryState | None) -> None:
    """Bring microbatch 0 into a state; None: done."""
    if state is EntryState.FORWARD_QUEUED:
        broker.forward(0)
        return
    broker.ready(21, slots=1)
    broker.forward(0)
    if state is EntryState.FORWARD_LEASED:
        return
    broker.result(21, 1, kept=True, slots=0 if state is EntryState.BACKWARD_QUEUED else 1)
    if state is EntryState.WAITING:
        return
    broker.backward(0)
    if state is None:
        broker.result(21, 2)


STATES = [*(state for state in EntryState if state is not EntryState.DONE), None]


@pytest.mark.parametrize("state", STATES)
def test_a_forward_that_comes_again_is_acknowledged_and_changes_nothing(broker, state):
    advance_to(broker, state)
    reserved_bytes = broker.queue.credits.reserved_bytes
    again = broker.forward(0)
    assert [type(send.message) for send in again] == [Ack]
    assert again[0].message.direction is Direction.FORWARD
    assert getattr(broker.entry(0), "state", None) is state
    assert broker.queue.credits.reserved_bytes == reserved_bytes


@pytest.mark.parametrize("state", [EntryState.BACKWARD_QUEUED, EntryState.BACKWARD_LEASED, None])
def test_a_backward_that_comes_again_is_acknowledged_and_changes_nothing(broker, state):
    advance_to(broker, state)
    again = broker.backward(0)
    assert [type(send.message) for send in again] == [Ack]
    assert getattr(broker.entry(0), "state", None) is state


@pytest.mark.parametrize("state", [EntryState.FORWARD_QUEUED, EntryState.FORWARD_LEASED, EntryState.WAITING])
def test_a_backward_proves_that_the_forward_was_done(broker, state):
    """Also of one that is leased again after its first worker left: it need not be done twice."""
    advance_to(broker, state)
    broker.ready(22)
    sends = broker.backward(0)
    assert JobKind.BACKWARD in [job.kind for job in of_type(sends, Job)]
    assert broker.entry(0).state is EntryState.BACKWARD_LEASED
    held_before = broker.queue.leasing.num_leased
    broker.result(21, 1)
    assert broker.entry(0).state is EntryState.BACKWARD_LEASED
    assert broker.queue.leasing.num_leased == held_before == 1


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("status", list(JobStatus))
def test_results_of_unknown_leases_are_ignored(broker, state, status):
    advance_to(broker, state)
    for worker, lease in ((21, 77), (22, 1), (1234, 1)):
        assert broker.result(worker, lease, status, slots=0) == []
    assert getattr(broker.entry(0), "state", None) is state


@pytest.mark.parametrize("state", STATES)
def test_a_new_step_ends_everything_of_the_old_one(broker, state):
    advance_to(broker, state)
    broker.ready(22, step=1)
    assert broker.queue.entries == {}
    assert broker.queue.credits.reserved_bytes == 0
    assert broker.queue.leasing.depth == 0
    assert all(not worker.leases for worker in broker.queue.workers.values())
    for sends in (broker.forward(1), broker.backward(0)):
        (nack,) = of_type(sends, Nack)
        assert nack.code is NackCode.STALE
    assert len(broker.queue.retention) == 0
    broker.result(21, 1)
    broker.result(21, 2)
    assert broker.queue.entries == {}


@pytest.mark.parametrize("state", [s for s in STATES if s is not None])
def test_nothing_is_lost_with_a_worker(broker, state):
    advance_to(broker, state)
    broker.set_members((22,))
    broker.ready(22)
    if state in (EntryState.WAITING, EntryState.FORWARD_LEASED):
        broker.backward(0)
    (record,) = broker.queue.workers[22].leases.values()
    forth = state is EntryState.FORWARD_QUEUED
    assert record.kind is (JobKind.FORWARD if forth else JobKind.BACKWARD)
    assert record.with_input, "the copy that the leaver kept is gone"
    assert broker.result(21, 1) == []


@pytest.mark.parametrize("microbatch", [0, 5])
def test_a_backward_of_an_unknown_microbatch_is_stale(broker, microbatch):
    (nack,) = of_type(broker.backward(microbatch), Nack)
    assert (nack.code, nack.direction, nack.room) == (NackCode.STALE, Direction.BACKWARD, None)


@pytest.mark.parametrize(("stage", "purpose"), [(2, Purpose.TRAIN), (1, Purpose.EVALUATE)])
def test_a_backward_where_none_can_come_changes_nothing(stage, purpose):
    broker = Broker(stage=stage)
    broker.forward(0, purpose=purpose)
    (nack,) = of_type(broker.backward(0, purpose=purpose), Nack)
    assert nack.code is NackCode.STALE
    (entry,) = broker.queue.entries.values()
    assert (entry.state, entry.dy) == (EntryState.FORWARD_QUEUED, None)


def test_attempts_are_microbatches_of_their_own(broker):
    broker.forward(0)
    broker.forward(0, attempt=1)
    assert len(broker.queue.entries) == 2


# -- credit ------------------------------------------------------------------------------------------


def test_without_credit_nothing_is_taken(broker):
    (nack,) = of_type(broker.forward(0, size_bytes=3 * SIZE_BYTES), Nack)
    assert (nack.code, nack.room.granted_bytes) == (NackCode.BUSY, 2 * SIZE_BYTES)
    assert broker.queue.entries == {}


def test_a_result_that_frees_room_is_told_to_who_waits_for_it():
    broker = Broker(capacity_bytes=0)
    broker.ready(21)
    for microbatch in range(4):
        broker.forward(microbatch, producer=PRODUCERS[microbatch % 2])
        broker.backward(microbatch)
    assert of_type(broker.forward(9), Nack)
    assert credits_told(broker.result(21, 1)) == [], "the entry stays for its backward"
    assert credits_told(broker.result(21, 2, slots=0)) == [11]


def test_an_attach_of_a_producer_is_answered_by_its_credit(broker):
    assert credits_told(broker.attach(11)) == [11]
    assert broker.attach(21) == []


def test_an_attach_before_the_view_counts_from_the_view_on(broker):
    """Its link was once forgotten, which cost a new worker one heartbeat."""
    assert broker.attach(23) == []
    assert broker.attach(13) == []
    sends = broker.set_members((21, 22, 23), producers=(11, 13))
    assert credits_told(sends) == [13]
    broker.ready(23)
    assert jobs(broker.forward(0)) == [(23, JobKind.FORWARD, 0)]


def test_links_of_leavers_are_dropped(broker):
    broker.attach(1000)
    broker.set_members((21,), producers=(12,))
    assert set(broker.queue._links) == {12, 1000}


def test_a_trainer_that_starts_again_counts_from_0():
    """It took all that its predecessor had been granted for its own, was refused, and sent it all again at once."""
    broker = Broker(stage=0, capacity_bytes=1000 * SIZE_BYTES)
    broker.attach(TRAINER)
    for microbatch in range(5):
        broker.forward(microbatch, producer=TRAINER)
    again = Attach(**header(TRAINER, generation=2))
    (credit,) = of_type(broker.queue.attach(again, Link(b"0"), 0.0), Credit)
    assert credit.room.granted_bytes == 2 * SIZE_BYTES
    assert broker.forward(7, producer=TRAINER) == [], "that is of the one before"
    assert broker.attach(TRAINER) == []
    assert (broker.entry(7), broker.queue.credits.account(TRAINER).received_bytes) == (None, 0)
    assert len(broker.queue.entries) == 5


# -- workers -----------------------------------------------------------------------------------------


def test_workers_get_no_more_than_their_slots(broker):
    broker.ready(21, slots=1)
    broker.ready(22, slots=2)
    sent = [job for microbatch in range(4) for job in jobs(broker.forward(microbatch, PRODUCERS[microbatch % 2]))]
    assert sent == [(21, JobKind.FORWARD, 0), (22, JobKind.FORWARD, 1), (22, JobKind.FORWARD, 2)]
    leasing = broker.queue.leasing
    assert (leasing.backlog.num_entries, leasing.num_leased, leasing.depth) == (1, 3, 4)


def test_the_worker_with_fewest_leases_is_first_then_the_fastest(broker):
    for worker, compute_s in ((21, 3.0), (22, 1.0)):
        broker.ready(worker)
        broker.forward(worker)
        broker.result(worker, worker - 20, compute_s=compute_s)
    sent = [job[0] for microbatch in range(4) for job in jobs(broker.forward(microbatch, PRODUCERS[microbatch % 2]))]
    assert sent == [22, 21, 22, 21]


def test_a_worker_without_slots_or_work_link_gets_nothing():
    broker = Broker(workers=(21, 22))
    broker.set_members((21, 22, 23))
    broker.ready(21, slots=0)
    broker.ready(23)
    assert jobs(broker.forward(0)) == []
    assert jobs(broker.attach(23)) == [(23, JobKind.FORWARD, 0)]


def test_a_backward_goes_to_who_kept_the_input(broker):
    broker.ready(21)
    broker.ready(22)
    broker.forward(0)
    broker.forward(1)
    broker.result(21, 1, kept=True, compute_s=5.0)
    broker.result(22, 2, kept=False)
    (send,) = [s for s in broker.backward(0) if isinstance(s.message, Job)]
    assert (int(send.peer), send.message.x) == (21, None)


def test_who_did_not_keep_the_input_gets_it_with_the_gradient(broker):
    broker.ready(21)
    broker.forward(0)
    broker.result(21, 1, kept=False)
    (send,) = [s for s in broker.backward(0) if isinstance(s.message, Job)]
    assert (send.message.x is not None, send.frames) == (True, ("x0", "dy0"))


def test_who_no_longer_has_the_input_gets_it_at_the_second_try(broker):
    broker.ready(21, slots=1)
    broker.forward(0)
    broker.result(21, 1, kept=True, slots=1)
    (first,) = of_type(broker.backward(0), Job)
    (second,) = of_type(broker.result(21, 2, JobStatus.NEEDS_INPUT, slots=1), Job)
    assert (first.x, second.x is not None, second.lease) == (None, True, first.lease + 1)


def test_wrong_step_tells_the_step(broker):
    broker.ready(21)
    broker.forward(0)
    broker.result(21, 1, JobStatus.WRONG_STEP, step=1)
    assert broker.queue.entries == {}
    assert jobs(broker.forward(1, step=1)) == [(21, JobKind.FORWARD, 1)]


def test_a_late_ready_does_not_take_a_worker_back(broker):
    """It once did, for a heartbeat: jobs of the new step waited meanwhile."""
    broker.ready(21, step=1)
    assert broker.ready(21, step=0, slots=0) == []
    assert jobs(broker.forward(0, step=1)) == [(21, JobKind.FORWARD, 0)]


def test_a_job_is_repeated_when_ready_lacks_it_for_long(broker):
    broker.ready(21)
    (job,) = of_type(broker.forward(0), Job)
    broker.now_s = 2.0
    assert of_type(broker.ready(21), Job) == []
    broker.now_s = 2.1
    assert of_type(broker.ready(21, held=(job.lease,)), Job) == []
    (again,) = [send for send in broker.ready(21) if isinstance(send.message, Job)]
    assert (again.message, again.frames, int(again.peer)) == (job, ("x0",), 21)
    broker.now_s = 6.0
    assert of_type(broker.ready(21), Job) == [], "each wait is twice the one before"
    broker.now_s = 6.2
    assert len(of_type(broker.ready(21), Job)) == 1


def test_a_worker_hears_about_once_per_interval_that_it_was_heard(broker):
    """Whoever hears nothing knows that something is in the way, though nobody has a job for it."""
    for now_s, is_answered in ((0.0, True), (0.4, False), (0.9, True), (1.7, False), (2.0, True)):
        broker.now_s = now_s
        answers = [send for send in broker.ready(21) if isinstance(send.message, HeartbeatAck)]
        assert [(answer.peer, answer.message.session) for answer in answers] == [(Link(b"21"), BROKER)] * is_answered


def test_jobs_of_the_next_step_wait(broker):
    broker.ready(21)
    assert jobs(broker.forward(0, step=1)) == []
    assert jobs(broker.ready(21, step=1)) == [(21, JobKind.FORWARD, 0)]


def test_a_ready_of_a_stranger_is_ignored(broker):
    assert broker.ready(1234, step=5) == []
    assert of_type(broker.forward(0), Ack)


def test_response_time_is_from_arrival_to_result(broker):
    broker.ready(21)
    broker.forward(0)
    broker.now_s = 4.0
    broker.result(21, 1)
    broker.forward(1)
    broker.now_s = 6.0
    broker.result(21, 2)
    (send,) = broker.attach(11)
    assert send.message.room.response_s == pytest.approx(4.0 + EMA * (2.0 - 4.0))


def test_the_average_begins_with_its_first_value():
    assert average(0.0, 5.0) == 5.0
    assert average(5.0, 5.0) == 5.0


@pytest.mark.parametrize("state", STATES)
def test_a_view_that_changes_nothing_here_changes_nothing(broker, state):
    advance_to(broker, state)
    assert broker.set_members(WORKERS) == []
    assert getattr(broker.entry(0), "state", None) is state


def test_what_is_smaller_than_a_unit_is_booked_as_a_unit():
    """A broker of stage 0 gets tokens, and keeps the gradients of activations: it held thirty times its bound."""
    broker = Broker(stage=0, capacity_bytes=100)
    broker.queue._me.unit_bytes = unit_bytes = 7 * SIZE_BYTES
    broker.queue = Queue(broker.queue._me, capacity_bytes=100)
    broker.set_members(broker.workers, producers=())
    (sent,) = broker.attach(TRAINER)
    room = sent.message.room
    assert (room.unit_bytes, room.granted_bytes) == (unit_bytes, 2 * unit_bytes)
    codes = []
    for microbatch in range(3):
        sends = broker.queue.forward(forward(TRAINER, microbatch, route=(BROKER,)), ("x",), PEER, 0.0)
        codes += of_type(sends, Nack)
    assert len(codes) == 1, "two units hold two microbatches, however small they are"
    assert broker.queue.credits.reserved_bytes == 4 * unit_bytes
    assert broker.queue.credits.account(TRAINER).received_bytes == 2 * unit_bytes
