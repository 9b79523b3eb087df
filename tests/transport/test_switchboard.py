"""Messages between two switchboards over real sockets."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from tests.transport.boards import DEADLINE_S, Stranger, link_from, numbered, poll_until, receive
from tests.wire.samples import SAMPLES, payload_for
from zswarm import limits
from zswarm.errors import LocalProtocolError
from zswarm.ids import Address, Link
from zswarm.messages import Forward, Parcel, Reject, TensorSpec
from zswarm.transport import Switchboard
from zswarm.transport.switchboard import GREETING_MESSAGES
from zswarm.wire import intact, split


def large_forward(size_bytes: int) -> tuple[Forward, tuple[memoryview, ...]]:
    """Return a message with a payload of several frames."""
    content = bytes(range(251)) * (size_bytes // 251 + 1)
    frames = split(content[:size_bytes])
    spec = TensorSpec(codec="int8", dtype="float32", shape=(4,), size_bytes=size_bytes)
    parcel = Parcel(tensors=(spec,), size_bytes=size_bytes, crc=zlib.crc32(content[:size_bytes]))
    forward = SAMPLES["Forward"]
    assert isinstance(forward, Forward)
    return dataclasses.replace(forward, parcel=parcel), frames


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_message_comes_and_its_link_leads_back(
    here: Switchboard, there: Switchboard, tmp_path: Path, scheme: str
) -> None:
    """An address leads there, the link that the message came over leads back."""
    address = here.bind("control", Address("tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc://{tmp_path}/socket"))
    assert there.send(address, numbered(1))
    (question,) = receive(1, here, there)
    assert question.message == numbered(1)
    assert here.send(link_from(question), numbered(2))
    (answer,) = receive(1, here, there)
    assert (answer.peer, answer.message) == (address, numbered(2))


def test_two_listening_sockets_have_links_of_their_own(
    here: Switchboard, there: Switchboard, any_port: Address
) -> None:
    """An answer takes the socket that the question came to."""
    addresses = [here.bind(name, any_port) for name in ("control", "work")]
    assert addresses[0] != addresses[1]
    for view, address in enumerate(addresses):
        there.send(address, numbered(view))
    for question in receive(2, here, there):
        here.send(link_from(question), question.message)
    answers = receive(2, here, there)
    assert {(answer.peer, answer.message.view) for answer in answers} == {(addresses[0], 0), (addresses[1], 1)}


def test_a_payload_comes_whole_and_is_passed_on_by_reference(
    here: Switchboard, there: Switchboard, any_port: Address
) -> None:
    """As a broker does: frames received are sent to the next without a look at them."""
    address = here.bind("work", any_port)
    message, frames = large_forward(2 * limits.MAX_FRAME_BYTES + 12_345)
    there.send(address, numbered(0))
    there.send(address, message, frames)
    hello, forward = receive(2, here, there)
    assert forward.message == message
    assert all(isinstance(frame, zmq.Frame) for frame in forward.frames)
    assert intact(message, forward.frames)
    here.send(link_from(hello), message, forward.frames)
    (back,) = receive(1, here, there)
    assert b"".join(bytes(frame) for frame in back.frames) == b"".join(frames)


def test_small_payloads_come_too(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """Every kind of message, in its order."""
    address = here.bind("work", any_port)
    samples = list(SAMPLES.values())
    there.send(address, samples[0], payload_for(samples[0]))
    first = receive(1, here, there)
    for sample in samples[1:]:
        assert there.send(address, sample, payload_for(sample))
    received = [*first, *receive(len(samples) - 1, here, there)]
    assert [one.message for one in received] == samples
    assert all(intact(one.message, one.frames) for one in received)


def test_what_is_sent_before_anybody_listens_waits_for_him(
    here: Switchboard, there: Switchboard, any_port: Address
) -> None:
    """The first Register is not lost while the trainer still starts; of many messages the newest wait."""
    with Switchboard() as scout:
        address = scout.bind("coordinator", any_port)
    for view in range(GREETING_MESSAGES + 3):
        assert there.send(address, numbered(view))
    assert there.poll(0.0) == []
    assert there.counters.num_lost == 3
    assert there.counters.num_sent == 0
    here.bind("coordinator", address)
    received = receive(GREETING_MESSAGES, here, there)
    assert [one.message for one in received] == [numbered(view) for view in range(3, GREETING_MESSAGES + 3)]
    assert there.counters.num_sent == GREETING_MESSAGES


def test_nothing_waits_for_a_peer_that_has_gone(there: Switchboard, any_port: Address) -> None:
    """What could be sent again is stale by the time it returns: it is lost, and said to be."""
    with Switchboard() as here:
        address = here.bind("control", any_port)
        there.send(address, numbered(0))
        receive(1, here, there)
    deadline_s = time.monotonic() + DEADLINE_S
    while there.send(address, numbered(1)):
        assert time.monotonic() < deadline_s, "the end of the connection is not noticed"
        there.poll(0.01)
    assert there.counters.num_lost == 1


def dead_link(here: Switchboard, address: Address) -> Link:
    """Return the link of a peer that has come and gone, once sending to it has found that out."""
    with Switchboard() as there:
        there.send(address, numbered(0))
        (question,) = receive(1, here, there)
    deadline_s = time.monotonic() + DEADLINE_S
    while here.send(link_from(question), numbered(1)):
        assert time.monotonic() < deadline_s, "the end of the connection is not noticed"
        here.poll(0.01)
    return link_from(question)


def test_a_link_that_has_gone_is_a_loss(here: Switchboard, any_port: Address) -> None:
    """And so is one that never was: nothing is raised."""
    dead_link(here, here.bind("control", any_port))
    assert here.counters.num_lost == 1
    assert not here.send(Link(b"\x00none"), numbered(1))


def test_links_that_have_gone_are_told_once(here: Switchboard, any_port: Address) -> None:
    """However often they are sent to until somebody asks."""
    address = here.bind("control", any_port)
    assert here.take_unreachable() == []
    first, second = dead_link(here, address), dead_link(here, address)
    for _ in range(3):
        assert not here.send(first, numbered(1))
    assert here.take_unreachable() == [first, second]
    assert here.take_unreachable() == []
    assert not here.send(first, numbered(1))
    assert here.take_unreachable() == [first]


def test_who_is_slow_or_not_there_yet_is_not_unreachable(here: Switchboard, any_port: Address) -> None:
    """A full queue is a loss, and an address may come up at any time: neither is the end of a connection."""
    address = here.bind("control", any_port)
    with Switchboard() as there:
        there.send(address, numbered(0))
        (question,) = receive(1, here, there)
        link = link_from(question)
        assert not all(here.send(link, numbered(view)) for view in range(1_000_000))
        assert not all(here.send(Address("tcp://10.0.0.1:80"), numbered(view)) for view in range(20))
        assert here.take_unreachable() == []


def test_a_full_queue_is_a_loss_and_blocks_nobody(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """A peer that does not read costs messages, not time."""
    address = here.bind("work", any_port)
    there.send(address, numbered(0))
    receive(1, here, there)
    reject = SAMPLES["Reject"]
    assert isinstance(reject, Reject)
    long = dataclasses.replace(reject, text="x" * limits.MAX_TEXT_CHARS)
    num_sent = next(count for count in range(1_000_000) if not there.send(address, long))
    assert there.counters.num_lost == 1
    received = poll_until(lambda so_far: len(so_far) == num_sent, here)
    assert {one.message for one in received} == {long}


def test_one_turn_takes_a_bounded_number_of_messages(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """A loud peer does not keep the loop from its other work."""
    address = here.bind("control", any_port)
    there.send(address, numbered(0))
    receive(1, here, there)
    for view in range(10 * limits.TURN_MESSAGES):
        there.send(address, numbered(view))
    turns = []
    poll_until(lambda _: sum(turns) == 10 * limits.TURN_MESSAGES, _Counted(here, turns))  # type: ignore[arg-type]
    assert max(turns) <= limits.TURN_MESSAGES


class _Counted:
    """Writes down how many messages each poll returned."""

    def __init__(self, board: Switchboard, turns: list[int]) -> None:
        self._board = board
        self._turns = turns

    def poll(self, timeout_s: float) -> list[object]:
        self._turns.append(len(self._board.poll(timeout_s)))
        return []


def test_both_ends_count_the_same(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """Messages and bytes, headers included."""
    address = here.bind("work", any_port)
    message, frames = large_forward(100_000)
    there.send(address, numbered(0))
    there.send(address, message, frames)
    receive(2, here, there)
    assert there.counters.num_sent == here.counters.num_received == 2
    assert there.sent_bytes == here.counters.received_bytes
    assert 100_000 < there.sent_bytes < 101_000
    assert here.counters.num_gaps == 0


def test_a_gap_in_the_link_sequence_is_counted(
    here: Switchboard, any_port: Address, stranger: Callable[[str], Stranger]
) -> None:
    """Messages lost on the way show; a peer that counts anew is no gap."""
    from zswarm.wire import encode

    address = here.bind("control", any_port)
    peer = stranger(address)
    for sequence in (5, 6, 9, 0, 1):
        peer.say(*map(bytes, encode(numbered(sequence), sequence=sequence)))
    receive(5, here)
    assert here.counters.num_gaps == 2


def test_after_hanging_up_one_may_dial_again(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """It is a new connection: the old link is dead."""
    address = here.bind("control", any_port)
    there.send(address, numbered(0))
    (before,) = receive(1, here, there)
    there.hang_up(address)
    there.hang_up(address)
    there.send(address, numbered(1))
    (after,) = receive(1, here, there)
    assert after.message == numbered(1)
    assert after.peer != before.peer
    there.hang_up(Address("tcp://127.0.0.1:1"))


def test_hanging_up_loses_what_still_waits(there: Switchboard) -> None:
    """And says so."""
    address = Address("tcp://127.0.0.1:1")
    there.send(address, numbered(0))
    there.hang_up(address)
    assert there.counters.num_lost == 1


def fill(board: Switchboard, address: Address) -> int:
    """Send until the peer's memory, the system's and ours are full; returns how many messages went."""
    count = 0
    while board.send(address, numbered(1)):
        count += 1
        while board.send(address, numbered(1)):
            count += 1
        board.poll(0.01)
    return count


def test_who_comes_back_at_the_same_address_is_heard_again(there: Switchboard, any_port: Address) -> None:
    """As a trainer that starts again: the dealer dials again by itself, nothing of before comes out, and both are heard.

    What waited in the queue for the old life is dropped with its connection. It would do no harm either: it bears the
    old generation.
    """
    with Switchboard() as old:
        address = old.bind("coordinator", any_port)
        there.send(address, numbered(0))
        receive(1, old, there)
        assert fill(there, address) > 0
    with Switchboard() as new:
        new.bind("coordinator", address)
        deadline_s = time.monotonic() + DEADLINE_S
        while not there.send(address, numbered(2)):
            assert time.monotonic() < deadline_s, "it is not dialled again"
            there.poll(0.01)
        (heard,) = receive(1, new, there)
        assert heard.message == numbered(2)
        assert new.send(link_from(heard), numbered(7))
        (answer,) = receive(1, new, there)
        assert (answer.peer, answer.message) == (address, numbered(7))
        assert (new.counters.num_gaps, new.counters.num_malformed) == (0, 0)


def test_closing_may_wait_for_the_last_words(here: Switchboard, any_port: Address) -> None:
    """A farewell sent just before the end arrives."""
    address = here.bind("control", any_port)
    there = Switchboard()
    there.send(address, numbered(0))
    receive(1, here, there)
    for view in range(100):
        there.send(address, numbered(view))
    there.close(linger_s=DEADLINE_S)
    there.close()
    receive(100, here)


def test_our_own_mistake_is_not_a_loss(there: Switchboard) -> None:
    """A message that breaks a bound is a bug, and is raised where it was made."""
    with pytest.raises(LocalProtocolError):
        there.send(Address("tcp://127.0.0.1:1"), numbered(2**64))


def test_sockets_have_the_options_of_the_protocol(here: Switchboard, there: Switchboard, any_port: Address) -> None:
    """Those without which a stranger can hurt."""
    control, work = here.bind("control", any_port), here.bind("work", any_port)
    there.dial(control)
    there.dial(work)
    sockets = [*here._listeners, *there._dialled.values()]
    for socket in sockets:
        assert socket.getsockopt(zmq.MAXMSGSIZE) == limits.MAX_FRAME_BYTES + 65_536
        assert socket.getsockopt(zmq.LINGER) == 0
        assert socket.getsockopt(zmq.HANDSHAKE_IVL) == 3_000
        assert socket.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 10_000
        assert socket.getsockopt(zmq.IMMEDIATE) == 1
    assert [socket.getsockopt(zmq.RCVHWM) for socket in here._listeners] == [1_000, 64]
