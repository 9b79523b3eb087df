from __future__ import annotations

import pytest

from brokers.machine import BrokerMachine
from tests.letters import (
    OTHER_RUN,
    attach,
    backward,
    forward,
    of_type,
    one_of_each,
    ready,
    register,
    reject,
    result,
    stop,
    view,
    welcome,
    worker_at,
)
from zswarm.ids import TRAINER, Address, Link, NodeId
from zswarm.machine import Exit, Received, Tick
from zswarm.messages import BrokerHeartbeat, Job, Register, Stop

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
    get(broker, welcome(MINE, stage=1))
    get(broker, view(1), frames=MEMBERS)
    return broker


def test_it_registers_until_it_is_welcome():
    broker = machine()
    assert broker.next_deadline_s() == float("-inf")
    for now in (0.0, 1.0, 2.0):
        (message,) = of_type(broker.handle(Tick(), now), Register)
        assert (message.node, message.boot_nonce, message.session) == ("broker-0", 5, 0)
        assert broker.handle(Tick(), now) == []
        assert broker.next_deadline_s() == now + 1.0
    (heartbeat,) = of_type(get(broker, welcome(MINE, stage=1), now=2.5), BrokerHeartbeat)
    assert (heartbeat.session, heartbeat.stage, heartbeat.view) == (MINE, 1, 0)
    assert of_type(broker.handle(Tick(), 3.5), Register) == []


def test_the_heartbeat_says_what_the_queue_holds():
    broker = welcomed()
    get(broker, attach(11), peer=Link(b"p"))
    get(broker, attach(21), peer=Link(b"w"))
    get(broker, ready(21, slots=1), peer=Link(b"c"))
    for microbatch in range(2):
        get(broker, forward(11, microbatch), peer=Link(b"p"), frames=("x",))
    (heartbeat,) = of_type(broker.handle(Tick(), 5.0), BrokerHeartbeat)
    assert (heartbeat.num_queued, heartbeat.num_leased, heartbeat.view) == (1, 1, 1)
    assert (heartbeat.held_bytes, heartbeat.free_bytes) == (400, 10_000 - 400 - 400)


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
    commands = get(broker, forward(11, 4, step=9), peer=Link(b"p"), frames=("x",))
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


@pytest.mark.parametrize("message", [register("x"), result(21, 1), backward(99, 1)])
def test_what_is_not_for_it_leaves_no_trace(message):
    broker = welcomed()
    get(broker, message, peer=Link(b"x"), frames=("f",))
    assert broker.queue.entries == {}
    assert broker.queue.depth == 0
