"""When a copy of what a worker has counted is worth its cost.

A worker that is lost takes with it what it has counted since the last copy, on average half of what it counts between
two. To copy every `sqrt(2 * cost * mean time between losses)` costs least (J. W. Young, Communications of the ACM 17(9), 1974).
With one loss or none that is never, and a step that is shorter is over before. In a stage that waits for
slower ones a copy costs no throughput unless the link is full: there one begins whenever twice the time has passed that
one takes, as long as a loss is remembered, about an hour.
"""

from __future__ import annotations

from math import exp, inf, sqrt

from zswarm import limits
from zswarm.ids import Stage

MEMORY_S = 1800.0
"""Losses of longer ago, and the time without any, count less and less."""
BURDEN = 0.25
"""Of the time that a copy takes, how much less two workers are taken to compute: links and processors do other things meanwhile."""
MIN_LOST = 0.1
"""Where less is left of the last loss it is forgotten."""
NEWEST_SHARE = 0.3
"""Weight of the newest copy in what is known of how long one takes."""


class Backups:
    """See the module. `every_s` is how long to wait, where that is not to be learned."""

    def __init__(self, state_bytes: tuple[int, ...], *, every_s: float | None) -> None:
        self._every_s = every_s
        self._took_s = [size_bytes / limits.FIRST_BANDWIDTH_BYTES_PER_S for size_bytes in state_bytes]
        """How long a copy takes, by stage; before the first, as if it were the whole state."""
        self._num_lost = self._worker_s = 0.0
        self._until_s: float | None = None

    def counted(self, num_workers: int, now: float) -> None:
        """So many workers have been here since this was said last."""
        if self._until_s is not None:
            span_s = now - self._until_s
            kept = exp(-span_s / MEMORY_S)
            self._num_lost *= kept
            self._worker_s = self._worker_s * kept + num_workers * span_s
        self._until_s = now

    def lost(self) -> None:
        """A worker is lost, and what it has counted."""
        self._num_lost += 1.0

    def took(self, stage: Stage, took_s: float) -> None:
        """A copy has been made."""
        self._took_s[stage] += NEWEST_SHARE * (took_s - self._took_s[stage])

    def every_s(self, stage: Stage, *, has_time: bool = False) -> float:
        """Return for how long what a worker of a stage has counted may be in no copy; `has_time`: it waits for others."""
        if self._every_s is not None:
            return self._every_s
        if has_time and self._num_lost >= MIN_LOST:
            return 2.0 * self._took_s[stage]
        # The first loss says how long there was none, and not how many are to be expected: without it the rate has no bias.
        num_lost = self._num_lost - 1.0
        between_s = self._worker_s / num_lost if num_lost >= MIN_LOST else inf
        took_s = self._took_s[stage]
        return max(2.0 * took_s, sqrt(2.0 * BURDEN * took_s * between_s))
