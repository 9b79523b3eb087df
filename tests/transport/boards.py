"""Two ends of a wire: bounded waiting, and a stranger who speaks whatever he likes."""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from zswarm.ids import Generation, Link, RunId, Session
from zswarm.machine import Received
from zswarm.messages import HeartbeatAck
from zswarm.transport import Switchboard

DEADLINE_S = 20.0
"""Far more than anything here takes; it only turns a hang into a failure."""


def numbered(view: int) -> HeartbeatAck:
    """Return a small message that can be told from others."""
    return HeartbeatAck(run=RunId(1), generation=Generation(2), session=Session(3), view=view)


def poll_until(done: Callable[[list[Received]], bool], *boards: Switchboard) -> list[Received]:
    """Poll all boards in turn until `done` says so of what they have received together."""
    received: list[Received] = []
    deadline_s = time.monotonic() + DEADLINE_S
    while not done(received):
        assert time.monotonic() < deadline_s, f"nothing more came after {received}"
        for board in boards:
            received += board.poll(0.01)
    return received


def receive(count: int, *boards: Switchboard) -> list[Received]:
    """Poll all boards in turn until `count` messages have come; no more may have."""
    received = poll_until(lambda so_far: len(so_far) >= count, *boards)
    assert len(received) == count
    return received


def link_from(received: Received) -> Link:
    """Return the return address of a message that came to a listening socket."""
    assert isinstance(received.peer, bytes)
    return Link(received.peer)


class Stranger:
    """A raw DEALER that says anything."""

    def __init__(self, address: str) -> None:
        """Dial the address."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    def say(self, *frames: bytes) -> None:
        """Send a multipart."""
        self._socket.send_multipart(frames)

    def hear(self, timeout_s: float = 0.0) -> list[bytes] | None:
        """Return the next multipart that has come, or None."""
        if not self._socket.poll(timeout_s * 1000):
            return None
        return self._socket.recv_multipart()

    def close(self) -> None:
        """Leave nothing behind."""
        self._socket.close()
        self._context.term()
