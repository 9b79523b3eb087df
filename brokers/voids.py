"""Which attempts are void: the coordinator says so before it admits a microbatch again.

A floor per microbatch and step: attempts below it are dropped and refused until the step is over. Evaluated
microbatches are counted nowhere and have no floors.
"""

from __future__ import annotations

from zswarm.ids import Attempt, Microbatch, Purpose, Version
from zswarm.ledger import from_bytes, members
from zswarm.messages import Key, Void


class Voids:
    """See the module."""

    def __init__(self) -> None:
        self._floors: dict[Version, dict[Microbatch, Attempt]] = {}
        self.newest = Attempt(0)
        """The attempt of the newest Void, of whichever step; 0 for none."""

    def note(self, message: Void) -> None:
        """Raise the floors of the microbatches that it names; of an older step than the own they do no harm."""
        self.newest = max(self.newest, message.attempt)
        version = (message.branch, message.step)
        floors = self._floors.setdefault(version, {})
        for microbatch in members(from_bytes(message.ledger)):
            floors[microbatch] = max(floors.get(microbatch, Attempt(0)), message.attempt)

    def covers(self, key: Key) -> bool:
        """Is this attempt void?"""
        if not self._floors:
            return False
        branch, step, purpose, microbatch, attempt = key
        floors = self._floors.get((branch, step))
        if floors is None or purpose is not Purpose.TRAIN:
            return False
        return attempt < floors.get(microbatch, Attempt(0))

    def drop_before(self, version: Version) -> None:
        """Forget the floors of older steps: whatever is of them is refused anyway."""
        self._floors = {v: floors for v, floors in self._floors.items() if v >= version}
