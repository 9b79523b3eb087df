"""Fetching the state of one step from the workers, layer by layer, for a checkpoint.

    per stage    layer 0: parameters, optimizer; layer 1: parameters, optimizer; ...

While training goes on, each stage's part comes from the one worker that was asked to keep a copy of that
step; if it leaves, there is no checkpoint of it. Of the last step any worker will do. Each Pull asks for the
range that is missing; it is repeated until its State comes. A State that is not the one asked for is a
duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass

from zswarm import limits
from zswarm.ids import STATE_FILES, Leaving, Role, Session, Stage, StatePart, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Load, Pull, State
from zswarm.patience import patience
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Store


@dataclass(slots=True)
class Cursor:
    """How far one stage has been fetched: `file` counts layers and, within each, parts."""

    file: int
    end: int
    donor: Session | None = None
    offset_bytes: int = 0
    num_asked: int = 0
    """How often the range that is missing has been asked for."""
    num_beats: int = 0
    """Calls of `ask` since then."""

    @property
    def layer(self) -> int:
        """The layer that is being fetched."""
        return self.file // len(STATE_FILES)

    @property
    def part(self) -> StatePart:
        """The part of it."""
        return STATE_FILES[self.file % len(STATE_FILES)]


class Collection:
    """See the module. `donors` are the workers that keep a copy; None where everybody's present state is it."""

    def __init__(
        self,
        roster: Roster,
        header: Header,
        *,
        version: Version,
        layers_per_stage: tuple[int, ...],
        donors: dict[Stage, Session] | None,
    ) -> None:
        self._roster = roster
        self._header = header
        self.version = version
        self._donors = donors
        self._cursors: dict[Stage, Cursor] = {}
        first = 0
        for stage, count in enumerate(layers_per_stage):
            self._cursors[Stage(stage)] = Cursor(first * len(STATE_FILES), (first + count) * len(STATE_FILES))
            first += count

    @property
    def is_complete(self) -> bool:
        """Has everything been fetched?"""
        return all(cursor.file >= cursor.end for cursor in self._cursors.values())

    @property
    def lost_donor(self) -> Session | None:
        """Return a worker whose copy is still needed and that has left, or does not give it."""
        for stage, session in (self._donors or {}).items():
            cursor = self._cursors[stage]
            is_gone = session not in self._roster.records or cursor.num_asked > limits.MAX_ASKED
            if cursor.file < cursor.end and is_gone:
                return session
        return None

    def needs(self, donor: Session) -> bool:
        """Does nobody else have what is still to be fetched from this worker?"""
        stages = [stage for stage, session in (self._donors or {}).items() if session == donor]
        return any(self._cursors[stage].file < self._cursors[stage].end for stage in stages)

    def ask(self) -> list[Send]:
        """Ask for what is missing, of those who hold it by now; to be called every heartbeat."""
        sends = []
        for stage, cursor in self._cursors.items():
            donor = self._donor(stage, cursor)
            cursor.num_beats += 1
            if donor is None or cursor.file >= cursor.end:
                continue
            if donor.session != cursor.donor:
                cursor.donor, cursor.offset_bytes, cursor.num_asked = donor.session, 0, 0
            if cursor.num_asked == 0 or cursor.num_beats > patience(1, cursor.num_asked):
                sends.append(self._pull(donor, cursor))
        return sends

    def _donor(self, stage: Stage, cursor: Cursor) -> Record | None:
        able = [
            w
            for w in self._roster.of(Role.WORKER, stage)
            if w.holds(self.version) or (self._donors is not None and w.is_ready and w.version > self.version)
        ]
        wanted = cursor.donor if self._donors is None else self._donors.get(stage)
        for worker in able:
            if worker.session == wanted:
                return worker
        able = [worker for worker in able if worker.leaving is Leaving.NO] or able
        return able[0] if able and self._donors is None else None

    def _pull(self, donor: Record, cursor: Cursor) -> Send:
        branch, step = self.version
        cursor.num_asked, cursor.num_beats = cursor.num_asked + 1, 0
        message = Pull(
            **self._header,
            branch=branch,
            step=step,
            part=cursor.part,
            layer=cursor.layer,
            offset_bytes=cursor.offset_bytes,
        )
        return Send(peer=donor.addresses[0], message=message)

    def received(self, message: State, load: Load, *, may_ask: bool = True) -> list[Send | Store]:
        """Take a range and ask for the next, if that may be; otherwise `ask` does."""
        donor = self._roster.records.get(message.session)
        cursor = self._cursors.get(donor.stage) if donor is not None else None
        if donor is None or cursor is None or message.session != cursor.donor or cursor.file >= cursor.end:
            return []
        if (message.branch, message.step) != self.version:
            return []
        if (message.part, message.layer, message.offset_bytes) != (cursor.part, cursor.layer, cursor.offset_bytes):
            return []
        store = Store(
            branch=message.branch,
            step=message.step,
            part=message.part,
            layer=message.layer,
            offset_bytes=message.offset_bytes,
            total_bytes=message.total_bytes,
            load=load,
        )
        cursor.offset_bytes += message.parcel.size_bytes
        cursor.num_asked = 0
        if cursor.offset_bytes >= message.total_bytes:
            cursor.file, cursor.offset_bytes = cursor.file + 1, 0
        is_last = not may_ask or cursor.file >= cursor.end
        return [store] if is_last else [store, self._pull(donor, cursor)]
