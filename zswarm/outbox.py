"""The outbox of a producer: outputs on their way to a broker, kept until they are acknowledged.

A forward output is *waiting* until a broker of the next stage has credit for it and the wiring policy
picks that broker; then it is *sent*, and repeated to the same broker until Ack or Nack STALE: forget it. After
Nack BUSY it is repeated, too: a late copy of it could still be taken, and if another broker had taken it as well
one attempt would have two homes. A backward output or an evaluated loss has one destination and needs no
credit. Delivery is at least once; receivers know duplicates by the key.

A broker that closes gets nothing new, also if it has credit; what was sent to it is repeated until it is answered.
If the destination leaves the swarm the output is dropped: the coordinator has the microbatch admitted anew, and
two brokers that both are home to one attempt could have it counted twice. What the coordinator has voided is
dropped, too, and so is what belongs to an older step. But a Forward that was sent took credit, and only
its broker knows whether it came: so it is *given up*, which is to say sent until it is answered and otherwise as
if it were not here. An answer that says it was not taken gives its credit back.

Of what was sent a broker counts what it took: not a copy of what it had already, and also what it took and then
refused as stale when the answer had got lost. So each word of a broker about its room corrects what was sent to it:
at least what it has received, at most that and what is not answered yet.

Used by the worker and by the trainer, which is the producer of stage 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from zswarm import limits
from zswarm.ids import (
    TRAINER,
    Address,
    Attempt,
    Branch,
    Direction,
    Generation,
    NackCode,
    Peer,
    Purpose,
    Session,
    Step,
    Version,
)
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
    since_s: float
    """When it was first sent."""
    num_sent: int = 1
    is_given_up: bool = False
    """Its microbatch does not need it any more."""
    credit_bytes: int = 0
    """What sending it took of the broker's credit; none but a Forward takes any."""


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

    def __init__(self, *, wiring: Wiring, resend_s: float, me: Session, trainer: Generation) -> None:
        """Make an empty outbox of the session `me`; `trainer` is the generation of a trainer, 0 for anybody else."""
        self._me = (me, trainer)
        self._wiring = wiring
        self._resend_s = resend_s
        self._doubt_s = limits.DOUBT_HEARTBEATS / limits.RESEND_HEARTBEATS * resend_s
        self._waiting: deque[tuple[Forward, tuple[Any, ...]]] = deque()
        self._sent: dict[EntryKey, Entry] = {}
        self._brokers: dict[Session, BrokerState] = {}
        self._addresses: dict[Session, Address] = {}
        self._heard_at_s: dict[Session, float] = {}
        self.closing: set[Session] = set()
        """Brokers of the next stage that have said that they leave: they get nothing new."""
        self._live: frozenset[Session] = frozenset()
        self._newest = TRAINER
        """The newest session that any view has named: sessions are issued in order, so that one up to this that is not
        live has left, whether a view has ever named it or not."""

    @property
    def num_waiting(self) -> int:
        """Forward outputs that no broker has credit for."""
        return len(self._waiting)

    def brokers(self) -> list[BrokerState]:
        """Return what is known of the next stage's brokers, sorted by session."""
        return list(self._brokers.values())

    def unanswered_bytes(self, broker: Session) -> int:
        """Return what credit Forwards took of which this broker has not said whether they came."""
        return sum(entry.credit_bytes for entry in self._sent.values() if entry.broker == broker)

    def set_brokers(self, addresses: dict[Session, Address]) -> None:
        """Replace the brokers of the next stage by these (session -> work address)."""
        self._addresses = dict(addresses)
        self._brokers = {b: self._brokers.get(b) or BrokerState(broker=b) for b in sorted(addresses)}
        self.closing.intersection_update(addresses)
        self._keep_sent(lambda entry: not isinstance(entry.message, Forward) or entry.broker in addresses)

    def forget_brokers(self, live: Collection[Session]) -> None:
        """Drop what was meant for brokers that have left; `live` are all sessions of the newest view.

        One that no view has named yet is still to come. The trainer lives always.
        """
        self._live = frozenset(live) | {TRAINER}
        self._newest = max(self._newest, *self._live)
        self._heard_at_s = {b: at_s for b, at_s in self._heard_at_s.items() if b in live}
        self._keep_sent(lambda entry: not self._has_left(entry.broker, entry.peer))

    def _has_left(self, broker: Session, peer: Peer | None) -> bool:
        return broker not in self._live and (peer is not None or broker <= self._newest)

    def _keep_sent(self, is_wanted: Callable[[Entry], bool]) -> None:
        self._sent = {key: entry for key, entry in self._sent.items() if is_wanted(entry)}

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
        """Take an output whose destination is given.

        Without an address it waits for `introduce`, unless its broker has left: then it is dropped.
        """
        if peer is None and self._has_left(broker, peer):
            return []
        self._sent[direction_of(message), message.key] = Entry(message, frames, broker, peer, now + self._resend_s, now)
        return [Send(peer=peer, message=message, frames=frames)] if peer is not None else []

    def introduce(self, addresses: dict[Session, Address], now: float) -> list[Send]:
        """Send what waited for one of these addresses to become known."""
        sends: list[Send] = []
        for entry in self._sent.values():
            if entry.peer is None and (peer := addresses.get(entry.broker)) is not None:
                entry.peer, entry.since_s, entry.resend_at_s = peer, now, now + self._resend_s
                sends.append(Send(peer=peer, message=entry.message, frames=entry.frames))
        return sends

    def update_room(self, broker: Session, room: Room, now: float) -> list[Send]:
        """Note what a broker says of itself."""
        self._hear(broker, now)
        state = self._brokers.get(broker)
        if state is None or (room.producer, room.trainer) != self._me:
            return []
        state.unit_bytes = room.unit_bytes
        state.granted_bytes = max(state.granted_bytes, room.granted_bytes)
        state.received_bytes = max(state.received_bytes, room.received_bytes)
        state.sent_bytes = min(state.sent_bytes, state.received_bytes + self.unanswered_bytes(broker))
        state.sent_bytes = max(state.sent_bytes, state.received_bytes)
        state.free_bytes, state.depth, state.response_s = room.free_bytes, room.depth, room.response_s
        if room.closes:
            self.closing.add(broker)
        return self.flush(now)

    def _hear(self, broker: Session, now: float) -> None:
        """Note that a broker has spoken; sessions that somebody makes up are forgotten when there are too many."""
        if len(self._heard_at_s) >= limits.MAX_REMEMBERED_PEERS and broker not in self._heard_at_s:
            known = {entry.broker for entry in self._sent.values()}.union(self._brokers)
            self._heard_at_s = {b: at_s for b, at_s in self._heard_at_s.items() if b in known}
        self._heard_at_s[broker] = now

    def acknowledge(self, ack: Ack, now: float) -> list[Send]:
        """The receiver has it in memory; another broker's word about the same key does not count."""
        self._hear(ack.session, now)
        entry = self._sent.get((ack.direction, ack.key))
        if entry is not None and entry.broker == ack.session:
            del self._sent[ack.direction, ack.key]
        return self.update_room(ack.session, ack.room, now) if ack.room else []

    def refuse(self, nack: Nack, now: float) -> list[Send]:
        """The broker did not take it."""
        self._hear(nack.session, now)
        entry = self._sent.get((nack.direction, nack.key))
        if entry is None or entry.broker != nack.session:
            return []
        if nack.code is NackCode.BUSY and not entry.is_given_up:
            entry.num_sent, entry.resend_at_s = 1, now + self._resend_s
        else:
            del self._sent[nack.direction, nack.key]
            if isinstance(entry.message, Forward) and (state := self._brokers.get(entry.broker)) is not None:
                state.sent_bytes -= entry.credit_bytes
        return self.update_room(nack.session, nack.room, now) if nack.room else []

    def flush(self, now: float) -> list[Send]:
        """Send what waits, oldest first, while some broker has credit for it."""
        sends: list[Send] = []
        doubted = self.silent(now, self._doubt_s) if self._waiting and len(self._brokers) > 1 else []
        while self._waiting:
            message, frames = self._waiting[0]
            size_bytes = message.parcel.size_bytes
            everybody = [state for state in self._brokers.values() if state.broker not in self.closing]
            able = [state for state in everybody if state.credit_bytes >= state.cost_bytes(size_bytes)]
            able = [state for state in able if state.broker not in doubted] or able
            broker = self._wiring.choose(able, everybody) if able else None
            if broker is None:
                break
            self._waiting.popleft()
            state = self._brokers[broker]
            credit_bytes = state.cost_bytes(size_bytes)
            state.sent_bytes += credit_bytes
            state.depth += 1
            message = replace(message, route=(*message.route, broker))
            peer = self._addresses[broker]
            self._sent[Direction.FORWARD, message.key] = Entry(
                message, frames, broker, peer, now + self._resend_s, now, credit_bytes=credit_bytes
            )
            sends.append(Send(peer=peer, message=message, frames=frames))
        return sends

    def is_done_with(self, broker: Session) -> bool:
        """Will a broker that closes get no Forward any more, not even one that is on its way? For ever, once it is so."""
        out = (entry for entry in self._sent.values() if entry.broker == broker)
        return broker in self.closing and not any(isinstance(entry.message, Forward) for entry in out)

    def resend_due(self, now: float) -> list[Send]:
        """Repeat what has not been acknowledged in time."""
        sends: list[Send] = []
        for entry in self._sent.values():
            if entry.resend_at_s <= now and entry.peer is not None:
                entry.num_sent += 1
                entry.resend_at_s = now + patience(self._resend_s, entry.num_sent)
                sends.append(Send(peer=entry.peer, message=entry.message, frames=entry.frames))
        return sends

    def drop_before(self, branch: int, step: int) -> None:
        """Forget everything of older steps: it is committed, or void."""
        self._drop(lambda message: (message.branch, message.step) < (branch, step))

    def drop_void(self, version: Version, attempt: Attempt, bitmap: int) -> None:
        """Forget the attempts below this one of these microbatches of a step."""

        def is_void(message: Parcelled) -> bool:
            is_named = (message.branch, message.step) == version and bitmap >> message.microbatch & 1 == 1
            return is_named and message.purpose is Purpose.TRAIN and message.attempt < attempt

        self._drop(is_void)

    def _drop(self, is_unwanted: Callable[[Parcelled], bool]) -> None:
        self._waiting = deque(output for output in self._waiting if not is_unwanted(output[0]))
        for entry in self._sent.values():
            entry.is_given_up = entry.is_given_up or is_unwanted(entry.message)
        self._keep_sent(lambda entry: not entry.is_given_up or isinstance(entry.message, Forward))

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        if not self._sent:
            return None
        return min([entry.resend_at_s for entry in self._sent.values() if entry.peer is not None], default=None)

    def pending(self) -> Iterator[EntryKey]:
        """Yield the keys of all outputs that are wanted."""
        yield from (key for key, entry in self._sent.items() if not entry.is_given_up)
        yield from ((Direction.FORWARD, message.key) for message, _ in self._waiting)

    def pending_ledger(self, branch: Branch, step: Step) -> int:
        """Return a bitmap of the microbatches to train on of a step that this outbox will do something about.

        One for a broker without an address is not among them: it may never come.
        """
        if not self._waiting and not self._sent:
            return 0
        messages: list[Parcelled] = [message for message, _ in self._waiting]
        messages += [e.message for e in self._sent.values() if e.peer is not None and not e.is_given_up]
        bitmap = 0
        for message in messages:
            if (message.branch, message.step) == (branch, step) and message.purpose is Purpose.TRAIN:
                bitmap |= 1 << message.microbatch
        return bitmap

    def waits(self, branch: Branch, step: Step) -> bool:
        """Is there a microbatch of this step, of whichever purpose, that no broker has credit for?"""
        return any((message.branch, message.step) == (branch, step) for message, _ in self._waiting)

    def silent(self, now: float, after_s: float) -> list[Session]:
        """Return the brokers that have owed an acknowledgement for so long and have said nothing meanwhile."""
        since_s = now - after_s
        owing = {e.broker for e in self._sent.values() if e.peer is not None and e.since_s < since_s} - {TRAINER}
        return sorted(broker for broker in owing if self._heard_at_s.get(broker, float("-inf")) < since_s)
