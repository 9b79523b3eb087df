"""A broker that is asked to leave: it grants nothing, and is let go when nothing is left and nothing can come."""

from __future__ import annotations

from typing import Any

import pytest

from brokers.entries import first_lease
from brokers.machine import BrokerMachine
from tests.brokers.test_machine import MINE, TRAINER_AT, get, machine, welcomed
from tests.letters import (
    attach,
    backward,
    broker_at,
    fence,
    forward,
    of_type,
    ready,
    result,
    stop,
    view,
    worker_at,
)
from zswarm.ids import JobKind, JobStatus, Leaving, Link, Session
from zswarm.limits import DRAIN_S
from zswarm.machine import Exit, Leave, Tick
from zswarm.messages import Ack, BrokerHeartbeat, Credit, Drained, Job, Stop

PRODUCER, OTHER_PRODUCER, WORKER = 11, 12, 21
ALONE = (worker_at(PRODUCER, 0), worker_at(OTHER_PRODUCER, 0), worker_at(WORKER, 1), broker_at(MINE, 1))
MEMBERS = (*ALONE, broker_at(51, 1))


def with_members(members: tuple[Any, ...] = MEMBERS) -> BrokerMachine:
    """Return a broker of stage 1 whose producers and worker are attached."""
    broker = welcomed()
    get(broker, view(2), frames=members)
    for session in (PRODUCER, OTHER_PRODUCER, WORKER):
        get(broker, attach(session), peer=Link(b"%d" % session))
    get(broker, ready(WORKER))
    return broker


def told(commands: list[Any]) -> list[Leaving]:
    return [heartbeat.leaving for heartbeat in of_type(commands, BrokerHeartbeat)]


def say_done(broker: BrokerMachine, *producers: int) -> list[Any]:
    commands: list[Any] = []
    for session in producers:
        commands += get(broker, attach(session, is_done=True), peer=Link(b"%d" % session))
    return commands


def take(broker: BrokerMachine, microbatch: int, *, step: int = 0) -> list[Any]:
    return get(broker, forward(PRODUCER, microbatch, step=step, route=(MINE,)), frames=("x",), peer=Link(b"11"))


def test_it_tells_every_producer_and_grants_nothing_any_more():
    broker = with_members()
    before = {session: account.granted_bytes for session, account in broker.queue.credits.accounts.items()}
    commands = broker.handle(Leave(), 0.5)
    assert {(c.room.producer, c.room.closes) for c in of_type(commands, Credit)} == {(11, True), (12, True)}
    assert told(commands) == [Leaving.DRAINING]
    commands = take(broker, 0)
    assert [a.room.closes for a in of_type(commands, Ack)] == [True]
    assert of_type(commands, Job), "what was promised is taken"
    assert {s: account.granted_bytes for s, account in broker.queue.credits.accounts.items()} == before


def test_it_is_idle_when_no_producer_sends_any_more():
    broker = with_members()
    broker.handle(Leave(), 0.5)
    assert told(say_done(broker, PRODUCER)) == []
    assert told(say_done(broker, OTHER_PRODUCER)) == [Leaving.IDLE]
    assert told(broker.handle(Tick(), 2.0)) == [Leaving.IDLE]


def test_a_producer_without_credit_need_not_say_anything():
    broker = with_members()
    account = broker.queue.credits.account(Session(OTHER_PRODUCER))
    for microbatch in range(2):
        get(broker, forward(OTHER_PRODUCER, microbatch, route=(MINE,)), frames=("x",), peer=Link(b"12"))
    broker.queue.credits.is_closed = True
    while account.credit_bytes:
        microbatch += 1
        get(broker, forward(OTHER_PRODUCER, microbatch, route=(MINE,)), frames=("x",), peer=Link(b"12"))
    broker.handle(Leave(), 0.5)
    say_done(broker, PRODUCER)
    assert not broker.queue.is_settled
    commands = get(broker, ready(WORKER, step=1))
    assert (told(commands), broker.queue.is_settled) == ([Leaving.IDLE], True)


def test_a_done_that_was_said_before_it_closed_is_of_no_account():
    broker = with_members()
    say_done(broker, PRODUCER, OTHER_PRODUCER)
    assert told(broker.handle(Leave(), 0.5)) == [Leaving.DRAINING]


def test_it_stays_until_what_it_is_home_to_is_committed():
    """Also what is done: the worker that has counted it may be lost before the commit."""
    broker = with_members()
    take(broker, 0)
    broker.handle(Leave(), 0.5)
    say_done(broker, PRODUCER, OTHER_PRODUCER)
    get(broker, result(WORKER, first_lease(MINE)))
    (job,) = of_type(get(broker, backward(31, 0, route=(MINE,)), frames=("dy",), peer=Link(b"31")), Job)
    assert job.kind is JobKind.BACKWARD
    get(broker, result(WORKER, first_lease(MINE) + 1))
    assert told(broker.handle(Tick(), 2.0)) == [Leaving.DRAINING]
    assert told(get(broker, ready(WORKER, step=1))) == [Leaving.IDLE]


def test_a_view_of_the_next_step_says_that_the_step_is_committed():
    """A drained worker leaves with the commit: what it has counted must not be done again before anybody tells of it."""
    broker = with_members()
    take(broker, 0)
    get(broker, result(WORKER, first_lease(MINE)))
    get(broker, backward(31, 0, route=(MINE,)), frames=("dy",), peer=Link(b"31"))
    get(broker, result(WORKER, first_lease(MINE) + 1))
    others = (*(member for member in MEMBERS if member.member != WORKER), worker_at(22, 1))
    commands = get(broker, view(3, step=1), frames=others)
    commands += get(broker, attach(22), peer=Link(b"22")) + get(broker, ready(22))
    assert of_type(commands, Job) == []
    assert broker.queue.is_empty


def test_it_is_let_go_by_the_fence():
    broker = with_members()
    broker.handle(Leave(), 0.5)
    assert get(broker, fence(MINE)) == [Exit(code=0, text="asked to leave")]


@pytest.mark.parametrize("is_again", [True, False])
def test_it_goes_when_the_time_is_up_or_when_it_is_asked_again(is_again):
    broker = with_members()
    take(broker, 0)
    broker.handle(Leave(), 0.5)
    assert of_type(broker.handle(Tick(), 9.0), Exit) == []
    broker.handle(Tick(), 10.0)
    assert broker.next_deadline_s() == 0.5 + DRAIN_S
    farewell, end = broker.handle(Leave(), 9.5) if is_again else broker.handle(Tick(), 0.5 + DRAIN_S)
    assert (farewell.peer, type(farewell.message), farewell.message.session) == (TRAINER_AT, Stop, MINE)
    assert end == Exit(code=0, text="asked to leave")


def test_the_end_of_the_run_ends_it_too():
    broker = with_members()
    broker.handle(Leave(), 0.5)
    assert of_type(get(broker, stop()), Exit) == [Exit(code=0, text="the run is over")]


def test_alone_and_empty_it_goes_at_once():
    farewell, end = with_members(ALONE).handle(Leave(), 0.5)
    assert (type(farewell.message), end) == (Stop, Exit(code=0, text="asked to leave"))


def test_alone_it_goes_on_until_it_is_empty_or_another_comes():
    broker = with_members(ALONE)
    take(broker, 0)
    commands = broker.handle(Leave(), 0.5)
    assert (told(commands), of_type(commands, Credit)) == ([Leaving.DRAINING], [])
    commands = take(broker, 1)
    assert not any(ack.room.closes for ack in of_type(commands, Ack))
    commands = get(broker, view(3), frames=MEMBERS)
    assert {credit.room.closes for credit in of_type(commands, Credit)} == {True}
    other = with_members(ALONE)
    take(other, 0)
    other.handle(Leave(), 0.5)
    assert of_type(get(other, ready(WORKER, step=1)), Exit)


def test_a_worker_that_leaves_gets_no_job_and_its_backwards_go_to_others():
    broker = with_members((*MEMBERS, worker_at(22, 1)))
    take(broker, 0)
    get(broker, result(WORKER, first_lease(MINE), kept=True))
    get(broker, ready(WORKER, slots=0, leaves=True))
    assert of_type(get(broker, backward(31, 0, route=(MINE,)), frames=("dy",), peer=Link(b"31")), Job) == []
    get(broker, attach(22), peer=Link(b"22"))
    (job,) = of_type(get(broker, ready(22)), Job)
    assert (job.worker, job.kind, job.x is not None) == (22, JobKind.BACKWARD, True)


def test_a_worker_that_leaves_is_let_go_once_it_has_no_job_however_often_it_asks():
    broker = with_members((*MEMBERS, worker_at(22, 1)))
    take(broker, 0)
    asks = ready(WORKER, slots=0, leaves=True)
    assert of_type(get(broker, asks), Drained) == [], "it has a job"
    commands = get(broker, result(WORKER, first_lease(MINE), status=JobStatus.REVOKED, slots=2))
    (word,) = [command for command in commands if isinstance(command.message, Drained)]
    assert (word.peer, word.message.worker) == (Link(b"21"), WORKER)
    assert of_type(commands, Job) == [], "a late word of room is not believed"
    assert of_type(get(broker, ready(WORKER, slots=2)), Job) == [], "nor an older one that comes late"
    assert len(of_type(get(broker, asks), Drained)) == 1
    assert of_type(get(broker, ready(22, slots=0)), Drained) == []


def test_a_backward_that_waited_for_its_worker_waits_no_longer_when_that_leaves():
    broker = with_members((*MEMBERS, worker_at(22, 1)))
    get(broker, attach(22), peer=Link(b"22"))
    take(broker, 0)
    get(broker, result(WORKER, first_lease(MINE), kept=True, slots=0))
    get(broker, backward(31, 0, route=(MINE,)), frames=("dy",), peer=Link(b"31"))
    assert of_type(get(broker, ready(22)), Job) == [], "it is kept for the one that has its input"
    (job,) = of_type(get(broker, ready(WORKER, slots=0, leaves=True)), Job)
    assert job.worker == 22


def test_before_it_is_welcome_it_goes_at_once():
    assert machine().handle(Leave(), 0.0) == [Exit(code=0, text="asked to leave")]
