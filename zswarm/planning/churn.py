"""How long workers stay and how often new ones come, learned from those who have."""

from __future__ import annotations

from math import exp, inf

FIRST_GUESS_S = 4 * 3600.0
"""How long a worker stays, until somebody has left: preemptible machines live for hours."""
MEMORY_S = 1800.0
"""Newcomers of longer ago count less and less: there are hours in which none can be had."""


class Churn:
    """See the module; its owner tells of everybody who comes or goes.

    The mean stay is the time that all workers have spent here, over how many have left. Those who are still here count
    with the time that they have been here, as they must: the mean over those who have left would say that nobody stays
    for longer than the run has lasted. One departure after FIRST_GUESS_S is assumed beside those that were seen.
    """

    def __init__(self, now: float) -> None:
        self._begun_s = self._counted_until_s = now
        self._num_workers = 0
        self._spent_s = 0.0
        self._num_left = 0
        self._recent_joins = 0.0

    def join(self, now: float, *, is_newcomer: bool = True) -> None:
        """One worker more; those with whom the run begins are no newcomers."""
        self._count(now)
        self._num_workers += 1
        self._recent_joins += is_newcomer

    def leave(self, now: float) -> None:
        """One worker less."""
        self._count(now)
        self._num_workers -= 1
        self._num_left += 1

    def _count(self, now: float) -> None:
        span_s = now - self._counted_until_s
        self._spent_s += self._num_workers * span_s
        self._recent_joins *= exp(-span_s / MEMORY_S)
        self._counted_until_s = now

    def residence_s(self, now: float) -> float:
        """Return how long a worker is expected to stay from now on, however long it has been here."""
        self._count(now)
        return (FIRST_GUESS_S + self._spent_s) / (1 + self._num_left)

    def join_every_s(self, now: float) -> float:
        """Return the mean time between two newcomers of late; infinite if there were none."""
        self._count(now)
        span_s = MEMORY_S * (1.0 - exp(-(now - self._begun_s) / MEMORY_S))
        return span_s / self._recent_joins if self._recent_joins > 0.0 else inf
