"""Peers that say what they must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq
from structlog.testing import capture_logs

from tests.transport.boards import DEADLINE_S, Stranger, numbered, poll_until, receive
from zswarm import limits
from zswarm.ids import Address, RejectCode
from zswarm.messages import Reject
from zswarm.transport import Switchboard
from zswarm.wire import decode_untrusted, encode

MakeStranger = Callable[[str], Stranger]


def said(view: int) -> bytes:
    """Return frame 0 of a good message."""
    return bytes(encode(numbered(view))[0])


def of_version(major: int) -> bytes:
    """Return frame 0 of a message of another version."""
    return said(0)[:4] + bytes((major,)) + said(0)[5:]


def test_rubbish_is_dropped_and_counted(here: Switchboard, any_port: Address, stranger: MakeStranger) -> None:
    """The next good message is as welcome as ever."""
    peer = stranger(here.bind("control", any_port))
    with capture_logs():
        rubbish = [(b"",), (b"hello",), (said(1)[:-1],), (said(1), b"more"), (b"", b"", b""), (b"x" * 1_000_000,)]
        for frames in rubbish:
            peer.say(*frames)
        peer.say(said(2))
        (received,) = receive(1, here)
    assert received.message == numbered(2)
    assert here.counters.num_malformed == len(rubbish)


def test_a_multipart_of_too_many_frames_is_dropped(
    here: Switchboard, any_port: Address, stranger: MakeStranger
) -> None:
    """It is read to its end, and not kept."""
    peer = stranger(here.bind("control", any_port))
    with capture_logs():
        peer.say(said(1), *[b"x"] * (10 * limits.MAX_FRAMES))
        peer.say(said(2))
        (received,) = receive(1, here)
    assert received.message == numbered(2)
    assert here.counters.num_malformed == 1


def test_a_frame_that_is_too_large_ends_the_connection(
    here: Switchboard, any_port: Address, stranger: MakeStranger
) -> None:
    """Nothing of it is delivered, and others do not notice."""
    address = here.bind("work", any_port)
    rude, polite = stranger(address), stranger(address)
    rude.say(b"x" * (2 * limits.MAX_FRAME_BYTES))
    polite.say(said(1))
    (received,) = receive(1, here)
    assert received.message == numbered(1)
    assert here.counters.num_malformed == 0


def test_a_peer_is_complained_about_once_a_minute(any_port: Address, stranger: MakeStranger) -> None:
    """A peer that sends rubbish for days does not fill the log, and hides no other."""
    now = [0.0]
    with Switchboard(clock=lambda: now[0]) as here, capture_logs() as records:
        address = here.bind("control", any_port)
        bad, worse = stranger(address), stranger(address)
        for peer, at_s in ((bad, 0.0), (bad, 59.0), (worse, 59.0), (bad, 61.0)):
            now[0] = at_s
            num_malformed = here.counters.num_malformed
            peer.say(b"rubbish")
            poll_until(lambda _, seen=num_malformed: here.counters.num_malformed > seen, here)
        reasons = [(record["log_level"], record["reason"]) for record in records]
    assert reasons == [("warning", "7 bytes are no prelude")] * 3
    assert len({record["peer"] for record in records}) == 2


def test_who_speaks_another_version_is_told_once(here: Switchboard, any_port: Address, stranger: MakeStranger) -> None:
    """Both versions are named, so that its operator knows what to do."""
    peer = stranger(here.bind("coordinator", any_port))
    with capture_logs():
        for _ in range(3):
            peer.say(of_version(2))
        peer.say(said(1))
        receive(1, here)
    answer = peer.hear(DEADLINE_S)
    assert answer is not None
    reject = decode_untrusted(answer).message
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.VERSION
    assert "version 2" in reject.text
    assert "version 1" in reject.text
    assert peer.hear() is None
    assert here.counters.num_sent == 1


@pytest.fixture
def foreign_coordinator() -> Iterator[zmq.Socket[bytes]]:
    """Return a raw ROUTER."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    yield socket
    socket.close()
    context.term()


def test_a_coordinator_of_another_version_reaches_the_machine_as_reject(
    there: Switchboard, foreign_coordinator: zmq.Socket[bytes]
) -> None:
    """A worker of the wrong version ends with a text instead of knocking for ever."""
    port = foreign_coordinator.bind_to_random_port("tcp://127.0.0.1")
    address = Address(f"tcp://127.0.0.1:{port}")
    there.send(address, numbered(0))
    poll_until(lambda _: foreign_coordinator.poll(0) != 0, there)
    link, _ = foreign_coordinator.recv_multipart()
    foreign_coordinator.send_multipart([link, of_version(9)])
    with capture_logs():
        (received,) = receive(1, there)
    assert received.peer == address
    assert isinstance(received.message, Reject)
    assert received.message.code is RejectCode.VERSION
    assert "version 9" in received.message.text
