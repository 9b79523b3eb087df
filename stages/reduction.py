"""The all-reduce of one round, as one participant sees it.

Sharded: of n participants, sorted by session, the i-th owns shard i. Everybody sends its share of shard
i to the i-th (SCATTER); the owner adds the shares in the order of the participants and sends the sum to
everybody (GATHER). Since one process sums each shard, and everybody takes that process's bits, all
participants hold identical bits.

    Prepare --> SNAPSHOT --> scatter to owners ---+--> all shares of my shard here --> SUM --> gather to all
                 (task)                           |                                   (task)      |
                                                  +---- all summed shards here --> ASSEMBLE --> result
                                                                                    (task)

One participant alone has no chunks: its shard is empty, and its compute thread keeps the result.

Chunks are acknowledged one by one, `REDUCE_WINDOW` per peer on the way, and repeated until then. Chunks
that come before the own Prepare wait in the inbox. A round ends by Commit or Abort, never by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stages.tasks import Assemble, Snapshot, Snapshotted, Sum, Summed, Task
from zswarm import limits
from zswarm.ids import Address, Peer, ReducePhase, Round, Session, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Chunk, ChunkAck, Load
from zswarm.patience import patience
from zswarm.slots import maker

make_chunk, make_send = maker(Chunk), maker(Send)

ChunkKey = tuple[ReducePhase, int, int]
"""Phase, shard, chunk."""


@dataclass(slots=True)
class Transfer:
    """One chunk on its way to one peer."""

    message: Chunk
    load: Load
    resend_at_s: float | None = None
    """None while it waits for the window."""
    num_sent: int = 1


class Inbox:
    """Chunks of one round that have come, whether or not the round has begun here."""

    def __init__(self, round_: Round) -> None:
        self.round = round_
        self.chunks: dict[tuple[Session, ReducePhase, int], dict[int, Load]] = {}
        self._num_chunks: dict[tuple[Session, ReducePhase, int], int] = {}

    def put(self, message: Chunk, load: Load) -> bool:
        """Keep a chunk; a duplicate replaces an equal one. False if it contradicts itself or the others."""
        key = (message.session, message.phase, message.shard)
        num_chunks = self._num_chunks.setdefault(key, message.num_chunks)
        if message.num_chunks != num_chunks or message.chunk >= num_chunks:
            return False
        self.chunks.setdefault(key, {})[message.chunk] = load
        return True

    def shard(self, sender: Session, phase: ReducePhase, shard: int) -> tuple[Load, ...] | None:
        """Return a sender's chunks in order, or None while some are missing."""
        key = (sender, phase, shard)
        chunks = self.chunks.get(key)
        if chunks is None or len(chunks) < self._num_chunks[key]:
            return None
        return tuple(chunks[i] for i in range(len(chunks)))


class Reduction:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(
        self,
        header: Header,
        *,
        version: Version,
        participants: tuple[Session, ...],
        inbox: Inbox,
        resend_s: float,
    ) -> None:
        self._header = header
        self._me = header["session"]
        self._version = version
        self._participants = participants
        self._inbox = inbox
        self._resend_s = resend_s
        self.round = inbox.round
        self._addresses: dict[Session, Address] = {}
        self._queues: dict[Session, deque[Transfer]] = {p: deque() for p in participants if p != self._me}
        self._flying: dict[Session, dict[ChunkKey, Transfer]] = {p: {} for p in self._queues}
        self._waits_since_s: dict[Session, float] = dict.fromkeys(self._queues, 0.0)
        """When a peer that has chunks to acknowledge last said something, or got the first of them."""
        self._own: tuple[tuple[Load, ...], ...] | None = None
        self._sum: tuple[Load, ...] | None = None
        self._is_summing = False
        self._is_assembling = False

    def start(self) -> list[Send | Task]:
        """Ask for the own contribution."""
        return [Snapshot(round=self.round, num_shards=len(self._participants))]

    def set_addresses(self, addresses: dict[Session, Address], now: float) -> list[Send | Task]:
        """Learn where participants listen; one that a view no longer names stays where it was."""
        self._addresses.update(addresses)
        return self._advance(now)

    def snapshotted(self, outcome: Snapshotted, now: float) -> list[Send | Task]:
        """Send the shares of the others' shards to their owners."""
        self._own = outcome.shards
        for shard, owner in enumerate(self._participants):
            if owner != self._me:
                self._enqueue(owner, ReducePhase.SCATTER, shard, outcome.shards[shard])
        return self._advance(now)

    def summed(self, outcome: Summed, now: float) -> list[Send | Task]:
        """Send the sum of the own shard to the others."""
        self._sum = outcome.chunks
        for peer in self._queues:
            self._enqueue(peer, ReducePhase.GATHER, outcome.shard, outcome.chunks)
        return self._advance(now)

    def received(self, sender: Session, now: float) -> list[Send | Task]:
        """Something new of a peer is in the inbox."""
        self._waits_since_s[sender] = now
        return self._advance(now)

    def acknowledged(self, message: ChunkAck, now: float) -> list[Send | Task]:
        """A peer has a chunk: the next one may go."""
        self._waits_since_s[message.session] = now
        flying = self._flying.get(message.session)
        if flying is not None:
            flying.pop((message.phase, message.shard, message.chunk), None)
        return self._advance(now)

    def resend_due(self, now: float) -> list[Send | Task]:
        """Repeat chunks that were not acknowledged in time."""
        sends: list[Send | Task] = []
        for peer, flying in self._flying.items():
            for transfer in flying.values():
                if transfer.resend_at_s is not None and transfer.resend_at_s <= now:
                    transfer.num_sent += 1
                    transfer.resend_at_s = now + patience(self._resend_s, transfer.num_sent)
                    sends.append(self._send(peer, transfer))
        return sends

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        times = [t.resend_at_s for f in self._flying.values() for t in f.values() if t.resend_at_s is not None]
        return min(times, default=None)

    def silent(self, now: float, limit_s: float) -> list[Session]:
        """Return the peers that have had chunks to acknowledge and said nothing for so long."""
        return [p for p, flying in self._flying.items() if flying and now - self._waits_since_s[p] >= limit_s]

    @property
    def is_delivered(self) -> bool:
        """Does nobody wait for a chunk of ours?"""
        return not any(self._queues.values()) and not any(self._flying.values())

    def _enqueue(self, peer: Session, phase: ReducePhase, shard: int, chunks: tuple[Load, ...]) -> None:
        branch, step = self._version
        for chunk, load in enumerate(chunks):
            message = make_chunk(
                **self._header,
                branch=branch,
                step=step,
                round=self.round,
                phase=phase,
                shard=shard,
                chunk=chunk,
                num_chunks=len(chunks),
                parcel=load.parcel,
            )
            self._queues[peer].append(Transfer(message, load))

    def _advance(self, now: float) -> list[Send | Task]:
        commands: list[Send | Task] = []
        for peer, queue in self._queues.items():
            flying = self._flying[peer]
            while queue and peer in self._addresses and len(flying) < limits.REDUCE_WINDOW:
                transfer = queue.popleft()
                if not flying:
                    self._waits_since_s[peer] = now
                transfer.resend_at_s = now + self._resend_s
                message = transfer.message
                flying[message.phase, message.shard, message.chunk] = transfer
                commands.append(self._send(peer, transfer))
        if (task := self._sum_task() or self._assemble_task()) is not None:
            commands.append(task)
        return commands

    def _send(self, peer: Session, transfer: Transfer) -> Send:
        address: Peer = self._addresses[peer]
        return make_send(peer=address, message=transfer.message, frames=transfer.load.frames)

    def _sum_task(self) -> Sum | None:
        if self._own is None or self._is_summing:
            return None
        mine = self._participants.index(self._me)
        contributions = []
        for participant in self._participants:
            own = participant == self._me
            share = self._own[mine] if own else self._inbox.shard(participant, ReducePhase.SCATTER, mine)
            if share is None:
                return None
            contributions.append(share)
        self._is_summing = True
        return Sum(round=self.round, shard=mine, contributions=tuple(contributions))

    def _assemble_task(self) -> Assemble | None:
        if self._sum is None or self._is_assembling:
            return None
        shards = []
        for shard, owner in enumerate(self._participants):
            own = owner == self._me
            chunks = self._sum if own else self._inbox.shard(owner, ReducePhase.GATHER, shard)
            if chunks is None:
                return None
            shards.append(chunks)
        self._is_assembling = True
        return Assemble(round=self.round, shards=tuple(shards))
