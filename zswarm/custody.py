"""Which microbatches a process has had in hand since it last reported.

A process that reports only what it holds at that moment never names a microbatch that comes and goes between two of its
reports, and one that is quick enough slips through between those of everybody. From its producer to its consumer a
microbatch is always in somebody's hand, since an output is kept until it is acknowledged: so if each names all that it
has held since its last report, a microbatch that is alive is named at least once per interval.
"""

from __future__ import annotations

from zswarm.ids import Microbatch, Version


class Custody:
    """See the module. Bitmaps of microbatches to train on, by (branch, step)."""

    def __init__(self) -> None:
        self._since: dict[Version, int] = {}

    def take(self, version: Version, microbatch: Microbatch) -> None:
        """A microbatch has come."""
        self._since[version] = self._since.get(version, 0) | 1 << microbatch

    def passed(self, version: Version, held: int) -> int:
        """Begin the next interval with what is held; return what was held in the last one and is not any more."""
        passed = self._since.get(version, 0) & ~held
        self._since[version] = held
        return passed

    def drop_before(self, version: Version) -> None:
        """Forget older steps."""
        self._since = {known: bitmap for known, bitmap in self._since.items() if known >= version}
