"""What is done and kept, in case that whoever has counted it is lost before the step is committed.

A worker counts a microbatch in its accumulator; with its session that is void. Then the home broker has the last
job done again, from the stage's input and the gradient of its output. So both are kept while there is room (see
`brokers.credit`), the oldest given up first; what was given up the coordinator has to admit again.
"""

from __future__ import annotations

from collections.abc import Callable

from brokers.credit import Credits
from brokers.entries import Entry, EntryState
from zswarm.ids import Session
from zswarm.messages import Key


class Retention:
    """The entries in the state DONE, those that were done first before the others."""

    def __init__(self, credits: Credits) -> None:
        self._credits = credits
        self._entries: dict[Key, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def keep(self, entry: Entry, by: Session) -> None:
        """Keep what `by` has counted."""
        entry.state, entry.done_by, entry.affine = EntryState.DONE, by, None
        self._entries[entry.key] = entry
        self._credits.keep(entry.credit_bytes)

    def bequeath(self, owner_of: Callable[[Session, Entry], Session | None]) -> None:
        """Let each entry be theirs to whom it belongs by now; nobody's stays the leaver's."""
        for entry in self._entries.values():
            assert entry.done_by is not None
            entry.done_by = owner_of(entry.done_by, entry) or entry.done_by

    def owners(self) -> set[Session]:
        """Return who has counted what is kept."""
        return {entry.done_by for entry in self._entries.values() if entry.done_by is not None}

    def take_back(self, by: Session) -> list[Entry]:
        """Return what `by` had counted, oldest first: it is a reservation again, not kept any more."""
        lost = [entry for entry in self._entries.values() if entry.done_by == by]
        for entry in lost:
            del self._entries[entry.key]
            self._credits.reserve_again(entry.credit_bytes)
        return lost

    def make_room(self) -> None:
        """Give up what is kept beyond the bound; to be called after whatever may have granted something."""
        while self._entries and self._credits.excess_bytes > 0:
            self._give_up(next(iter(self._entries.values())))

    def drop(self, is_void: Callable[[Entry], bool]) -> None:
        """Give up what nobody will ask for any more."""
        for entry in [entry for entry in self._entries.values() if is_void(entry)]:
            self._give_up(entry)

    def _give_up(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._credits.give_up(entry.credit_bytes)
