"""Which attempts of which microbatches are void at a worker.

    Void --> floors are raised at once --> no job in work is below them --> `newest` says so

What is below its floor is not begun, not sent and not taken again in that step. Only a job that has begun
is waited for: it may still be counted, and then the ledger that is reported with `newest` says so. A Void of a step
that is over asks for nothing; one of a step that is yet to come is kept until then.
"""

from __future__ import annotations

from collections.abc import Iterable

from zswarm.floors import Floors
from zswarm.ids import Attempt, Version
from zswarm.messages import Key, Void


class Voids:
    """See the module."""

    def __init__(self) -> None:
        self._floors = Floors()
        self._asked = Attempt(0)
        self.newest = Attempt(0)
        """The newest Void that has been carried out in this life, of whichever step; 0 for none."""

    def note(self, message: Void, present: Version) -> None:
        """Raise the floors; those of steps before the present one are of no use any more."""
        self._asked = max(self._asked, message.attempt)
        self._floors.note(message)
        self._floors.drop_before(present)

    def covers(self, key: Key) -> bool:
        """Is this attempt void? What is evaluated is counted nowhere, and never void."""
        return self._floors.covers(key)

    def settle(self, running: Iterable[Key]) -> None:
        """Every Void so far is carried out, unless one of the jobs in work is void."""
        if not any(map(self.covers, running)):
            self.newest = self._asked

    def begin_new_life(self) -> None:
        """Nothing has been asked of this life yet; what is void stays so."""
        self._asked = self.newest = Attempt(0)
