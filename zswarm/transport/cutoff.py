"""Looks at what arrives at a switchboard's sockets, and cuts off who sends messages without end (see arrivals.py).

To look at all connections costs as much as a dozen messages. What never becomes a message stays in memory: so as long as the
process does not grow, its connections are looked at only now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import zmq

from zswarm.ids import Address, Peer
from zswarm.transport.addresses import Endpoint, endpoint_of
from zswarm.transport.arrivals import Arrivals, Stream, Streams, resident_bytes, shut_down

LOOK_S = 0.25
"""Between two looks while the process grows: what a peer sends meanwhile comes on top of what a connection may have
unfinished."""
CALM_LOOK_S = 2.0
"""Between two looks while it does not."""
GROWN_BYTES = 8 << 20
"""More memory than at the last look by so much is growth."""
MOST_SHARE = 0.05
"""Of the time that may go into looking, however many connections there are."""


class Cutoff:
    """See the module. All of it belongs to the thread that owns the sockets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._arrivals = Arrivals()
        self._streams = Streams()
        self._listening: dict[Endpoint, zmq.Socket[bytes]] = {}
        self._dialled: dict[Endpoint, zmq.Socket[bytes]] = {}
        self._look_at_s = self._calm_until_s = float("-inf")
        self._resident_bytes = 0
        """At the last look."""
        self.heard: dict[Peer, zmq.Frame] = {}
        """The first frame of the last message of each peer since the last look; whoever takes messages notes it here."""

    def listens(self, address: Address, socket: zmq.Socket[bytes]) -> None:
        """Look at what comes to a listening socket."""
        if (endpoint := endpoint_of(address)) is not None:
            self._listening[endpoint] = socket

    def dials(self, address: Address, socket: zmq.Socket[bytes]) -> None:
        """Look at what comes from an address."""
        if (endpoint := endpoint_of(address)) is not None:
            self._dialled[endpoint] = socket

    def hangs_up(self, address: Address) -> None:
        """Look at it no longer."""
        if (endpoint := endpoint_of(address)) is not None:
            self._dialled.pop(endpoint, None)

    @property
    def wait_s(self) -> float:
        """How long until the next look."""
        return max(0.0, self._look_at_s - self._clock())

    def look_if_due(self) -> list[Stream]:
        """Return the connections that have been cut off now."""
        now = self._clock()
        if now < self._look_at_s:
            return []
        if now < self._calm_until_s and resident_bytes() < self._resident_bytes + GROWN_BYTES:
            self._look_at_s = now + LOOK_S
            return []
        cut_off = []
        with suppress(OSError):  # strangers have taken all files: those that are heard until the next look stay noted
            streams = self._streams.between(self._listening, self._dialled)
            found = self._arrivals.look(streams, set(self._spoken()))
            self.heard.clear()
            cut_off = [stream for stream in found if self._is_drained(stream) and shut_down(stream)]
        self._resident_bytes = resident_bytes()
        after = self._clock()
        self._calm_until_s = after + CALM_LOOK_S
        self._look_at_s = after + max(LOOK_S, (after - now) / MOST_SHARE)
        return cut_off

    def _spoken(self) -> Iterator[int]:
        for frame in self.heard.values():
            try:
                yield int(frame.get(zmq.SRCFD))
            except (zmq.ZMQError, ValueError):
                continue  # it came over a path

    def _is_drained(self, stream: Stream) -> bool:
        """Has its socket no message to give? Otherwise what has arrived may be whole, and has not had its turn."""
        socket = self._listening.get(stream.local) or self._dialled.get(stream.remote)
        return socket is not None and not socket.closed and not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
