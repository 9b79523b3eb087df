"""Makes a synthetic trace of preemptible T4s: `python -m zswarm.simulation.churn.spot > trace.csv`.

The rates are chosen, not measured: nobody has published the paper's trace. They are of the size that reports about spot
machines have in common, so that the trace has what makes rebalancing hard:

- A machine lives for some hours, and 24 at most (as Google's preemptible ones do; Sharma et al., 2019, arXiv:1911.05160,
  who also find that many are lost early). Here: a fifth is lost after 1 h on average, the others after 12 h.
- Many go at once: a zone takes back a fifth to three fifths of its machines within two minutes, every 8 h on average,
  and gives none for the next half hour on average.
- Capacity follows the time of day: a fifth more or less than the mean within 24 h. Machines in excess are taken back.
- Whoever is lost is asked for again: a zone fills a gap at a rate that would close it in 20 minutes.

The same seed makes the same trace everywhere: of `Random` only `random()` is used, and times are whole seconds.
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
from random import Random

from zswarm.simulation.churn.preemptions import Change

HOURS = 32.0
NUM_WORKERS = 320
"""Mean of the capacity; the paper has run on up to 400."""
SEED = 2301
NUM_ZONES = 4
EARLY_SHARE = 0.2
EARLY_LIFETIME_S = 3600.0
LIFETIME_S = 12 * 3600.0
MOST_LIFETIME_S = 24 * 3600.0
BATCH_EVERY_S = 8 * 3600.0
"""Per zone."""
BATCH_SHARE = (0.2, 0.6)
BATCH_LASTS_S = 120.0
CLOSED_S = 1800.0
SWING = 0.2
DAY_S = 24 * 3600.0
FILL_S = 1200.0
TICK_S = 5.0
"""Zones are looked at this often."""


class Zone:
    """One zone's machines, while a trace is made."""

    def __init__(self, random: Random, capacity: float) -> None:
        self._random = random
        self._capacity = capacity
        self._ends_s: dict[int, float] = {}
        """Of each machine that is there."""
        self._closed_until_s = 0.0

    def _exponential_s(self, mean_s: float) -> float:
        return -mean_s * math.log(1.0 - self._random.random())

    def lifetime_s(self) -> float:
        """Draw how long one machine lives."""
        mean_s = EARLY_LIFETIME_S if self._random.random() < EARLY_SHARE else LIFETIME_S
        return min(self._exponential_s(mean_s), MOST_LIFETIME_S)

    def wanted(self, now_s: float) -> float:
        """Return the zone's capacity."""
        return self._capacity * (1.0 + SWING * math.sin(2.0 * math.pi * now_s / DAY_S))

    def add(self, machine: int, end_s: float) -> None:
        """A machine comes."""
        self._ends_s[machine] = end_s

    def gone(self, now_s: float) -> list[tuple[float, int]]:
        """Return who has left until now, and when."""
        left = sorted((end_s, machine) for machine, end_s in self._ends_s.items() if end_s <= now_s)
        for _, machine in left:
            del self._ends_s[machine]
        return left

    def num_new(self, now_s: float) -> int:
        """Draw how many come within a tick, and take back what is in excess and what a batch takes."""
        if self._random.random() < TICK_S / BATCH_EVERY_S:
            low, high = BATCH_SHARE
            share = low + (high - low) * self._random.random()
            for machine in self._ends_s:
                if self._random.random() < share:
                    self._shorten(machine, now_s + BATCH_LASTS_S * self._random.random())
            self._closed_until_s = now_s + self._exponential_s(CLOSED_S)
        gap = self.wanted(now_s) - len(self._ends_s)
        expected = abs(gap) * TICK_S / FILL_S
        count = int(expected) + (self._random.random() < expected - int(expected))
        if gap < 0.0:
            machines = list(self._ends_s)
            for _ in range(count):
                self._shorten(machines[int(len(machines) * self._random.random())], now_s)
        return count if gap > 0.0 and now_s >= self._closed_until_s else 0

    def _shorten(self, machine: int, end_s: float) -> None:
        self._ends_s[machine] = min(self._ends_s[machine], end_s)


def spot_trace(*, seed: int = SEED, hours: float = HOURS, num_workers: int = NUM_WORKERS) -> list[Change]:
    """Make a trace; all workers of the beginning are there at 0, and have been for up to a day."""
    random = Random(seed)
    zones = [Zone(random, num_workers / NUM_ZONES) for _ in range(NUM_ZONES)]
    changes: list[tuple[int, int, Change]] = []

    def note(time_s: float, machine: int, *, is_arrival: bool) -> None:
        change = Change(float(math.ceil(time_s)), is_arrival, f"w{machine}")
        heapq.heappush(changes, (int(change.time_s), len(changes), change))

    num_made = 0
    for zone in zones:
        for _ in range(round(zone.wanted(0.0))):
            age_s = random.random() * MOST_LIFETIME_S
            zone.add(num_made, min(zone.lifetime_s(), MOST_LIFETIME_S - age_s))
            note(0.0, num_made, is_arrival=True)
            num_made += 1
    for tick in range(1, math.floor(hours * 3600.0 / TICK_S) + 1):
        now_s = tick * TICK_S
        for zone in zones:
            for end_s, machine in zone.gone(now_s):
                note(end_s, machine, is_arrival=False)
            for _ in range(zone.num_new(now_s)):
                zone.add(num_made, now_s + zone.lifetime_s())
                note(now_s, num_made, is_arrival=True)
                num_made += 1
    return [heapq.heappop(changes)[2] for _ in range(len(changes))]


def text_of(changes: list[Change], *, seed: int) -> str:
    """Return the trace as a file's content."""
    head = f"# Synthetic, see zswarm/simulation/churn/spot.py; seed {seed}\n"
    return head + "".join(f"{change}\n" for change in changes)


def main(arguments: list[str] | None = None) -> None:
    """Write a trace to stdout."""
    parser = argparse.ArgumentParser(description="Make a synthetic trace of preemptible machines.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--workers", type=int, default=NUM_WORKERS, help="mean of the capacity")
    chosen = parser.parse_args(arguments)
    changes = spot_trace(seed=chosen.seed, hours=chosen.hours, num_workers=chosen.workers)
    sys.stdout.write(text_of(changes, seed=chosen.seed))


if __name__ == "__main__":
    main()
