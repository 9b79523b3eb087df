"""Messages without end: what a connection may have unfinished, and who is cut off."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq
from structlog.testing import capture_logs

from tests.transport.boards import numbered, poll_until, receive
from zswarm import limits
from zswarm.benchmarks.strangers import frame, greeting, ready
from zswarm.ids import Address
from zswarm.transport import Switchboard, cutoff, switchboard
from zswarm.transport.addresses import Endpoint, endpoint_of
from zswarm.transport.arrivals import Arrivals, Stream, Streams, shut_down
from zswarm.transport.cutoff import Cutoff

TOO_MUCH = limits.MAX_UNFINISHED_BYTES + 1
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes of a connection")


def stream(read_bytes: int, *, number: int = 5, inode: int = 77) -> Stream:
    """Return a connection."""
    return Stream(number=number, inode=inode, local=("::1", 1), remote=("::1", 2), read_bytes=read_bytes)


def test_who_has_sent_more_than_a_message_and_no_message_is_found() -> None:
    """Up to the size of the largest message there may be one on its way."""
    arrivals = Arrivals()
    arrivals.look([stream(0)], ())
    assert arrivals.look([stream(TOO_MUCH - 1)], ()) == []
    assert arrivals.look([stream(TOO_MUCH)], ()) == [stream(TOO_MUCH)]
    assert arrivals.look([stream(TOO_MUCH)], ()) == [stream(TOO_MUCH)]


def test_a_message_begins_the_count_anew() -> None:
    """However much has come before it."""
    arrivals = Arrivals()
    assert arrivals.look([stream(3 * TOO_MUCH)], {5}) == []
    assert arrivals.look([stream(4 * TOO_MUCH - 1)], {6}) == []
    assert arrivals.look([stream(4 * TOO_MUCH)], ()) == [stream(4 * TOO_MUCH)]


def test_a_number_that_is_used_again_is_another_connection() -> None:
    """What came over the one before does not count for it, nor against it."""
    arrivals = Arrivals()
    arrivals.look([stream(9 * TOO_MUCH, inode=1)], {5})
    assert arrivals.look([stream(10, inode=2)], ()) == []
    assert arrivals.look([stream(TOO_MUCH + 10, inode=2)], ()) == [stream(TOO_MUCH + 10, inode=2)]


def test_what_came_before_the_first_look_does_not_count() -> None:
    """It may have been whole messages: nobody has looked, since all files were open."""
    arrivals = Arrivals()
    assert arrivals.look([stream(5 * TOO_MUCH)], ()) == []
    assert arrivals.look([stream(6 * TOO_MUCH - 1)], ()) == []
    assert arrivals.look([stream(6 * TOO_MUCH)], ()) == [stream(6 * TOO_MUCH)]


def test_no_look_while_all_files_are_open_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers that took all of a broker's files ended it: the list of its files could not be read."""

    def refuse(*_: object) -> list[Stream]:
        raise OSError(errno.EMFILE, "Too many open files")

    now = 0.0
    watch = Cutoff(clock=lambda: now)
    monkeypatch.setattr(Streams, "between", refuse)
    peer = Address("tcp://127.0.0.1:1")
    watch.heard[peer] = zmq.Frame(b"x")
    assert watch.look_if_due() == []
    assert list(watch.heard) == [peer], "it may not look as if nothing had come"
    assert watch.wait_s == pytest.approx(cutoff.LOOK_S)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("tcp://127.0.0.1:80", ("127.0.0.1", 80)), ("tcp://[::1]:4711", ("::1", 4711)), ("ipc:///tmp/x", None)],
)
def test_endpoints_are_written_as_the_system_writes_them(address: str, endpoint: Endpoint | None) -> None:
    """Or no connection would ever be found to be of an address."""
    assert endpoint_of(Address(address)) == endpoint


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection, the one that was dialled first."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dialled = stack.enter_context(socket.create_connection(listener.getsockname()))
        yield stack.enter_context(listener.accept()[0]), dialled


@linux_only
def test_the_system_counts_what_has_been_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """What still waits in the kernel costs this process nothing; ends that are nobody's are left out."""
    near, far = pair
    streams, mine = Streams(), {near.getsockname(): None}
    (found,) = streams.between(mine, {})
    assert (found.number, found.local, found.remote) == (near.fileno(), near.getsockname(), far.getsockname())
    far.sendall(b"x" * 1000)
    assert near.recv(300, socket.MSG_WAITALL) == b"x" * 300
    assert [each.read_bytes for each in streams.between(mine, {})] == [300]
    assert [each.number for each in Streams().between({}, {near.getsockname(): None})] == [far.fileno()]
    assert Streams().between({("127.0.0.1", 1): None}, {}) == []


@linux_only
def test_what_is_shut_down_is_the_connection_that_was_looked_at(pair: tuple[socket.socket, socket.socket]) -> None:
    """Numbers are used again; the descriptor itself stays open, since libzmq owns it."""
    near, far = pair
    (found,) = Streams().between({near.getsockname(): None}, {})
    other = Stream(number=found.number, inode=found.inode + 1, local=found.local, remote=found.remote, read_bytes=0)
    assert not shut_down(other)
    far.sendall(b"x")
    assert near.recv(1) == b"x"
    assert shut_down(found)
    assert far.recv(1) == b""
    assert near.fileno() == found.number


ONE_FRAME = bytes(limits.MAX_FRAME_BYTES)


class Rude:
    """Sends frame after frame of one message that never ends, as much as the other side takes; called between polls."""

    def __init__(self, connected: socket.socket, socket_type: bytes) -> None:
        """Begin on a connection that somebody has made."""
        connected.sendall(greeting(b"NULL") + ready(socket_type))
        connected.setblocking(False)
        self._socket = connected
        self._frame = memoryview(frame(ONE_FRAME, more=True))
        self._sent_bytes = 0
        self.num_frames = 0
        self.is_cut_off = False

    def __call__(self, _received: object) -> bool:
        """Send what can be sent now; True when the connection is gone."""
        try:
            while True:
                self._sent_bytes += self._socket.send(self._frame[self._sent_bytes :])
                if self._sent_bytes == len(self._frame):
                    self._sent_bytes, self.num_frames = 0, self.num_frames + 1
        except BlockingIOError:
            pass
        except OSError:
            self.is_cut_off = True
        return self.is_cut_off


@linux_only
def test_who_dials_and_sends_without_end_is_cut_off(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """It is said in the log; others are served before, meanwhile and after."""
    address = here.bind("work", any_port)
    there.send(address, numbered(1))
    receive(1, here, there)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connected:
        rude = Rude(connected, b"DEALER")
        with capture_logs() as records:
            poll_until(lambda _: rude(_) or rude.num_frames > limits.MAX_FRAMES // 2, here)
            there.send(address, numbered(2))
            assert receive(1, here, there)[0].message == numbered(2)
            poll_until(rude, here)
    assert rude.num_frames > limits.MAX_FRAMES, "a message of that size may be sent"
    there.send(address, numbered(3))
    assert receive(1, here, there)[0].message == numbered(3)
    assert here.counters.num_cut_off == 1
    assert [(record["event"], record["peer"]) for record in records] == [("cut off", "tcp://127.0.0.1")]


@linux_only
def test_who_listens_and_answers_without_end_is_cut_off(here: Switchboard) -> None:
    """Whom we have dialled may be as rude."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack, capture_logs():
        here.send(Address(f"tcp://127.0.0.1:{listener.getsockname()[1]}"), numbered(1))
        listener.setblocking(False)
        accepted: list[socket.socket] = []

        def has_come(_received: object) -> bool:
            try:
                accepted.append(stack.enter_context(listener.accept()[0]))
            except BlockingIOError:
                return False
            return True

        poll_until(has_come, here)
        poll_until(Rude(accepted[0], b"ROUTER"), here)
    assert here.counters.num_cut_off == 1


@linux_only
def test_who_sends_much_in_whole_messages_is_not_cut_off(
    here: Switchboard, there: Switchboard, any_port: Address
) -> None:
    """However far behind the receiver is: what it has not taken yet is no message without end."""
    address = here.bind("work", any_port)
    with zmq.Context() as context, context.socket(zmq.DEALER) as busy, capture_logs():
        busy.linger = 0
        busy.connect(address)
        whole = [ONE_FRAME] * 40
        for _ in range(4):
            busy.send_multipart(whole, copy=False)
        poll_until(lambda _: here.counters.num_received >= 4, here)
        there.send(address, numbered(1))
        receive(1, here, there)
    assert here.counters.num_cut_off == 0


def test_leaving_out_a_message_of_too_many_frames_leaves_turns_to_others(
    monkeypatch: pytest.MonkeyPatch, here: Switchboard, there: Switchboard, any_port: Address
) -> None:
    """Half a million frames of ten bytes took more than two seconds, in which nothing else happened."""
    monkeypatch.setattr(switchboard, "TURN_FRAMES", 100)
    address = here.bind("work", any_port)
    with zmq.Context() as context, context.socket(zmq.DEALER) as rude, capture_logs():
        rude.linger = 0
        rude.connect(address)
        rude.send_multipart([b"x"] * 1000)
        rude.send_multipart([b"x"] * 1000)
        poll_until(lambda _: bool(here._overlong), here)
        num_turns = 0
        while here._overlong:
            here.poll(0)
            num_turns += 1
        poll_until(lambda _: here.counters.num_received == 2 and not here._overlong, here)
        assert num_turns >= 8
        there.send(address, numbered(1))
        assert receive(1, here, there)[0].message == numbered(1)
    assert here.counters.num_malformed == 2


def test_looking_takes_a_bounded_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of connections one look takes long: then the next one comes later."""
    now = 0.0

    def slow_look(*_: object) -> list[Stream]:
        nonlocal now
        now += 0.1
        return []

    monkeypatch.setattr(Streams, "between", slow_look)
    watch = Cutoff(clock=lambda: now)
    watch.look_if_due()
    assert watch.wait_s == pytest.approx(0.1 / cutoff.MOST_SHARE)
    monkeypatch.setattr(Streams, "between", lambda *_: [])
    now += watch.wait_s
    watch.look_if_due()
    assert watch.wait_s == pytest.approx(cutoff.LOOK_S)


def test_a_process_that_does_not_grow_looks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, memory, looks = [0.0], [100 << 20], []
    monkeypatch.setattr(cutoff, "resident_bytes", lambda: memory[0])
    monkeypatch.setattr(Streams, "between", lambda *_: looks.append(now_s[0]) or [])
    watch = Cutoff(clock=lambda: now_s[0])
    for turn in range(17):
        now_s[0] = turn * cutoff.LOOK_S
        watch.look_if_due()
        assert watch.wait_s <= cutoff.LOOK_S
    assert looks == [0.0, cutoff.CALM_LOOK_S, 2 * cutoff.CALM_LOOK_S]
    for turn in range(17, 20):
        now_s[0] = turn * cutoff.LOOK_S
        memory[0] += cutoff.GROWN_BYTES
        watch.look_if_due()
    assert looks[3:] == [17 * cutoff.LOOK_S, 18 * cutoff.LOOK_S, 19 * cutoff.LOOK_S]
