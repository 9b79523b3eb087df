"""How much of the machine others used while something was measured: what makes a figure worthless unseen."""

from __future__ import annotations

import resource
import time

import psutil

TOLERATED_CORES = 0.1
"""More than so much of other processes makes a measurement suspect."""
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""The states of a processor in which we could not have it; not every system has all of them."""


class Bystanders:
    """Counts from its making on; children count as ours once they have ended."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = _own_s()

    def cores(self) -> float:
        """Return the cores that others have used on average, 0 if none."""
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return max(0.0, others_s / (time.monotonic() - self._begun_s))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return sum(float(getattr(times, state, 0.0)) for state in BUSY)


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
