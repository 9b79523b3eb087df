"""What somebody who has not the swarm's key can do to a process that listens: everything short of breaking CURVE.

Each attack is over when its function returns; what it has left open goes with its stack.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import zmq

from zswarm import limits, wire
from zswarm.ids import TRAINER, Address, Generation, RunId
from zswarm.messages import Message, Stop
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard
from zswarm.transport.addresses import endpoint_of
from zswarm.transport.curve import Curve

MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame in ZMTP 3."""
TALK_S = 0.5
"""How long those try who have a ZeroMQ of their own: several handshakes."""
NUM_NOISY = 50
ANNOUNCED_BYTES = 512 << 20
"""Of the frame that is too big to be one of a handshake."""
SENT_BYTES = 64 << 20
"""As much of it is sent, if it is taken."""
CONNECT_S = 5.0
PAUSE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A listening socket of a swarm, and what an attacker may know of the swarm."""

    address: Address
    run: RunId
    generation: Generation
    server_public: bytes
    """Whoever was a member once may know it."""

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where it listens."""
        endpoint = endpoint_of(self.address)
        assert endpoint is not None
        return endpoint

    @property
    def lie(self) -> Message:
        """What would do harm if it got through."""
        return Stop(run=self.run, generation=self.generation, session=TRAINER)


Attack = Callable[[Victim], None]


def greeting(mechanism: bytes) -> bytes:
    """Return the first 64 bytes that a ZeroMQ says."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def ready(socket_type: bytes) -> bytes:
    """Return the command that ends a handshake in which nobody has to prove who he is."""
    body = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return bytes((COMMAND, len(body))) + body


def frame(content: bytes, *, more: bool) -> bytes:
    """Return one frame of a message as it stands on the wire."""
    return bytes((LONG | (MORE if more else 0),)) + len(content).to_bytes(8, "big") + content


def without_a_key(victim: Victim) -> None:
    """Speak as a member of a swarm that has no key does."""
    _talk(victim, None)


def with_another_key(victim: Victim) -> None:
    """Speak as a member of another swarm does."""
    _talk(victim, SwarmKey(random.Random(1).randbytes(32)))


def with_a_key_of_his_own(victim: Victim) -> None:
    """Know the swarm's public key, and prove that one has some key."""
    public, secret = zmq.curve_keypair()
    curve = Curve(server_public=victim.server_public, server_secret=b"", client_public=public, client_secret=secret)
    with zmq.Context() as context, context.socket(zmq.DEALER) as intruder:
        intruder.linger = 0
        curve.secure(intruder)
        intruder.connect(victim.address)
        _wait_until_refused(intruder, victim)


def in_plain_words(victim: Victim) -> None:
    """Greet as a ZeroMQ without encryption, and speak without waiting for an answer."""
    said = b"".join(frame(bytes(part), more=False) for part in wire.encode(victim.lie))
    _say(victim, greeting(b"NULL") + ready(b"DEALER") + said)


def in_curves_words(victim: Victim) -> None:
    """Greet as a ZeroMQ that encrypts, and go on as if the handshake had been."""
    said = b"".join(frame(bytes(part), more=False) for part in wire.encode(victim.lie))
    _say(victim, greeting(b"CURVE") + said)


def with_noise(victim: Victim) -> None:
    """Send random bytes, some of them after a good beginning."""
    draw = random.Random(2)
    for number in range(NUM_NOISY):
        beginning = greeting(b"CURVE")[: draw.randrange(65)] if number % 2 else b""
        _say(victim, beginning + draw.randbytes(draw.randrange(1, 4096)))


def with_a_huge_handshake(victim: Victim) -> None:
    """Announce a first frame of half a gigabyte, and send as much of it as is taken."""
    announced = bytes((COMMAND | LONG,)) + ANNOUNCED_BYTES.to_bytes(8, "big")
    with suppress(OSError), socket.create_connection(victim.endpoint, timeout=CONNECT_S) as rude:
        rude.sendall(greeting(b"CURVE") + announced)
        for _ in range(SENT_BYTES // limits.MAX_FRAME_BYTES):
            rude.sendall(bytes(limits.MAX_FRAME_BYTES))


ATTACKS: tuple[Attack, ...] = (
    without_a_key,
    with_another_key,
    with_a_key_of_his_own,
    in_plain_words,
    in_curves_words,
    with_noise,
    with_a_huge_handshake,
)
"""All but the flood."""


def flood(victim: Victim, stack: ExitStack, *, num_connections: int, duration_s: float) -> None:
    """Keep so many connections open that never say a word, each in place of one that was cut off; left open at the end."""
    until_s = time.monotonic() + duration_s
    held: list[socket.socket] = []
    while time.monotonic() < until_s:
        held = [each for each in held if _is_open(each)]
        while len(held) < num_connections and time.monotonic() < until_s:
            each = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(victim.endpoint)
            held.append(each)
        time.sleep(PAUSE_S)


def _is_open(connection: socket.socket) -> bool:
    """Has the other side not cut it off? Otherwise this side closes, too; what the other one says is thrown away."""
    try:
        if connection.recv(4096):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    connection.close()
    return False


def _talk(victim: Victim, key: SwarmKey | None) -> None:
    with Switchboard(key=key) as intruder:
        for _ in range(5):
            intruder.send(victim.address, victim.lie)
        until_s = time.monotonic() + TALK_S
        while time.monotonic() < until_s:
            intruder.poll(PAUSE_S)


def _wait_until_refused(intruder: zmq.Socket[bytes], victim: Victim) -> None:
    with suppress(zmq.Again):
        for _ in range(5):
            intruder.send_multipart(wire.encode(victim.lie), zmq.NOBLOCK)
    intruder.poll(round(TALK_S * 1000))


def _say(victim: Victim, said: bytes) -> None:
    """Say something and wait until the other side hangs up, or does not."""
    with suppress(OSError), socket.create_connection(victim.endpoint, timeout=TALK_S) as rude:
        rude.sendall(said)
        while rude.recv(4096):
            pass
