"""Fetching the final parameters from the workers, layer by layer, one worker per stage.

Each Pull asks for the range that is missing; it is repeated until its State comes. A State that is not
the one asked for is a duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass

from zswarm.ids import Branch, Role, Session, Stage, StatePart, Step
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Load, Pull, State
from zswarm.patience import patience
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Store


@dataclass(slots=True)
class Cursor:
    """How far one stage has been fetched."""

    layer: int
    end: int
    donor: Session | None = None
    offset_bytes: int = 0
    num_asked: int = 0
    """How often the range that is missing has been asked for."""
    num_beats: int = 0
    """Calls of `ask` since then."""


class Collection:
    """See the module."""

    def __init__(
        self, roster: Roster, header: Header, *, version: tuple[Branch, Step], layers_per_stage: tuple[int, ...]
    ) -> None:
        self._roster = roster
        self._header = header
        self._version = version
        self._cursors: dict[Stage, Cursor] = {}
        first = 0
        for stage, count in enumerate(layers_per_stage):
            self._cursors[Stage(stage)] = Cursor(first, first + count)
            first += count

    @property
    def is_complete(self) -> bool:
        """Has every layer been fetched?"""
        return all(cursor.layer >= cursor.end for cursor in self._cursors.values())

    def ask(self) -> list[Send]:
        """Ask for what is missing, of stages whose workers hold the final parameters; to be called every heartbeat."""
        sends = []
        for stage, cursor in self._cursors.items():
            donor = next((w for w in self._roster.of(Role.WORKER, stage) if w.version == self._version), None)
            cursor.num_beats += 1
            is_due = cursor.num_asked == 0 or cursor.num_beats > patience(1, cursor.num_asked)
            if donor is not None and cursor.layer < cursor.end and is_due:
                cursor.donor = donor.session
                sends.append(self._pull(donor, cursor))
        return sends

    def _pull(self, donor: Record, cursor: Cursor) -> Send:
        branch, step = self._version
        cursor.num_asked, cursor.num_beats = cursor.num_asked + 1, 0
        message = Pull(
            **self._header,
            branch=branch,
            step=step,
            part=StatePart.PARAMETERS,
            layer=cursor.layer,
            offset_bytes=cursor.offset_bytes,
        )
        return Send(peer=donor.addresses[0], message=message)

    def received(self, message: State, load: Load) -> list[Send | Store]:
        """Take a range and ask for the next."""
        donor = self._roster.records.get(message.session)
        cursor = self._cursors.get(donor.stage) if donor is not None else None
        if donor is None or cursor is None or message.session != cursor.donor:
            return []
        if (message.layer, message.offset_bytes) != (cursor.layer, cursor.offset_bytes):
            return []
        store = Store(
            layer=message.layer, offset_bytes=message.offset_bytes, total_bytes=message.total_bytes, load=load
        )
        cursor.offset_bytes += message.parcel.size_bytes
        cursor.num_asked = 0
        if cursor.offset_bytes >= message.total_bytes:
            cursor.layer, cursor.offset_bytes = cursor.layer + 1, 0
        return [store] if cursor.layer >= cursor.end else [store, self._pull(donor, cursor)]
