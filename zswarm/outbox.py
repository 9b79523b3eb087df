"""The outbox of a producer: outputs on their way to a broker, kept until they are acknowledged.

A forward output is *waiting* until a broker of the next stage has credit for it and the wiring policy
picks that broker; then it is *sent*, and repeated to the same broker until Ack (forget it), Nack BUSY
(wait again, another broker) or Nack STALE (forget it). A backward output or an evaluated loss has one
destination and needs no credit. If the destination leaves the swarm the entry stays: whoever lost it
asks again. Delivery is at least once; receivers know duplicates by the key.

Used by the worker and by the trainer, which is the producer of stage 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from zswarm.ids import Address, Direction, NackCode, Peer, Session
from zswarm.machine import Send
from zswarm.messages import Ack, Backward, Evaluated, Forward, Key, Nack, Room
from zswarm.patience import patience
from zswarm.wiring import BrokerState, Wiring

EntryKey = tuple[Direction, Key]
Parcelled = Forward | Backward | Evaluated


@dataclass(slots=True)
class Entry:
    """One output that is sent and not acknowledged."""

    message: Parcelled
    frames: tuple[Any, ...]
    broker: Session
    peer: Peer | None
    """None while no view has named the broker."""
    resend_at_s: float
    num_sent: int = 1


def direction_of(message: Parcelled) -> Direction:
    """Return the leg that this message travels."""
    match message:
        case Forward():
            return Direction.FORWARD
        case Backward():
            return Direction.BACKWARD
        case Evaluated():
            return Direction.LOSS


class Outbox:
    """See the module. Methods return the Sends that follow."""

    def __init__(self, *, wiring: Wiring, resend_s: float) -> None:
        self._wiring = wiring
        self._resend_s = resend_s
        self._waiting: deque[tuple[Forward, tuple[Any, ...]]] = deque()
        self._sent: dict[EntryKey, Entry] = {}
        self._brokers: dict[Session, BrokerState] = {}
        self._addresses: dict[Session, Address] = {}
        self.num_resent = 0

    @property
    def num_waiting(self) -> int:
        """Forward outputs that no broker has credit for."""
        return len(self._waiting)

    @property
    def num_unacknowledged(self) -> int:
        """Outputs in memory: waiting or sent."""
        return len(self._waiting) + len(self._sent)

    def brokers(self) -> list[BrokerState]:
        """Return what is known of the next stage's brokers, sorted by session."""
        return [self._brokers[broker] for broker in sorted(self._brokers)]

    def set_brokers(self, addresses: dict[Session, Address]) -> None:
        """Replace the brokers of the next stage by these (session -> work address)."""
        self._addresses = dict(addresses)
        self._brokers = {b: self._brokers.get(b) or BrokerState(broker=b) for b in addresses}

    def put_forward(self, message: Forward, frames: tuple[Any, ...], now: float) -> list[Send]:
        """Take a forward output; its route ends before the broker that will be picked."""
        self._waiting.append((message, frames))
        return self.flush(now)

    def put_to(
        self,
        peer: Peer | None,
        message: Backward | Evaluated,
        *,
        broker: Session,
        frames: tuple[Any, ...] = (),
        now: float,
    ) -> list[Send]:
        """Take an output whose destination is given; without an address it waits for `introduce`."""
        self._sent[direction_of(message), message.key] = Entry(message, frames, broker, peer, now + self._resend_s)
        return [Send(peer=peer, message=message, frames=frames)] if peer is not None else []

    def introduce(self, addresses: dict[Session, Address], now: float) -> list[Send]:
        """Send what waited for one of these addresses to become known."""
        sends: list[Send] = []
        for entry in self._sent.values():
            if entry.peer is None and (peer := addresses.get(entry.broker)) is not None:
                entry.peer, entry.resend_at_s = peer, now + self._resend_s
                sends.append(Send(peer=peer, message=entry.message, frames=entry.frames))
        return sends

    def update_room(self, broker: Session, room: Room, now: float) -> list[Send]:
        """Note what a broker says of itself."""
        state = self._brokers.get(broker)
        if state is None:
            return []
        state.granted_bytes = max(state.granted_bytes, room.granted_bytes)
        state.free_bytes, state.depth, state.response_s = room.free_bytes, room.depth, room.response_s
        return self.flush(now)

    def acknowledge(self, ack: Ack, now: float) -> list[Send]:
        """The receiver has it in memory; another broker's word about the same key does not count."""
        entry = self._sent.get((ack.direction, ack.key))
        if entry is not None and entry.broker == ack.session:
            del self._sent[ack.direction, ack.key]
        return self.update_room(ack.session, ack.room, now) if ack.room else []

    def refuse(self, nack: Nack, now: float) -> list[Send]:
        """The broker did not take it."""
        entry = self._sent.get((nack.direction, nack.key))
        if entry is None or entry.broker != nack.session:
            return []
        del self._sent[nack.direction, nack.key]
        if nack.code is NackCode.BUSY and isinstance(entry.message, Forward):
            if state := self._brokers.get(entry.broker):
                state.sent_bytes -= entry.message.parcel.size_bytes
            self._waiting.append((replace(entry.message, route=entry.message.route[:-1]), entry.frames))
        return self.update_room(nack.session, nack.room, now) if nack.room else []

    def flush(self, now: float) -> list[Send]:
        """Send what waits, oldest first, while some broker has credit for it."""
        sends: list[Send] = []
        while self._waiting:
            message, frames = self._waiting[0]
            size_bytes = message.parcel.size_bytes
            everybody = self.brokers()
            able = [state for state in everybody if state.credit_bytes >= size_bytes]
            broker = self._wiring.choose(able, everybody) if able else None
            if broker is None:
                break
            self._waiting.popleft()
            state = self._brokers[broker]
            state.sent_bytes += size_bytes
            state.depth += 1
            message = replace(message, route=(*message.route, broker))
            peer = self._addresses[broker]
            self._sent[Direction.FORWARD, message.key] = Entry(message, frames, broker, peer, now + self._resend_s)
            sends.append(Send(peer=peer, message=message, frames=frames))
        return sends

    def resend_due(self, now: float) -> list[Send]:
        """Repeat what has not been acknowledged in time."""
        sends: list[Send] = []
        for entry in self._sent.values():
            if entry.peer is not None and entry.resend_at_s <= now:
                entry.num_sent += 1
                entry.resend_at_s = now + patience(self._resend_s, entry.num_sent)
                self.num_resent += 1
                sends.append(Send(peer=entry.peer, message=entry.message, frames=entry.frames))
        return sends

    def drop_before(self, branch: int, step: int) -> None:
        """Forget everything of older steps: it is committed."""
        old = [key for key, entry in self._sent.items() if (entry.message.branch, entry.message.step) < (branch, step)]
        for key in old:
            del self._sent[key]
        self._waiting = deque(w for w in self._waiting if (w[0].branch, w[0].step) >= (branch, step))

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        return min((entry.resend_at_s for entry in self._sent.values() if entry.peer is not None), default=None)

    def pending(self) -> Iterable[EntryKey]:
        """Return the keys of all outputs in memory, for invariants."""
        yield from self._sent
        yield from ((Direction.FORWARD, message.key) for message, _ in self._waiting)
