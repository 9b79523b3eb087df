"""The loop of a process, over real sockets, with a machine that only listens."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.letters import broker_at, forward, heartbeat_ack, stop, view, worker_at
from tests.transport.boards import DEADLINE_S, numbered, receive
from zswarm import wire
from zswarm.ids import Address
from zswarm.loop import Loop
from zswarm.machine import Exit, Received, Send
from zswarm.messages import Forward, Parcel, Stop, TensorSpec, View
from zswarm.transport import Switchboard


class Listener:
    """Keeps what it receives; leaves when it hears Stop."""

    def __init__(self, *commands):
        self.received = []
        self._commands = list(commands)

    def next_deadline_s(self):
        return None

    def handle(self, event, now):
        assert isinstance(event, Received)
        self.received.append(event)
        commands, self._commands = self._commands, []
        return [*commands, Exit(code=0, text="over")] if isinstance(event.message, Stop) else commands


def nothing_else(command):
    raise AssertionError(command)


def real_forward(content):
    """Return a Forward of bytes whose parcel says so."""
    spec = TensorSpec(codec="raw", dtype="uint8", shape=(len(content),), size_bytes=len(content))
    parcel = Parcel(tensors=(spec,), size_bytes=len(content), crc=wire.checksum((content,)))
    return replace(forward(1, 0), parcel=parcel)


def run(here, there, any_port, *letters):
    """Let a listener hear the letters, then Stop; returns it."""
    address = here.bind("work", any_port)
    for message, frames in (*letters, (stop(), ())):
        there.send(address, message, frames)
    there.poll(1.0)
    machine = Listener()
    assert Loop(machine, here, perform=nothing_else).run() == Exit(code=0, text="over")
    return machine


def test_a_changed_payload_is_lost_and_counted(here, there, any_port):
    """A payload whose bytes were changed on the way reaches no machine; the sender repeats it."""
    message = real_forward(b"payload")
    machine = run(here, there, any_port, (message, (b"paYload",)), (message, (b"payload",)))
    heard = [event for event in machine.received if isinstance(event.message, Forward)]
    assert [b"".join(bytes(frame) for frame in event.frames) for event in heard] == [b"payload"]
    assert here.counters.num_malformed == 1


def test_members_are_unpacked_and_nonsense_is_dropped(here, there, any_port):
    """The payload of a View becomes members; one that is none is as good as lost."""
    packed = wire.pack_members((worker_at(5, 1),))
    letters = [(replace(view(7), size_bytes=len(content)), (content,)) for content in (b"\xc1", packed)]
    machine = run(here, there, any_port, *letters)
    assert [event.frames for event in machine.received if isinstance(event.message, View)] == [(worker_at(5, 1),)]
    assert here.counters.num_malformed == 1


def test_members_are_packed_on_their_way_out(here, there, any_port):
    """A machine sends members; the wire carries their bytes, and the size in the header is theirs."""
    address, back = here.bind("coordinator", any_port), there.bind("control", any_port)
    there.send(address, stop())
    there.poll(1.0)
    machine = Listener(Send(peer=back, message=view(7), frames=(worker_at(5, 1),)))
    Loop(machine, here, perform=nothing_else).run()
    here.poll(1.0)
    (heard,) = there.poll(5.0)
    assert heard.message == replace(view(7), size_bytes=len(wire.pack_members((worker_at(5, 1),))))


def test_commands_are_carried_out_in_their_order(here, there, any_port):
    """A record is on the disk before the Commit that it is about leaves, whatever waits for the end of the turn."""
    address, back = here.bind("coordinator", any_port), there.bind("control", any_port)
    here.send(back, numbered(0))
    receive(1, here, there)
    there.send(address, stop())
    there.poll(1.0)
    sends = [Send(peer=back, message=heartbeat_ack(view)) for view in range(1, 5)]
    num_sent = []

    def perform(command):
        num_sent.append((command, here.counters.num_sent))
        return ()

    Loop(Listener(*sends[:2], "record", sends[2], "another", sends[3]), here, perform=perform).run()
    assert num_sent == [("record", 3), ("another", 4)]
    assert [heard.message.view for heard in receive(4, there)] == [1, 2, 3, 4]


class Unreachable:
    """What a machine is told of a dead link."""

    def __init__(self, peer):
        self.peer = peer


class Caller:
    """Sends to a link at its first event and to it again whenever it hears that it is dead, until it hears Stop."""

    def __init__(self, link):
        self._link = link
        self.heard = []

    def next_deadline_s(self):
        return None

    def handle(self, event, now):
        if isinstance(event, Unreachable):
            self.heard.append(event.peer)
        elif isinstance(event.message, Stop):
            return [Exit(code=0, text="over")]
        return [Send(peer=self._link, message=heartbeat_ack(1))] * 3


def dead_link(here, address):
    """The link of a peer that has come and gone, once sending to it has found that out."""
    with Switchboard() as gone:
        gone.send(address, numbered(0))
        (question,) = receive(1, here, gone)
    deadline_s = time.monotonic() + DEADLINE_S
    while here.send(question.peer, numbered(1)):
        assert time.monotonic() < deadline_s
        here.poll(0.01)
    here.take_unreachable()
    return question.peer


def test_a_machine_is_told_of_a_dead_link_in_the_same_turn_and_once(here, there, any_port):
    """Even if it answers by sending there again: the turn ends all the same."""
    address = here.bind("coordinator", any_port)
    machine = Caller(dead_link(here, address))
    loop = Loop(machine, here, perform=nothing_else, on_unreachable=Unreachable)
    for count in (1, 2):
        there.send(address, heartbeat_ack(1))
        deadline_s = time.monotonic() + DEADLINE_S
        while len(machine.heard) < count:
            assert time.monotonic() < deadline_s
            there.poll(0.0)
            loop._turn()
        assert machine.heard == [machine._link] * count
    there.send(address, stop())
    assert loop.run() == Exit(code=0, text="over")


def test_dead_links_pile_up_nowhere_when_nobody_wants_to_know(here, there, any_port):
    """A broker does not ask for them."""
    address = here.bind("work", any_port)
    machine = Caller(dead_link(here, address))
    there.send(address, heartbeat_ack(1))
    there.poll(1.0)
    num_lost = here.counters.num_lost
    loop = Loop(machine, here, perform=nothing_else)
    while here.counters.num_lost == num_lost:
        loop._turn()
    assert machine.heard == []
    assert here.take_unreachable() == []


class Participant:
    """Adopts views by their number, dials whom it sees, and leaves when it hears Stop."""

    def __init__(self):
        self.number = 0
        self.members = ()

    def next_deadline_s(self):
        return None

    def handle(self, event, now):
        if isinstance(event.message, Stop):
            return [Exit(code=0, text="over")]
        if event.message.view > self.number:
            self.number, self.members = event.message.view, event.frames
        return [Send(peer=address, message=heartbeat_ack(1)) for member in self.members for address in member.addresses]


def at_port(member, port):
    """A member whose addresses can be dialled, though nobody listens there."""
    return replace(
        member, addresses=tuple(Address(f"tcp://127.0.0.1:{port + n}") for n in range(len(member.addresses)))
    )


OLD, NEW, STAYS = at_port(broker_at(5, 1), 1), at_port(broker_at(7, 1), 3), at_port(worker_at(6, 0), 5)


def say_views(there, address, *views):
    for number, members in views:
        packed = wire.pack_members(members)
        there.send(address, replace(view(number), size_bytes=len(packed)), (packed,))
    there.send(address, stop())
    there.poll(1.0)


@pytest.mark.parametrize(
    ("views", "dialled"),
    [
        ([(1, (OLD, STAYS))], (OLD, STAYS)),
        ([(1, (OLD, STAYS)), (2, (NEW, STAYS))], (NEW, STAYS)),
        ([(2, (OLD, STAYS)), (1, (NEW, STAYS))], (OLD, STAYS)),
        ([(1, (OLD, STAYS)), (2, ()), (3, (OLD,))], (OLD,)),
    ],
    ids=["first", "newer", "older, not adopted", "back again"],
)
def test_who_has_left_the_view_is_hung_up_on(here, there, any_port, views, dialled):
    """Each process that has come and gone once cost a socket for ever; the coordinator is in no view and stays."""
    coordinator = there.bind("coordinator", any_port)
    here.send(coordinator, numbered(0))
    say_views(there, here.bind("control", any_port), *views)
    machine = Participant()
    Loop(machine, here, perform=nothing_else, members=lambda: machine.members).run()
    addresses = {address for member in dialled for address in member.addresses}
    assert set(here._dialled) == {coordinator, *addresses}


def test_weeks_of_churn_cost_no_sockets(here, there, any_port):
    """A hundred brokers come and go."""
    views = [(number, (at_port(broker_at(number, 1), 2 * number),)) for number in range(1, 101)]
    address = here.bind("control", any_port)
    there.send(address, numbered(0))
    receive(1, here, there)
    say_views(there, address, *views)
    machine = Participant()
    Loop(machine, here, perform=nothing_else, members=lambda: machine.members).run()
    assert machine.number == 100
    assert len(here._dialled) == 2


def test_whoever_sends_the_views_hangs_up_too(here, there, any_port):
    """A trainer dials brokers and workers itself."""
    address, back = here.bind("coordinator", any_port), there.bind("control", any_port)
    there.send(address, stop())
    there.poll(1.0)
    hello = [Send(peer=peer, message=heartbeat_ack(1)) for member in (OLD, STAYS) for peer in member.addresses]
    views = [Send(peer=back, message=view(n), frames=members) for n, members in ((1, (OLD, STAYS)), (2, (NEW, STAYS)))]
    machine = Listener(views[0], *hello, views[1])
    Loop(machine, here, perform=nothing_else).run()
    assert set(here._dialled) == {back, *STAYS.addresses}


def test_each_turn_is_told(here, there, any_port):
    """Also one in which nothing comes; the last is not, since the process ends with it."""
    address = here.bind("work", any_port)
    num_turns = []

    def turned():
        num_turns.append(len(num_turns))
        if len(num_turns) == 3:
            there.send(address, stop())
            there.poll(1.0)

    here.waker()()
    Loop(Listener(), here, perform=nothing_else).run(turned)
    assert len(num_turns) >= 3
