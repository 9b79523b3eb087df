"""What a worker does not begin, not send and not count any more, and what it says about it."""

from __future__ import annotations

import pytest

from stages.tasks import Emitted, Run, Snapshotted, WasReset
from tests.letters import (
    SIZE_BYTES,
    ack,
    broker_at,
    credit,
    fence,
    heartbeat_ack,
    load,
    of_type,
    prepare,
    revoke,
    view,
    void,
    welcome,
    worker_at,
)
from tests.stages.one_worker import (
    AFTER,
    BEFORE,
    CONFIGURATION,
    EVALUATE,
    ME,
    MEMBERS,
    OTHER,
    OWN,
    ROUTE,
    B,
    F,
    Fixture,
)
from zswarm import ledger
from zswarm.ids import TRAINER, Direction, JobStatus, Purpose
from zswarm.limits import MAX_ACCUSED, SILENCE_HEARTBEATS
from zswarm.messages import Backward, Chunk, Forward, Ready, Result, WorkerHeartbeat


@pytest.fixture
def worker():
    return Fixture()


def reported(commands) -> WorkerHeartbeat:
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    return heartbeat


def answered(commands) -> JobStatus:
    (result,) = of_type(commands, Result)
    assert of_type(commands, Run) == []
    return result.status


# -- Void --------------------------------------------------------------------------------------------


def test_a_void_is_reported_at_once_if_nothing_of_it_is_in_work(worker):
    worker.work(1, B, 0)
    assert reported(worker.get(void(5, 0b11))).voided == 5
    assert worker.get(void(5, 0b11)) == []
    assert reported(worker.tick(1.0)).voided == 5


def test_jobs_and_outputs_of_void_attempts_are_dropped(worker):
    worker.work(1, F, 0)
    worker.get_job(2, F, 7)
    worker.get_job(3, B, 1)
    worker.get_job(4, B, 1, attempt=5)
    worker.get_job(5, B, 2)
    worker.get(void(5, 0b11))
    assert [held.job.lease for held in worker.machine.jobs.held.values()] == [2, 4, 5]
    assert of_type(worker.get(credit(AFTER, 10 * SIZE_BYTES, producer=ME)), Forward) == [], "microbatch 0 is void"


def test_jobs_of_void_attempts_are_not_taken_again(worker):
    """Nothing was said of them: their broker repeated them for ever."""
    worker.get(void(5, 0b1))
    for _ in range(2):
        assert answered(worker.get_job(1, B, 0, attempt=4)) == JobStatus.VOID
    assert worker.machine.jobs.held == {}
    assert of_type(worker.get_job(2, B, 0, attempt=5), Run)
    assert worker.get_job(3, B, 1, attempt=4) == []
    assert len(worker.machine.jobs.held) == 2, "microbatch 1 is not void"


def test_what_has_begun_is_waited_for_and_may_count(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    assert worker.get(void(5, 0b1)) == []
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward) == []
    heartbeat = reported(worker.ran(run))
    assert (heartbeat.voided, ledger.from_bytes(heartbeat.ledger)) == (5, 0b1)


def test_each_job_that_is_unfinished_is_waited_for(worker):
    (first,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get_job(2, B, 1)
    (second,) = of_type(worker.do(Emitted(lease=first.lease, dx=load("dx"))), Run)
    worker.do(Emitted(lease=second.lease, dx=load("dx")))
    worker.get(void(2, 0b1))
    assert worker.machine.work.voided == 0
    worker.ran(second)
    assert worker.machine.work.voided == 0
    worker.ran(first)
    assert worker.machine.work.voided == 2


def test_a_late_copy_of_a_void_job_in_work_brings_its_result_when_it_has_ended(worker):
    """Were it said to be void, its broker would take it for dropped, though it may be counted."""
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get(void(5, 0b1))
    assert of_type(worker.get_job(1, B, 0), Result) == []
    assert answered(worker.ran(run)) == JobStatus.DONE
    assert answered(worker.get_job(1, B, 0)) == JobStatus.DONE


def test_what_was_done_before_it_became_void_was_done(worker):
    worker.work(1, B, 0)
    worker.get(void(5, 0b1))
    assert answered(worker.get_job(1, B, 0)) == JobStatus.DONE


def test_a_void_job_is_dropped_in_silence_and_refused_when_it_comes_again(worker):
    worker.get_job(1, F, 7)
    worker.get_job(2, F, 0)
    assert of_type(worker.get(void(5, 0b1)), Result) == []
    assert answered(worker.get_job(2, F, 0)) == JobStatus.VOID


def test_the_output_of_a_void_forward_is_not_sent(worker):
    worker.get(credit(AFTER, SIZE_BYTES, producer=ME))
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    worker.get(void(5, 0b1))
    assert of_type(worker.ran(run), Forward) == []


def test_a_job_in_work_of_another_microbatch_is_not_waited_for(worker):
    worker.get_job(1, B, 1)
    assert reported(worker.get(void(5, 0b1))).voided == 5


def test_a_void_of_a_step_that_is_over_asks_for_nothing(worker):
    worker.step()
    worker.get_job(1, B, 0, step=1)
    assert reported(worker.get(void(5, 0b1))).voided == 5
    assert of_type(worker.get_job(2, B, 1, step=1), Run) == []
    assert len(worker.machine.jobs.held) == 2


@pytest.mark.parametrize("of", [{"step": 1}, {"branch": 1}], ids=str)
def test_a_void_of_a_step_that_is_to_come_is_answered_and_kept(worker, of):
    worker.get_job(1, F, 0)
    worker.get_job(2, B, 0, **of)
    assert reported(worker.get(void(5, 0b1, **of))).voided == 5
    assert [held.job.lease for held in worker.machine.jobs.held.values()] == [1]
    assert answered(worker.get_job(2, B, 0, **of)) == JobStatus.VOID


def test_a_void_ends_with_its_step(worker):
    worker.get(void(5, 0b1))
    assert reported(worker.step()).voided == 5
    assert of_type(worker.get_job(1, B, 0, step=1), Run)


def test_what_is_evaluated_is_never_void(worker):
    worker.get(void(5, 0b1))
    assert of_type(worker.get_job(1, EVALUATE, 0, purpose=Purpose.EVALUATE), Run)


def test_the_next_life_has_not_answered_but_keeps_what_is_void(worker):
    worker.get(void(5, 0b1))
    worker.get(fence(ME))
    worker.do(WasReset())
    worker.get(welcome(61, stage=1, nonce=2), frames=CONFIGURATION)
    assert reported(worker.get(view(2), frames=MEMBERS)).voided == 0
    assert answered(worker.get_job(1, B, 0, attempt=4, worker=61)) == JobStatus.VOID
    assert reported(worker.get(void(5, 0b1))).voided == 5


def test_floors_only_rise(worker):
    worker.get(void(5, 0b1))
    worker.get(void(3, 0b11))
    assert reported(worker.tick(1.0)).voided == 5
    assert answered(worker.get_job(1, B, 0, attempt=4)) == JobStatus.VOID
    assert of_type(worker.get_job(2, B, 1, attempt=4), Run)


# -- Revoke ------------------------------------------------------------------------------------------


def test_a_job_that_has_not_begun_is_given_back(worker):
    (running,) = of_type(worker.get_job(1, F, 0), Run)
    worker.get_job(2, F, 1)
    (first,) = of_type(worker.get(revoke(OWN, 2)), Result)
    assert (first.lease, first.status) == (2, JobStatus.REVOKED)
    assert of_type(worker.get(revoke(OWN, 2)), Result) == [first]
    assert of_type(worker.get_job(2, F, 1), Result) == [first]
    assert of_type(worker.ran(running), Run) == []


def test_a_job_that_has_begun_is_not(worker):
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    assert worker.get(revoke(OWN, 1)) == []
    (result,) = of_type(worker.ran(run), Result)
    assert result.status is JobStatus.DONE
    assert of_type(worker.get(revoke(OWN, 1)), Result) == [result]


@pytest.mark.parametrize(("broker", "lease", "session"), [(OWN, 3, ME), (OTHER, 2, ME), (OWN, 2, ME - 1)])
def test_a_revoke_of_something_else_is_ignored(worker, broker, lease, session):
    worker.get_job(1, F, 0)
    worker.get_job(2, F, 1)
    assert worker.get(revoke(broker, lease, worker=session)) == []
    assert len(worker.machine.jobs.held) == 2


# -- what the report says ----------------------------------------------------------------------------


def test_pending_are_jobs_and_outputs_of_this_step(worker):
    worker.work(1, F, 0)
    (run,) = of_type(worker.get_job(2, B, 1), Run)
    worker.get_job(3, F, 2)
    worker.get_job(4, F, 3, step=1)
    worker.get_job(5, EVALUATE, 4, purpose=Purpose.EVALUATE)
    assert ledger.from_bytes(reported(worker.tick(1.0)).pending) == 0b111
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    heartbeat = reported(worker.ran(run))
    assert (ledger.from_bytes(heartbeat.ledger), ledger.from_bytes(heartbeat.pending)) == (0b10, 0b111)
    worker.get(ack(BEFORE, 1, Direction.BACKWARD))
    assert ledger.from_bytes(reported(worker.tick(2.0)).pending) == 0b101


def test_the_average_job_is_reported(worker):
    assert reported(worker.tick(1.0)).job_s == 0.0
    worker.work(1, F, 0)
    worker.work(2, F, 1)
    assert reported(worker.tick(2.0)).job_s == 0.5


def test_a_view_that_lacks_somebody_is_answered_at_once(worker):
    assert reported(worker.get(view(2), frames=MEMBERS[:-1])).view == 2
    assert of_type(worker.get(view(3), frames=MEMBERS), WorkerHeartbeat) == []


def test_jobs_of_a_broker_that_has_left_are_dropped(worker):
    (run,) = of_type(worker.get_job(1, B, 0, broker=OTHER), Run)
    worker.get_job(2, B, 1, broker=OTHER)
    worker.get_job(3, B, 2)
    worker.get(view(2), frames=(*MEMBERS[:2], *MEMBERS[3:]))
    assert {held.job.lease for held in worker.machine.jobs.held.values()} == {1, 3}
    assert worker.get_job(4, B, 3, broker=OTHER) == []
    (run,) = of_type(worker.ran(run), Run)
    assert run.key[3] == 2


def test_a_broker_that_no_view_has_named_yet_may_lease(worker):
    assert of_type(worker.get_job(1, B, 0, broker=50), Run)


def test_outputs_for_a_broker_that_has_left_are_dropped(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    worker.ran(run)
    worker.get(view(2), frames=[m for m in MEMBERS if m.member != BEFORE])
    assert (of_type(worker.tick(1.0), Backward), list(worker.machine.outbox.pending())) == ([], [])


def be_silent_for(worker: Fixture, from_s: float, to_s: float) -> WorkerHeartbeat:
    now_s = from_s
    while now_s < to_s:
        now_s += 1.0
        worker.now_s = now_s - 0.5
        worker.get(heartbeat_ack(1))
        for broker in (OWN, OTHER):
            worker.get(heartbeat_ack(1, of=broker))
        commands = worker.tick(now_s)
    return reported(commands)


def test_a_broker_that_owes_an_answer_and_is_silent_is_accused(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    assert be_silent_for(worker, 0.0, SILENCE_HEARTBEATS).accused == ()
    assert be_silent_for(worker, SILENCE_HEARTBEATS, SILENCE_HEARTBEATS + 1).accused == (BEFORE,)
    worker.get(ack(BEFORE, 0, Direction.BACKWARD))
    assert reported(worker.tick(SILENCE_HEARTBEATS + 2)).accused == ()


def test_a_participant_that_owes_an_answer_and_is_silent_is_accused(worker):
    peer = 22
    worker.get(view(2), frames=(*MEMBERS, worker_at(peer, 1)))
    worker.get(prepare(1, (ME, peer)))
    assert of_type(worker.do(Snapshotted(round=1, shards=((load("g"),), (load("g"),)))), Chunk)
    assert be_silent_for(worker, 0.0, SILENCE_HEARTBEATS - 1).accused == ()
    assert be_silent_for(worker, SILENCE_HEARTBEATS - 1, SILENCE_HEARTBEATS).accused == (peer,)


@pytest.mark.parametrize("silent", [TRAINER, OWN])
def test_the_trainer_and_the_own_brokers_answer_in_any_case(worker, silent):
    for now_s in (1.0, 2.0) if silent == TRAINER else (1.0, 2.0, 3.0):
        assert reported(worker.tick(now_s)).accused == ()
        for speaker in {TRAINER, OWN, OTHER} - {silent}:
            worker.get(heartbeat_ack(1, of=speaker))
    assert reported(worker.tick(now_s + 1.0)).accused == (silent,)
    worker.get(heartbeat_ack(1, of=silent))
    for speaker in {TRAINER, OWN, OTHER} - {silent}:
        worker.get(heartbeat_ack(1, of=speaker))
    assert reported(worker.tick(now_s + 2.0)).accused == ()


def test_a_broker_that_was_never_greeted_owes_nothing():
    """As long as the stage is not built."""
    worker = Fixture(built=False)
    for now_s in (1.0, 2.0, 3.0, 4.0):
        worker.get(heartbeat_ack(1))
        assert reported(worker.tick(now_s)).accused == ()


def test_who_was_not_running_itself_accuses_nobody(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    assert reported(worker.tick(50.0)).accused == ()
    assert be_silent_for(worker, 50.0, 52.0).accused == ()
    assert be_silent_for(worker, 52.0, 54.0).accused == (BEFORE,)


def test_not_more_are_accused_than_a_report_can_name():
    many = range(100, 100 + MAX_ACCUSED + 4)
    worker = Fixture(members=(*MEMBERS, *(broker_at(session, 0) for session in many)))
    for lease, home in enumerate(many):
        (run,) = of_type(worker.get_job(lease + 1, B, lease, route=(home, OWN)), Run)
        worker.do(Emitted(lease=run.lease, dx=load("dx")))
        worker.ran(run)
    assert len(be_silent_for(worker, 0.0, SILENCE_HEARTBEATS + 2).accused) == MAX_ACCUSED


# -- masks -------------------------------------------------------------------------------------------


def test_mask_and_emit_go_their_way(worker):
    worker.get(credit(AFTER, SIZE_BYTES, producer=ME))
    (run,) = of_type(worker.get_job(1, F, 0, mask=b"\x05", emit=False, accumulate=False), Run)
    assert (run.accumulate, run.emit) == (False, False)
    (forward,) = of_type(worker.ran(run), Forward)
    assert (forward.mask, forward.route) == (b"\x05", ROUTE)
    (run,) = of_type(worker.get_job(2, B, 0, mask=b"\x02", emit=False), Run)
    assert (run.accumulate, run.emit) == (True, False)
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward) == []


def test_a_job_for_another_session_is_not_taken(worker):
    assert worker.get_job(1, B, 0, worker=ME + 1) == []
    assert {ready.held for ready in of_type(worker.tick(1.0), Ready)} == {()}
