from __future__ import annotations

import gc
import weakref

import pytest

from brokers.entries import first_lease
from brokers.machine import BrokerMachine
from tests.letters import (
    OTHER_RUN,
    attach,
    backward,
    fence,
    forward,
    heartbeat_ack,
    of_type,
    one_of_each,
    ready,
    register,
    reject,
    result,
    stop,
    view,
    void,
    welcome,
    worker_at,
)
from zswarm.ids import TRAINER, Address, Link, NackCode, NodeId
from zswarm.machine import Exit, Leave, Received, Tick
from zswarm.messages import BrokerHeartbeat, Job, Nack, Register, Stop

TRAINER_AT = Address("sim://trainer")
MINE = 50
MEMBERS = (worker_at(11, 0), worker_at(21, 1))


def machine() -> BrokerMachine:
    return BrokerMachine(
        node=NodeId("broker-0"),
        boot_nonce=5,
        addresses=(Address("sim://b/control"), Address("sim://b/work")),
        coordinator=TRAINER_AT,
        capacity_bytes=10_000,
    )


def get(broker: BrokerMachine, message, now=0.0, peer=TRAINER_AT, frames=()):
    return broker.handle(Received(peer=peer, message=message, frames=frames), now)


def welcomed() -> BrokerMachine:
    broker = machine()
    get(broker, welcome(MINE, nonce=5, stage=1))
    get(broker, view(1), frames=MEMBERS)
    assert broker.next_deadline_s() == 1.0
    return broker


def test_it_registers_until_it_is_welcome():
    broker = machine()
    assert broker.next_deadline_s() == float("-inf")
    for now in (0.0, 1.0, 2.0):
        (message,) = of_type(broker.handle(Tick(), now), Register)
        assert (message.node, message.boot_nonce, message.session) == ("broker-0", 5, 0)
        assert broker.handle(Tick(), now) == []
        assert broker.next_deadline_s() == now + 1.0
    (heartbeat,) = of_type(get(broker, welcome(MINE, nonce=5, stage=1), now=2.5), BrokerHeartbeat)
    assert (heartbeat.session, heartbeat.stage, heartbeat.view) == (MINE, 1, 0)
    assert of_type(broker.handle(Tick(), 3.5), Register) == []


def test_the_heartbeat_says_what_the_queue_holds():
    broker = welcomed()
    send_forwards(broker, 2, step=3)
    (heartbeat,) = of_type(broker.handle(Tick(), 1.0), BrokerHeartbeat)
    assert (heartbeat.branch, heartbeat.step, heartbeat.active, heartbeat.ahead) == (0, 3, b"\x03", b"")
    assert (heartbeat.voided, heartbeat.accused, heartbeat.view) == (0, (), 1)
    get(broker, forward(11, 9, step=4, route=(MINE,)), now=1.5, frames=("x",))
    for lease in range(2):
        get(broker, result(21, first_lease(MINE) + lease, step=3, slots=1), now=1.5)
        get(broker, backward(31, lease, step=3), now=1.5, frames=("dy",))
    get(broker, result(21, first_lease(MINE) + 2, step=3, slots=0), now=1.5)
    (later,) = of_type(broker.handle(Tick(), 2.0), BrokerHeartbeat)
    assert (later.active, later.ahead) == (b"\x02", b"\x00\x02")
    assert later.report > heartbeat.report


def send_forwards(broker: BrokerMachine, count: int, *, step: int = 0) -> list:
    """Have a worker with one slot and some microbatches; returns what the last Forward was answered by."""
    get(broker, attach(11), peer=Link(b"p"))
    get(broker, attach(21), peer=Link(b"w"))
    get(broker, ready(21, slots=1, step=step), peer=Link(b"c"))
    commands = []
    for microbatch in range(count):
        message = forward(11, microbatch, step=step, route=(MINE,))
        commands = get(broker, message, peer=Link(b"p"), frames=("x",))
    return commands


def test_before_it_knows_better_its_step_is_that_of_the_welcome():
    broker = machine()
    (heartbeat,) = of_type(get(broker, welcome(MINE, nonce=5, stage=1, step=7, branch=2)), BrokerHeartbeat)
    assert (heartbeat.branch, heartbeat.step) == (2, 7)


def test_a_void_is_answered_at_once():
    broker = welcomed()
    send_forwards(broker, 2)
    (heartbeat,) = of_type(get(broker, void(4, 0b01), now=0.5), BrokerHeartbeat)
    assert (heartbeat.voided, heartbeat.active) == (4, b"\x02")
    assert of_type(broker.handle(Tick(), 1.4), BrokerHeartbeat) == []
    assert broker.next_deadline_s() == 1.5
    (heartbeat,) = of_type(get(broker, ready(21, step=1), now=1.5), BrokerHeartbeat)
    assert heartbeat.voided == 4, "of whichever step"


@pytest.mark.parametrize(
    ("members", "speaks"),
    [(MEMBERS[:1], True), ((*MEMBERS, worker_at(31, 2)), False), (MEMBERS, False)],
    ids=["one less", "one more", "the same"],
)
def test_a_view_that_lacks_somebody_is_answered_at_once(members, speaks):
    broker = welcomed()
    heartbeats = of_type(get(broker, view(2), now=0.5, frames=members), BrokerHeartbeat)
    assert [heartbeat.view for heartbeat in heartbeats] == [2] * speaks


def test_who_has_a_job_and_is_silent_is_accused():
    broker = welcomed()
    send_forwards(broker, 1)
    for now in (1.0, 2.0, 3.0):
        (heartbeat,) = of_type(broker.handle(Tick(), now), BrokerHeartbeat)
        assert heartbeat.accused == ()
        get(broker, heartbeat_ack(1), now=now)
    (heartbeat,) = of_type(broker.handle(Tick(), 4.0), BrokerHeartbeat)
    assert heartbeat.accused == (21,)


def test_a_broker_that_does_not_hear_the_trainer_says_so():
    """The trainer may hear it all the same."""
    broker = welcomed()
    for now in (1.0, 2.0):
        assert of_type(broker.handle(Tick(), now), BrokerHeartbeat)[0].accused == ()
    assert of_type(broker.handle(Tick(), 3.0), BrokerHeartbeat)[0].accused == (TRAINER,)
    assert of_type(get(broker, heartbeat_ack(1), now=5.0), BrokerHeartbeat)[0].accused == ()


@pytest.mark.parametrize("event", [Tick(), Received(peer=TRAINER_AT, message=view(2), frames=MEMBERS[1:])])
def test_a_broker_that_was_frozen_accuses_nobody_for_it(event):
    """Its mail is still in the sockets when it finds its heartbeat due, whatever wakes it."""
    broker = welcomed()
    send_forwards(broker, 1)
    broker.handle(Tick(), 1.0)
    for now, accused in ((9.0, ()), (10.0, ()), (11.0, (21,))):
        if now == 10.0:
            get(broker, heartbeat_ack(1), now=9.5)
        (heartbeat,) = of_type(broker.handle(event if now == 9.0 else Tick(), now), BrokerHeartbeat)
        assert heartbeat.accused == accused


def test_a_fenced_broker_begins_a_new_life_with_nothing():
    broker = welcomed()
    send_forwards(broker, 2)
    (message,) = of_type(get(broker, fence(MINE), now=0.5), Register)
    assert (message.session, message.stage) == (MINE, 1)
    assert message.boot_nonce != 5
    assert broker.queue is None
    assert get(broker, fence(MINE), now=0.6) == [], "it repeats itself while the old session's words arrive"
    assert get(broker, forward(11, 0, route=(MINE,)), now=0.7, frames=("x",)) == []
    get(broker, welcome(MINE, nonce=5, stage=1), now=0.8)
    assert broker.queue is None, "that is for the old life"
    get(broker, welcome(51, nonce=message.boot_nonce, stage=1), now=0.9)
    assert broker.queue.entries == {}
    (nack,) = of_type(get(broker, forward(11, 0, route=(MINE,)), now=1.0, frames=("x",)), Nack)
    assert (nack.code, nack.session) == (NackCode.STALE, 51)


def test_what_a_fenced_broker_held_is_free_at_once():
    """Its entries and what holds them referred to each other: the payloads waited for the garbage collector."""

    class Payload:
        pass

    broker = welcomed()
    get(broker, attach(11), peer=Link(b"p"))
    get(broker, attach(21), peer=Link(b"w"))
    get(broker, ready(21, slots=1), peer=Link(b"c"))
    payloads = [Payload(), Payload()]
    held = [weakref.ref(payload) for payload in payloads]
    for microbatch in range(2):
        get(broker, forward(11, microbatch, route=(MINE,)), peer=Link(b"p"), frames=(payloads.pop(),))
    assert [ref() is None for ref in held] == [False, False], "one is leased, one is queued"
    gc.disable()
    try:
        get(broker, fence(MINE))
        assert [ref() is None for ref in held] == [True, True]
    finally:
        gc.enable()


@pytest.mark.parametrize("message", [fence(MINE + 1), fence(MINE, run=OTHER_RUN), fence(MINE, generation=0)])
def test_a_fence_for_somebody_else_changes_nothing(message):
    broker = welcomed()
    queue = broker.queue
    assert get(broker, message) == []
    assert (broker.queue, broker.membership.is_welcome) == (queue, True)


def test_a_second_welcome_changes_nothing():
    broker = welcomed()
    queue = broker.queue
    assert get(broker, welcome(77, stage=0, run=OTHER_RUN)) == []
    assert (broker.queue, broker.membership.session, broker.membership.stage) == (queue, MINE, 1)


@pytest.mark.parametrize("message", one_of_each(11, step=0), ids=lambda message: type(message).__name__)
def test_before_its_welcome_it_only_registers(message):
    broker = machine()
    assert {type(c.message) for c in get(broker, message, frames=("x",))} == {Register}
    assert broker.queue is None


@pytest.mark.parametrize("session", [11, 21, TRAINER, 999])
@pytest.mark.parametrize("message", one_of_each(0, step=3), ids=lambda message: type(message).__name__)
def test_any_message_from_anybody_is_harmless(message, session):
    """Twice, from a connection that we dialled and one that dialled us; then the queue still works."""
    broker = welcomed()
    message = type(message)(
        **{name: getattr(message, name) for name in message.__dataclass_fields__} | {"session": session}
    )
    for peer in (Link(b"somebody"), TRAINER_AT):
        for _ in range(2):
            commands = get(broker, message, peer=peer, frames=MEMBERS)
            assert of_type(commands, Exit) == []
    get(broker, attach(11), peer=Link(b"p"))
    get(broker, attach(21), peer=Link(b"w"))
    get(broker, ready(21, step=9), peer=Link(b"c"))
    commands = get(broker, forward(11, 4, step=9, route=(MINE,)), peer=Link(b"p"), frames=("x",))
    assert [(job.microbatch, job.step) for job in of_type(commands, Job)] == [(4, 9)]


@pytest.mark.parametrize("header", [{"run": OTHER_RUN}, {"generation": 0}], ids=["other run", "passed generation"])
def test_foreign_messages_are_dropped(header):
    broker = welcomed()
    assert get(broker, stop(**header)) == []
    assert get(broker, view(9, **header), frames=()) == []
    assert get(broker, reject(**header)) == []
    assert broker.membership.members == MEMBERS


def test_an_older_view_is_dropped():
    broker = welcomed()
    get(broker, view(3), frames=(*MEMBERS, worker_at(22, 1)))
    get(broker, view(2), frames=MEMBERS)
    assert set(broker.queue.workers) == {21, 22}


def test_a_newer_trainer_begins_to_count_its_views_anew():
    broker = welcomed()
    get(broker, view(9), frames=MEMBERS)
    get(broker, view(1, generation=2), frames=MEMBERS[:1])
    assert set(broker.queue.workers) == set()


@pytest.mark.parametrize(
    ("is_welcome", "header", "ends"),
    [
        (False, {"run": OTHER_RUN}, True),
        (True, {"run": OTHER_RUN}, False),
        (True, {"generation": 0}, False),
        (True, {}, True),
        (True, {"run": 0, "generation": 0}, True),
    ],
    ids=["new", "of another run", "of an older trainer", "of this run", "of another version"],
)
def test_reject_ends_whom_it_concerns(is_welcome, header, ends):
    broker = welcomed() if is_welcome else machine()
    exits = of_type(get(broker, reject("the reason", **header)), Exit)
    assert exits == ([Exit(code=78, text="the reason")] if ends else [])


def test_stop_is_answered_before_it_ends():
    broker = welcomed()
    answer, end = get(broker, stop())
    assert (answer.peer, type(answer.message), answer.message.session) == (TRAINER_AT, Stop, MINE)
    assert end == Exit(code=0, text="the run is over")


def test_it_leaves_when_it_is_asked_to():
    broker = welcomed()
    farewell, end = broker.handle(Leave(), 9.0)
    assert (farewell.peer, type(farewell.message), farewell.message.session) == (TRAINER_AT, Stop, MINE)
    assert end == Exit(code=0, text="asked to leave")


def test_without_a_session_it_leaves_without_a_word():
    broker = welcomed()
    get(broker, fence(MINE))
    assert broker.handle(Leave(), 9.0) == machine().handle(Leave(), 9.0) == [Exit(code=0, text="asked to leave")]


@pytest.mark.parametrize("message", [register("x"), result(21, 1), backward(99, 1)])
def test_what_is_not_for_it_leaves_no_trace(message):
    broker = welcomed()
    get(broker, message, peer=Link(b"x"), frames=("f",))
    assert broker.queue.entries == {}
    assert broker.queue.leasing.depth == 0
