"""How the handshakes of one socket that dials go, and the test that our own listening sockets let in whom they should."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Self

import zmq
from zmq.utils.monitor import parse_monitor_message

from zswarm.errors import UserError
from zswarm.ids import Address
from zswarm.transport.curve import Curve, Gatekeeper

SELF_TEST_S = 2.0
"""It takes milliseconds; a machine that needs longer would not keep up with heartbeats either."""
_NUMBERS = itertools.count()
"""Makes the monitors' names unique in this process: pyzmq's own come from file descriptors, which are used again."""


class Outcome(Enum):
    """How far a handshake has come, and how it ended."""

    CONNECTED = zmq.EVENT_CONNECTED
    """It may begin."""
    SUCCEEDED = zmq.EVENT_HANDSHAKE_SUCCEEDED
    REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
    """The other side knows our key and does not want it."""
    MISMATCHED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    """One side encrypts and the other does not, or speaks something else than ZeroMQ."""
    BROKEN_OFF = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    """The other side has hung up without a word, or said nothing in time: it has another key, or died."""
    HUNG_UP = zmq.EVENT_DISCONNECTED
    """The connection is gone: after one of the others, or by itself where no ZeroMQ is at the other end."""


_OUTCOMES = {int(outcome.value): outcome for outcome in Outcome}


class HandshakeWatch:
    """Reports how the handshakes of a socket go, through a socket of its own; a context manager that closes it."""

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        """Begin to watch a socket that has not connected yet."""
        name = f"inproc://zswarm.handshakes.{next(_NUMBERS)}"
        watched.monitor(name, sum(_OUTCOMES))
        self._watched = watched
        self.socket = watched.context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.connect(name)

    def outcomes(self) -> list[Outcome]:
        """Return what has become of handshakes since this was last asked, oldest first."""
        found = []
        while self.socket.poll(0):
            event = int(parse_monitor_message(self.socket.recv_multipart())["event"])
            if event in _OUTCOMES:
                found.append(_OUTCOMES[event])
        return found

    def close(self) -> None:
        """Watch no longer."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_listener(
    address: Address, curve: Curve, gatekeeper: Gatekeeper, make_socket: Callable[[Curve], zmq.Socket[bytes]]
) -> None:
    """Dial our own listening socket as a member and as a stranger; takes SELF_TEST_S at most.

    `make_socket` makes a socket that dials with the given keys.

    Raises:
        UserError: the stranger is let in, or the member is not.

    """
    deadline_s = monotonic() + SELF_TEST_S
    member = _dial(address, make_socket(curve), gatekeeper, deadline_s)
    if member is not Outcome.SUCCEEDED:
        raise _failed(address, "the swarm's own key", member)
    stranger = _dial(address, make_socket(curve.with_random_client()), gatekeeper, deadline_s)
    if stranger is not Outcome.REFUSED:
        raise _failed(address, "a random key", stranger)


def _dial(address: Address, socket: zmq.Socket[bytes], gatekeeper: Gatekeeper, deadline_s: float) -> Outcome | None:
    """Return how the first handshake goes, None if it has not ended by the deadline."""
    poller = zmq.Poller()
    with socket, HandshakeWatch(socket) as watch:
        poller.register(gatekeeper.socket, zmq.POLLIN)
        poller.register(watch.socket, zmq.POLLIN)
        socket.connect(address)
        while (left_s := deadline_s - monotonic()) > 0:
            poller.poll(max(1, round(left_s * 1000)))
            gatekeeper.answer()
            for outcome in watch.outcomes():
                if outcome is not Outcome.CONNECTED:
                    return outcome
    return None


def _failed(address: Address, whose: str, outcome: Outcome | None) -> UserError:
    """Say what the self-test has found."""
    if outcome is None:
        text = f"was not answered within {SELF_TEST_S:.0f} s: a firewall, or a machine too busy, is in the way"
    else:
        text = f"has {outcome.name.lower().replace('_', ' ')}: CURVE does not work in this libzmq; install pyzmq's own wheel"
    return UserError(f"{address}: the self-test of encryption failed: a handshake with {whose} {text}")
