"""What the event log of a run says while it is being written: who is in, and what happened when."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A record, and when it was first seen, on the clock of who looks."""

    at_s: float
    record: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class History:
    """All records so far."""

    seen: list[Seen] = field(default_factory=list)
    _members: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    """Name, role and stage of every session that has joined and not left."""
    _contributors: set[int] = field(default_factory=set)

    def add(self, records: Iterable[dict[str, Any]], now: float) -> None:
        """Take in the records that have come since the last call."""
        for record in records:
            self.seen.append(Seen(at_s=now, record=record))
            match record:
                case {"event": "join", "session": session, "node": name, "role": role, "stage": stage}:
                    self._members[session] = (name, role, stage)
                case {"event": "leave", "session": session}:
                    self._members.pop(session, None)
                case {"event": "commit", "stages": stages}:
                    self._contributors.update(
                        int(session)
                        for stage in stages
                        for session, counted in stage["contributions"].items()
                        if counted
                    )

    def of(self, event: str) -> list[Seen]:
        """Return the records of one kind."""
        return [seen for seen in self.seen if seen.record.get("event") == event]

    def session_of(self, name: str) -> int | None:
        """Return the newest session of a process that is in."""
        return max((session for session, member in self._members.items() if member[0] == name), default=None)

    @property
    def step(self) -> int:
        """The step that is to be committed next."""
        for seen in reversed(self.seen):
            if seen.record["event"] == "commit":
                return int(seen.record["step"]) + 1
            if seen.record["event"] == "rollback":
                return int(seen.record["step"])
        return 0

    def last_of_their_stage(self, down: Collection[str]) -> set[str]:
        """Return the workers whose loss would leave nobody who holds the parameters of their stage.

        Who holds them is not in the log; who has contributed to a commit and is still in does for sure, and of those who
        have not, once there is a commit, who is in for the longest may be the only one. `down` are the processes that are
        known to be dead or frozen and that the log may still call in.
        """
        alone = set()
        for stage in {stage for _, role, stage in self._members.values() if role == "worker"}:
            up = {
                name: session in self._contributors
                for session, (name, role, at) in sorted(self._members.items())
                if role == "worker" and at == stage and name not in down
            }
            # As long as nothing is committed, all hold what the run began with.
            others = list(up)[:1] if self._contributors else list(up)
            holders = [name for name, has_contributed in up.items() if has_contributed] or others
            if len(holders) == 1:
                alone.add(holders[0])
        return alone


class Tail:
    """Reads the complete lines of a file as they are appended; the file may be yet to come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_bytes = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of the lines that have been completed since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset_bytes)
                complete, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        # A torn line is not counted: a trainer that starts again cuts it off.
        self._offset_bytes += len(complete) + len(newline)
        return [record for line in complete.split(b"\n") if line and (record := _decode(line)) is not None]


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None  # the audit will tell
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None
