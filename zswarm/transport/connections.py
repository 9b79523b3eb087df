"""What is remembered of each peer, in bounded memory."""

from __future__ import annotations

import math

from zswarm import limits
from zswarm.ids import Peer


class Connection:
    """One peer: how far its link sequence is, and what it has been told."""

    __slots__ = ("complained_s", "expected", "is_rejected", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        """Number of the next message to it."""
        self.expected = 0
        """Number of the next message from it; 0 while it has sent none."""
        self.complained_s = -math.inf
        """When the log last said something about it."""
        self.is_rejected = False
        """It has been told that it speaks another version."""

    def num_missing(self, sequence: int) -> int:
        """Return how many messages should have come before this one; a peer that counts anew misses none."""
        expected, self.expected = self.expected, sequence + 1
        return sequence - expected if sequence > expected > 0 else 0


class Connections:
    """All peers; the oldest is forgotten when there are too many, which costs a gap not seen."""

    def __init__(self) -> None:
        self._connections: dict[Peer, Connection] = {}

    def __getitem__(self, peer: Peer) -> Connection:
        """Return what is known of the peer, for a stranger nothing yet."""
        connection = self._connections.get(peer)
        if connection is None:
            if len(self._connections) >= limits.MAX_REMEMBERED_PEERS:
                del self._connections[next(iter(self._connections))]
            connection = self._connections[peer] = Connection()
        return connection

    def forget(self, peer: Peer) -> None:
        """Treat the peer as a stranger from now on."""
        self._connections.pop(peer, None)
