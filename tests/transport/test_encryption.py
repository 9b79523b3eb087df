"""Sockets of a swarm with a key, and peers that have another one, none, or nothing to say but noise."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import zmq
from structlog.testing import capture_logs
from zmq.utils import z85

from tests.transport.boards import DEADLINE_S, Stranger, link_from, numbered, poll_until, receive
from zswarm import limits
from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard, curve, handshake
from zswarm.transport.curve import Curve, Gatekeeper

KEY, OTHER = SwarmKey(b"k" * 32), SwarmKey(b"o" * 32)
PAUSE_S = 0.5
"""Long enough for several handshakes, for showing that something does not come."""
GROWTH_BYTES = 64 << 20
"""Most memory that strangers may cost."""


@pytest.fixture
def member() -> Iterator[Switchboard]:
    """Return a switchboard with the key."""
    with Switchboard(key=KEY) as board:
        yield board


@pytest.fixture
def friend() -> Iterator[Switchboard]:
    """Return another one with the same key."""
    with Switchboard(key=KEY) as board:
        yield board


def is_served(member: Switchboard, friend: Switchboard, address: Address) -> None:
    """Have a friend ask and hear the answer; it may take until a listening socket has got rid of strangers."""
    friend.send(address, numbered(7))
    (question,) = receive(1, member, friend)
    assert question.message == numbered(7)
    member.send(link_from(question), numbered(8))
    (answer,) = receive(1, member, friend)
    assert (answer.peer, answer.message) == (address, numbered(8))


def poll_for(duration_s: float, *boards: Switchboard) -> int:
    """Poll boards for a while; returns how many messages came."""
    until_s = time.monotonic() + duration_s
    count = 0
    while time.monotonic() < until_s:
        count += sum(len(board.poll(0.01)) for board in boards)
    return count


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_members_talk(member: Switchboard, friend: Switchboard, any_port: Address, tmp_path: Path, scheme: str) -> None:
    """Both ways, as without a key."""
    name = any_port if scheme == "tcp" else Address(f"ipc://{tmp_path}/socket")
    is_served(member, friend, member.bind("work", name))


@pytest.mark.parametrize("key", [OTHER, None], ids=["another key", "no key"])
def test_who_has_not_the_key_delivers_nothing(member: Switchboard, friend: Switchboard, any_port: Address, key) -> None:
    """Nor is he told anything; members do not notice."""
    address = member.bind("control", any_port)
    with Switchboard(key=key) as intruder, capture_logs():
        for view in range(5):
            intruder.send(address, numbered(view))
        assert poll_for(PAUSE_S, member, intruder) == 0
        assert intruder.counters.num_sent == 0
        is_served(member, friend, address)
    assert member.counters.num_received == 1


@pytest.mark.parametrize("key", [OTHER, None], ids=["another key", "no key"])
def test_a_member_tells_nothing_to_who_has_not_the_key(member: Switchboard, any_port: Address, key) -> None:
    """A listener without the key does not get to see a single message."""
    with Switchboard(key=key) as impostor, capture_logs():
        address = impostor.bind("coordinator", any_port)
        member.send(address, numbered(1))
        assert poll_for(PAUSE_S, member, impostor) == 0
    assert (member.counters.num_sent, impostor.counters.num_received) == (0, 0)


def test_nothing_goes_over_the_wire_in_the_clear(member: Switchboard, any_port: Address) -> None:
    """Neither what is said nor the key, seen by a relay between two members."""
    address = member.bind("control", any_port)
    seen = bytearray()
    with Switchboard(key=KEY) as friend, socket.create_server(("127.0.0.1", 0)) as relay, ExitStack() as sockets:
        relay.setblocking(False)
        friend.dial(there := Address(f"tcp://127.0.0.1:{relay.getsockname()[1]}"))
        friend.send(there, numbered(123_456))
        pipes: list[tuple[socket.socket, socket.socket]] = []

        def pump(received: list) -> bool:
            if not pipes:
                try:
                    near = sockets.enter_context(relay.accept()[0])
                except BlockingIOError:
                    return False
                far = sockets.enter_context(socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))))
                pipes.extend([(near, far), (far, near)])
            for source, target in pipes:
                try:
                    content = source.recv(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                seen.extend(content)
                target.sendall(content)
            return bool(received)

        (received,) = poll_until(pump, member, friend)
    assert received.message == numbered(123_456)
    assert b"CURVE" in seen
    assert b"ZSWM" not in seen
    keys = Curve.of(KEY)
    for secret in (KEY.secret, keys.server_secret, keys.client_secret, keys.server_public, keys.client_public):
        assert secret not in seen
        assert len(secret) == 32 or z85.decode(secret) not in seen


def test_a_stranger_who_knows_the_servers_public_key_is_refused(
    member: Switchboard, friend: Switchboard, any_port: Address
) -> None:
    """ZeroMQ lets any key in unless somebody is asked."""
    address = member.bind("control", any_port)
    with zmq.Context() as context:
        intruder = context.socket(zmq.DEALER)
        intruder.linger = 0
        Curve.of(KEY).with_random_client().secure(intruder)
        intruder.connect(address)
        intruder.send(b"anything")
        assert poll_for(PAUSE_S, member) == 0
        is_served(member, friend, address)
        intruder.close()
    assert member.counters.num_malformed == 0


def said_by(member: bytes, **changes: bytes) -> list[bytes]:
    """Return ZeroMQ's question about a key, with some frames changed."""
    question = {
        "version": b"1.0",
        "request": b"1",
        "domain": b"zswarm",
        "address": b"127.0.0.1",
        "identity": b"",
        "mechanism": b"CURVE",
        "key": member,
    }
    return list((question | changes).values())


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, b"200"),
        ({"key": b"x" * 32}, b"400"),
        ({"key": b""}, b"400"),
        ({"domain": b""}, b"400"),
        ({"domain": b"other"}, b"400"),
        ({"version": b"2.0"}, b"400"),
        ({"mechanism": b"NULL"}, b"400"),
        ({"mechanism": b"PLAIN"}, b"400"),
        ({"more": b""}, b"400"),
    ],
)
def test_the_gatekeeper_lets_in_the_swarms_key_over_curve_and_nothing_else(changes, status) -> None:
    """Whatever it is asked, it answers the question."""
    keys = Curve.of(KEY)
    with zmq.Context() as context:
        gatekeeper = Gatekeeper(context, keys)
        with gatekeeper.socket, context.socket(zmq.REQ) as zeromq:
            zeromq.linger = 0
            zeromq.connect(curve.ENDPOINT)
            zeromq.send_multipart(said_by(z85.decode(keys.client_public), **changes))
            gatekeeper.socket.poll(DEADLINE_S * 1000)
            gatekeeper.answer()
            version, request, answer, *_ = zeromq.recv_multipart()
    assert (version, request, answer) == (b"1.0", b"1", status)


def test_without_a_gatekeeper_nobody_comes_in(monkeypatch, any_port: Address) -> None:
    """The socket fails closed, and its process says so instead of waiting for members for ever."""
    monkeypatch.setattr(handshake, "SELF_TEST_S", 0.3)
    monkeypatch.setattr(Gatekeeper, "answer", lambda _: None)
    with Switchboard(key=KEY) as board, pytest.raises(UserError, match=r"self-test of encryption failed.*not answered"):
        board.bind("control", any_port)


@pytest.mark.parametrize("fault", ["plain", "another pair of keys", "nobody is asked", "everybody comes in"])
def test_a_socket_that_lets_strangers_in_or_members_not_is_noticed(monkeypatch, any_port: Address, fault: str) -> None:
    """The self-test dials the very socket that it is about."""
    secure = Curve.secure

    def careless(keys: Curve, made: zmq.Socket[bytes]) -> None:
        if made.type != zmq.ROUTER or fault == "everybody comes in":
            secure(keys, made)
        elif fault != "plain":
            made.setsockopt(zmq.CURVE_SERVER, 1)
            pair = zmq.curve_keypair()[1] if fault == "another pair of keys" else keys.server_secret
            made.setsockopt(zmq.CURVE_SECRETKEY, pair)

    monkeypatch.setattr(Curve, "secure", careless)
    monkeypatch.setattr(handshake, "SELF_TEST_S", DEADLINE_S)
    if fault == "everybody comes in":
        monkeypatch.setattr(Gatekeeper, "_verdict", lambda _, asked: [asked[0], asked[1], b"200", b"OK", b"", b""])
    with Switchboard(key=KEY) as board, pytest.raises(UserError, match="self-test of encryption failed"):
        board.bind("control", any_port)


def test_a_libzmq_without_curve_is_a_users_error(monkeypatch) -> None:
    """A key must never be silently of no effect."""
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with pytest.raises(UserError, match="lacks CURVE"):
        Switchboard(key=KEY)


@pytest.mark.parametrize(("theirs", "ours"), [(KEY, None), (None, KEY)], ids=["only there", "only here"])
def test_who_alone_has_a_key_is_told_and_ends(any_port: Address, theirs, ours) -> None:
    """ZeroMQ does not try again after such a handshake: waiting would be for ever."""
    with Switchboard(key=theirs) as coordinator, Switchboard(key=ours) as comer, capture_logs():
        address = coordinator.bind("coordinator", any_port)
        comer.dial(address, is_first=True)
        with pytest.raises(UserError, match=r"no handshake .*\(--key\)") as caught:
            poll_until(lambda _: False, comer)
    assert address in str(caught.value)


def test_who_has_another_key_is_told(any_port: Address) -> None:
    """In the log, once a minute: the same happens when whoever listens there has just ended."""
    with Switchboard(key=KEY) as coordinator, Switchboard(key=OTHER) as comer, capture_logs() as records:
        address = coordinator.bind("coordinator", any_port)
        comer.dial(address, is_first=True)
        poll_until(lambda _: bool(records), comer, coordinator)
        poll_for(PAUSE_S, comer, coordinator)
    assert [(record["event"], record["peer"]) for record in records] == [("no handshake", address)]
    assert "another one" in records[0]["reason"]


def test_a_handshake_that_succeeds_is_watched_no_longer(
    member: Switchboard, friend: Switchboard, any_port: Address
) -> None:
    """It costs a socket for as long."""
    address = member.bind("coordinator", any_port)
    before = len(friend._callbacks)
    friend.dial(address, is_first=True)
    assert len(friend._callbacks) == before + 1
    is_served(member, friend, address)
    poll_until(lambda _: len(friend._callbacks) == before, member, friend)


def test_an_oversized_handshake_is_cut_off(member: Switchboard, friend: Switchboard, any_port: Address) -> None:
    """Its bytes are not collected: a first frame of half a gigabyte cost as much memory."""
    address = member.bind("work", any_port)
    before = psutil.Process().memory_info().rss
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    frame = b"\x06" + (512 << 20).to_bytes(8, "big")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as rude:
        rude.sendall(greeting + frame)
        rude.settimeout(DEADLINE_S)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012 - it may take some bytes
            while True:
                rude.sendall(bytes(limits.MAX_FRAME_BYTES))
    is_served(member, friend, address)
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES


@pytest.mark.parametrize("noise", [b"", b"\xff" + bytes(9), os.urandom(4096)], ids=["silent", "stops short", "random"])
def test_a_flood_of_strangers_keeps_no_member_out(
    member: Switchboard, any_port: Address, noise: bytes, stranger: Callable[[str], Stranger]
) -> None:
    """Connections that never come to a handshake are given up; who was in stays in, who comes is let in."""
    address = member.bind("work", any_port)
    where = ("127.0.0.1", int(address.rpartition(":")[2]))
    before = psutil.Process().memory_info().rss
    with Switchboard(key=KEY) as early, Switchboard(key=KEY) as late, ExitStack() as flood:
        is_served(member, early, address)
        for _ in range(300):
            one = flood.enter_context(socket.create_connection(where))
            try:
                one.sendall(noise)
            except OSError:
                continue
        early.send(address, numbered(1))
        assert receive(1, member, early)[0].message == numbered(1)
        is_served(member, late, address)
    assert member.counters.num_received == 3
    assert member.counters.num_malformed == 0
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES
