"""The loop of a process, over real sockets, with a machine that only listens."""

from __future__ import annotations

from dataclasses import replace

from tests.letters import forward, stop, view, worker_at
from zswarm import wire
from zswarm.loop import Loop
from zswarm.machine import Exit, Received, Send
from zswarm.messages import Forward, Parcel, Stop, TensorSpec, View


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
