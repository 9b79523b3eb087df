"""Getting a stage's state from those who have it, layer by layer, from several at once.

    for each file (a layer's PARAMETERS, its OPTIMIZER): Pull, repeated --State--> Import --> the next range
    each donor gives one file after the other, whichever is next; after the last range of all: Adopt

One range at a time is asked of each donor, which leaves it its time and its uplink for the step in work; a State that
is not the one asked for is a duplicate. A donor that does not answer is given up as long as there is another, who
gives that file from its beginning. One that has gone, or has gone on to the next step, does not answer: the next Restore
names others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stages.tasks import Adopt, Import, Task
from zswarm import limits
from zswarm.ids import TRAINER, Peer, Session, StatePart, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Load, Pull, Restore, State
from zswarm.patience import patience

File = tuple[int, StatePart]


@dataclass(slots=True)
class Lane:
    """What is asked of one donor; without a file it has nothing to give at present."""

    peer: Peer
    file: File | None = None
    offset_bytes: int = 0
    num_asked: int = 0
    resend_at_s: float | None = None


class Loader:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(self, membership: Membership, order: Restore, *, layers: range, resend_s: float) -> None:
        self._me = membership
        self.version: Version = (order.branch, order.step)
        """Whose state this is."""
        self._resend_s = resend_s
        self._waiting = deque((layer, part) for layer in layers for part in StatePart)
        self._num_left = len(self._waiting)
        self._lanes = {session: Lane(peer) for session, peer in self._sources(order).items()}
        self._silent: set[Session] = set()
        """Donors that did not answer while others did."""

    def _sources(self, order: Restore) -> dict[Session, Peer]:
        found = {order.donor: order.address, **{source.donor: source.address for source in order.others}}
        return {s: self._me.coordinator if s == TRAINER else address for s, address in found.items()}

    @property
    def is_adopting(self) -> bool:
        """Is everything here, and being put in place? Then there is no way back."""
        return self._num_left == 0

    def start(self, now: float) -> list[Send | Task]:
        """Ask every donor for a file."""
        return [*self._ask_idle(now)]

    def serves(self, order: Restore) -> bool:
        """Can this go on with the donors of an order, since it is of the same state and some are the same?"""
        sources = self._sources(order)
        is_same = any(sources.get(session) == lane.peer for session, lane in self._lanes.items())
        return is_same and (order.branch, order.step) == self.version

    def follow(self, order: Restore, now: float) -> list[Send | Task]:
        """Go on with the donors of this order: without those that it does not name, with those that are new."""
        sources = self._sources(order)
        for session in [session for session, lane in self._lanes.items() if sources.get(session) != lane.peer]:
            self._give_up(session)
        for session, peer in sources.items():
            if session not in self._silent:
                self._lanes.setdefault(session, Lane(peer))
        return [*self._ask_idle(now)]

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next."""
        lane = self._lanes.get(message.session)
        if lane is None or lane.file is None or (message.branch, message.step) != self.version:
            return []
        layer, part = lane.file
        if (message.layer, message.part, message.offset_bytes) != (layer, part, lane.offset_bytes):
            return []
        task = Import(
            part=part, layer=layer, offset_bytes=lane.offset_bytes, total_bytes=message.total_bytes, load=load
        )
        lane.num_asked = 0
        lane.offset_bytes += message.parcel.size_bytes
        if lane.offset_bytes < message.total_bytes:
            return [task, self._ask(lane, now)]
        lane.file, lane.offset_bytes, lane.resend_at_s = None, 0, None
        self._num_left -= 1
        return [task, Adopt()] if self.is_adopting else [task, *self._ask_idle(now)]

    def resend_due(self, now: float) -> list[Send | Task]:
        """Ask again for what has not come in time, in the end another donor."""
        sends: list[Send | Task] = []
        for session, lane in list(self._lanes.items()):
            if lane.resend_at_s is None or lane.resend_at_s > now:
                continue
            if lane.num_asked >= limits.MAX_ASKED_OF_ONE and len(self._lanes) > 1:
                self._give_up(session)
                self._silent.add(session)
            else:
                sends.append(self._ask(lane, now))
        return [*sends, *self._ask_idle(now)]

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        return min((lane.resend_at_s for lane in self._lanes.values() if lane.resend_at_s is not None), default=None)

    def _give_up(self, donor: Session) -> None:
        """Let another donor give what this one was asked for; from its beginning, so that no file is of two."""
        lane = self._lanes.pop(donor)
        if lane.file is not None:
            self._waiting.appendleft(lane.file)

    def _ask_idle(self, now: float) -> list[Send]:
        """Ask whoever has nothing to give for the next file."""
        sends = []
        for lane in self._lanes.values():
            if lane.file is None and self._waiting:
                lane.file, lane.offset_bytes, lane.num_asked = self._waiting.popleft(), 0, 0
                sends.append(self._ask(lane, now))
        return sends

    def _ask(self, lane: Lane, now: float) -> Send:
        assert lane.file is not None
        layer, part = lane.file
        lane.num_asked += 1
        lane.resend_at_s = now + patience(self._resend_s, lane.num_asked)
        branch, step = self.version
        message = Pull(
            **self._me.header(), branch=branch, step=step, part=part, layer=layer, offset_bytes=lane.offset_bytes
        )
        return Send(peer=lane.peer, message=message)
