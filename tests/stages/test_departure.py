"""A worker that is asked to leave: it begins nothing, ends what it has begun, and is let go or goes when time is up."""

from __future__ import annotations

import pytest

from stages.tasks import Emitted, Run
from tests.letters import ack, broker_at, commit, credit, drained, fence, job, load, of_type, prepare, view, worker_at
from tests.stages.one_worker import (
    AFTER,
    BEFORE,
    ME,
    MEMBERS,
    OTHER,
    OWN,
    ROUTE,
    TRAINER_AT,
    B,
    F,
    Fixture,
    new_machine,
)
from zswarm.ids import Direction, JobStatus, Leaving
from zswarm.limits import DRAIN_S
from zswarm.machine import Exit, Leave, Received
from zswarm.messages import Attach, Ready, Restore, Result, Stop, WorkerHeartbeat

PEER = 22
WITH_PEER = (*MEMBERS, worker_at(PEER, 1))


@pytest.fixture
def worker() -> Fixture:
    """One of two workers of its stage, with room at the next stage."""
    worker = Fixture(members=WITH_PEER)
    worker.get(credit(AFTER, 1000, producer=ME))
    return worker


def let_go(worker: Fixture, *brokers: int) -> list:
    """Have its brokers say that they have no job for it any more; returns what follows from the last word."""
    return [worker.get(drained(broker, worker=ME)) for broker in brokers or (OWN, OTHER)][-1]


def told(commands: list) -> Leaving:
    """Return what the newest report among the commands says of leaving."""
    return of_type(commands, WorkerHeartbeat)[-1].leaving


def test_whoever_has_nothing_in_hand_asks_its_brokers_and_goes_when_it_is_fenced(worker):
    commands = worker.do(Leave())
    assert told(commands) is Leaving.DRAINING
    assert {(ready.slots, ready.leaves) for ready in of_type(commands, Ready)} == {(0, True)}
    assert len(of_type(commands, Ready)) == 2, "both of its brokers hear it"
    assert told(let_go(worker)) is Leaving.IDLE
    commands = worker.get(fence(ME))
    (end,) = of_type(commands, Exit)
    assert (end.code, end.text) == (0, "asked to leave")
    assert commands[-1] is end


def test_until_every_broker_has_let_it_go_a_job_may_be_on_its_way(worker):
    worker.do(Leave())
    assert of_type(let_go(worker, OWN, OWN, AFTER), WorkerHeartbeat) == []
    (late,) = of_type(worker.get_job(1, F, 0, broker=OTHER), Result)
    assert late.status is JobStatus.REVOKED
    assert told(worker.tick(1.0)) is Leaving.DRAINING
    assert told(let_go(worker, OTHER)) is Leaving.IDLE
    commands = worker.get(view(2), frames=(*WITH_PEER, broker_at(77, 1)))
    assert told(commands) is Leaving.DRAINING, "there is a broker that knows nothing of it"
    assert told(let_go(worker, 77)) is Leaving.IDLE


@pytest.mark.parametrize("of", [{"worker": PEER}, {"run": 77}, {"worker": ME, "generation": 0}])
def test_a_word_for_somebody_else_lets_nobody_go(worker, of):
    worker.do(Leave())
    let_go(worker, OWN)
    worker.get(drained(OTHER, **of))
    assert told(worker.tick(1.0)) is Leaving.DRAINING


def test_who_has_not_asked_is_not_let_go(worker):
    """Drained answers a Ready that says that it leaves; before that it means nothing."""
    let_go(worker)
    assert told(worker.do(Leave())) is Leaving.DRAINING


def test_jobs_that_have_not_begun_are_handed_back_and_what_comes_is_not_taken(worker):
    worker.get_job(1, F, 0)
    worker.get_job(2, F, 1)
    commands = worker.do(Leave())
    (result,) = of_type(commands, Result)
    assert (result.lease, result.status, result.slots) == (2, JobStatus.REVOKED, 0)
    assert told(commands) is Leaving.DRAINING
    (late,) = of_type(worker.get_job(3, B, 2), Result)
    assert (late.lease, late.status) == (3, JobStatus.REVOKED)
    (again,) = of_type(worker.get_job(2, F, 1), Result)
    assert (again.lease, again.status) == (2, JobStatus.REVOKED)
    assert len(worker.machine.jobs.held) == 1


def test_what_has_begun_is_ended_and_its_output_acknowledged_first(worker):
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    worker.do(Leave())
    let_go(worker)
    commands = worker.ran(run)
    assert [result.status for result in of_type(commands, Result)] == [JobStatus.DONE]
    assert told(worker.tick(1.0)) is Leaving.DRAINING, "the output is on its way"
    assert told(worker.get(ack(AFTER, 0, Direction.FORWARD))) is Leaving.IDLE


def test_a_job_of_which_only_the_gradient_of_its_input_is_out_is_not_ended(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.do(Leave())
    let_go(worker)
    worker.do(Emitted(lease=run.lease, dx=load("dx0")))
    assert told(worker.get(ack(BEFORE, 0, Direction.BACKWARD)) or worker.tick(1.0)) is Leaving.DRAINING
    commands = worker.ran(run)
    assert (told(commands), worker.machine.state.ledger) == (Leaving.IDLE, 0b1)


def test_what_it_has_counted_stays_reported_and_takes_part_in_the_commit(worker):
    worker.work(1, B, 0)
    worker.get(ack(BEFORE, 0, Direction.BACKWARD))
    worker.do(Leave())
    (heartbeat,) = of_type(let_go(worker), WorkerHeartbeat)
    assert (heartbeat.ledger, heartbeat.leaving) == (b"\x01", Leaving.IDLE)
    commands = worker.step()
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert (heartbeat.step, heartbeat.ledger, heartbeat.leaving) == (1, b"", Leaving.IDLE)
    assert of_type(commands, Exit) == [], "the coordinator lets it go"


def test_it_says_that_it_leaves_with_each_heartbeat(worker):
    worker.do(Leave())
    let_go(worker)
    for now_s in (1.0, 2.0, 3.0):
        commands = worker.tick(now_s)
        assert told(commands) is Leaving.IDLE
        assert all(ready.leaves for ready in of_type(commands, Ready))


def test_it_goes_when_the_time_is_up_whatever_it_has(worker):
    worker.get_job(1, F, 0)
    worker.now_s = 5.0
    worker.do(Leave())
    assert worker.machine.next_deadline_s() <= 5.0 + DRAIN_S
    assert of_type(worker.tick(4.9 + DRAIN_S), Exit) == []
    assert worker.machine.next_deadline_s() == 5.0 + DRAIN_S
    farewell, end = worker.tick(5.0 + DRAIN_S)
    assert (farewell.peer, type(farewell.message), farewell.message.session) == (TRAINER_AT, Stop, ME)
    assert (end.code, end.text) == (0, "asked to leave")


def test_asked_a_second_time_it_goes_at_once(worker):
    worker.get_job(1, F, 0)
    worker.do(Leave())
    farewell, end = worker.do(Leave())
    assert (type(farewell.message), end.code) == (Stop, 0)


def test_without_a_session_it_goes_at_once():
    (end,) = new_machine().handle(Leave(), 0.0)
    assert end.code == 0
    worker = Fixture(members=WITH_PEER)
    worker.get(fence(ME))
    assert of_type(worker.do(Leave()), Exit)


def test_alone_and_with_nothing_that_anybody_needs_it_goes_at_once():
    """A swarm that is still gathering must not keep anybody's machine for ten seconds."""
    farewell, end = Fixture().do(Leave())
    assert (type(farewell.message), end.code) == (Stop, 0)
    assert of_type(Fixture(built=False).do(Leave()), Exit)


def test_alone_in_its_stage_it_goes_on_until_somebody_comes():
    worker = Fixture()
    worker.step()
    commands = worker.do(Leave())
    assert (of_type(commands, Exit), told(commands)) == ([], Leaving.DRAINING)
    assert of_type(worker.get_job(1, B, 0, step=1), Run), "nobody else could do it"
    worker.get_job(2, B, 1, step=1)
    commands = worker.get(view(2, step=1), frames=WITH_PEER)
    (result,) = of_type(commands, Result)
    assert (result.lease, result.status) == (2, JobStatus.REVOKED)
    assert {ready.leaves for ready in of_type(commands, Ready)} == {False, True}
    assert of_type(commands, Ready)[-1].slots == 0


def test_once_it_drains_it_takes_no_job_even_if_it_is_alone_again(worker):
    """An idle worker is let go at any moment: it must not have taken something meanwhile."""
    worker.do(Leave())
    let_go(worker)
    worker.get(view(2), frames=MEMBERS)
    assert of_type(worker.get_job(1, F, 0), Run) == []
    assert told(worker.tick(1.0)) is Leaving.IDLE


def test_a_broker_that_closes_hears_when_nothing_comes_any_more(worker):
    worker.work(1, F, 0)
    assert of_type(worker.get(credit(AFTER, 1000, producer=ME, received_bytes=0, closes=True)), Attach) == []
    commands = worker.get(ack(AFTER, 0, Direction.FORWARD))
    assert [attach.is_done for attach in of_type(commands, Attach)] == [True]
    assert of_type(worker.work(2, F, 1), Attach) == [], "it has been said"
    said = {send.peer: send.message.is_done for send in worker.tick(1.0) if isinstance(send.message, Attach)}
    assert said == {f"sim://broker-{b}/work": b == AFTER for b in (OWN, OTHER, AFTER)}


def test_a_fence_of_somebody_else_is_no_leave_to_go(worker):
    worker.do(Leave())
    assert of_type(worker.get(fence(PEER)), Exit) == []


def test_rounds_and_commits_are_served_while_it_drains(worker):
    worker.work(1, B, 0)
    worker.do(Leave())
    assert worker.get(prepare(1, (ME,), counted=1))
    assert worker.get(commit(9)) == [], "no result of that round"


@pytest.mark.parametrize("message", [job(OWN, 7, F, 0, route=ROUTE[:2])])
def test_a_worker_that_leaves_gives_its_state_and_nothing_else(worker, message):
    worker.do(Leave())
    commands = worker.do(Received(peer=TRAINER_AT, message=message, frames=("x",)))
    assert of_type(commands, Run) == of_type(commands, Restore) == []
