"""Which attempts are void: the coordinator says so before it admits a microbatch again.

A floor per microbatch and step: attempts below it are void until the step is over. Evaluated microbatches are
counted nowhere and have no floors.
"""

from __future__ import annotations

from zswarm import ledger
from zswarm.ids import Attempt, Microbatch, Purpose, Version
from zswarm.messages import Key, Void


class Floors:
    """See the module."""

    def __init__(self) -> None:
        self._floors: dict[Version, dict[Microbatch, Attempt]] = {}

    def note(self, message: Void) -> None:
        """Raise the floors of the microbatches that it names; those of a step that is over do no harm."""
        floors = self._floors.setdefault((message.branch, message.step), {})
        for microbatch in ledger.members(ledger.from_bytes(message.ledger)):
            floors[microbatch] = max(floors.get(microbatch, message.attempt), message.attempt)

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
        """Forget the floors of older steps."""
        self._floors = {v: floors for v, floors in self._floors.items() if v >= version}
