"""A member that makes up sessions, names or connections without end: what it costs others is bounded, for each table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brokers.queue import Queue
from tests.letters import SIZE_BYTES, ack, attach, broker_at, forward, of_type, register, room, welcome, worker_at
from zswarm import limits
from zswarm.ids import Address, Direction, Link, NodeId, Peer, Role, Stage
from zswarm.membership import Membership
from zswarm.messages import Ack, Credit
from zswarm.outbox import Outbox
from zswarm.trainer.roster import Roster
from zswarm.transport.connections import Connections
from zswarm.wiring import make_wiring

BOUND = 50
FLOOD = 40 * BOUND
PRODUCER = 11


def broker() -> Queue:
    """Return the queue of broker 40, of stage 1."""
    addresses = (Address("sim://control"), Address("sim://work"))
    me = Membership(
        node=NodeId("b"), boot_nonce=1, role=Role.BROKER, addresses=addresses, coordinator=Address("sim://trainer")
    )
    assert me.welcome(replace(welcome(40), stage=Stage(1), num_stages=3, boot_nonce=1))
    return Queue(me, capacity_bytes=100 * SIZE_BYTES)


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch):
    monkeypatch.setattr(limits, "MAX_REMEMBERED_PEERS", BOUND)
    monkeypatch.setattr(limits, "MAX_MEMBERS", BOUND)
    monkeypatch.setattr(limits, "MAX_ENDED_NODES", BOUND)


def test_sessions_that_attach_to_a_broker():
    """It kept a link for each for ever; those of its producers are never among the ones that go."""
    queue = broker()
    queue.set_members((broker_at(40, 1), worker_at(PRODUCER, 0)), (0, 0), 0.0)
    queue.attach(attach(PRODUCER), Link(b"11"), 0.0)
    for session in range(1000, 1000 + FLOOD):
        queue.attach(attach(session), Link(b"%d" % session), 0.0)
    assert len(queue._links) <= BOUND
    told = [send for send in queue.attach(attach(PRODUCER), Link(b"12"), 0.0) if send.peer == Link(b"12")]
    assert of_type(told, Credit)
    taken = queue.forward(forward(PRODUCER, 0, route=(40,)), (b"x",), Link(b"12"), 0.0)
    assert of_type(taken, Ack)


def test_sessions_that_answer_a_producer():
    """The ones that owe it an answer are still known to have spoken."""
    outbox = Outbox(wiring=make_wiring("uniform", lambda: 0.0), resend_s=1.0, me=PRODUCER, trainer=0)
    outbox.set_brokers({41: Address("sim://41")})
    outbox.update_room(41, room(2 * SIZE_BYTES, producer=PRODUCER), 0.0)
    outbox.put_forward(forward(PRODUCER, 0, route=(40,)), ("y",), 0.0)
    outbox.update_room(41, room(2 * SIZE_BYTES, producer=PRODUCER), 10.0)
    for session in range(1000, 1000 + FLOOD):
        outbox.acknowledge(ack(session, 0, Direction.FORWARD), 10.0)
    assert len(outbox._heard_at_s) <= BOUND
    assert outbox.silent(11.0, 3.0) == []
    assert outbox.silent(14.0, 3.0) == [41]


def test_names_that_come_and_go_at_the_trainer():
    """Of the dead, so many are remembered that no late copy of theirs does harm; of the living, so many let in."""
    roster = Roster(num_stages=2, first_session=1)
    peer: Peer = Address("sim://x")
    for index in range(FLOOD):
        record, _ = roster.register(register(f"w{index}"), peer, 0.0)
        roster.remove(record.session, 0.0)
    assert (len(roster._ended), len(roster.records), len(roster._by_node)) == (BOUND, 0, 0)
    index = 0
    while not roster.is_full(Role.WORKER):
        roster.register(register(f"v{index}"), peer, 0.0)
        index += 1
    assert index == BOUND


def test_connections_that_are_made_and_dropped():
    """A process remembers the newest of them."""
    connections = Connections()
    for index in range(FLOOD):
        connections[Link(b"%d" % index)].sequence = index
    assert len(connections._connections) == BOUND
    assert connections[Link(b"%d" % (FLOOD - 1))].sequence == FLOOD - 1
