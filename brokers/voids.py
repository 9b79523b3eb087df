"""What a broker has been told is void: attempts that are dropped, and refused until their step is over."""

from __future__ import annotations

from zswarm.floors import Floors
from zswarm.ids import Attempt, Version
from zswarm.messages import Key, Void


class Voids:
    """See the module."""

    def __init__(self) -> None:
        self._floors = Floors()
        self.newest = Attempt(0)
        """The attempt of the newest Void, of whichever step; 0 for none."""

    def note(self, message: Void) -> None:
        """Hear that attempts are void."""
        self.newest = max(self.newest, message.attempt)
        self._floors.note(message)

    def covers(self, key: Key) -> bool:
        """Is this attempt void?"""
        return self._floors.covers(key)

    def drop_before(self, version: Version) -> None:
        """Forget older steps: whatever is of them is refused anyway."""
        self._floors.drop_before(version)
