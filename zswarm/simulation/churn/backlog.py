"""How many jobs wait where, in a pipeline whose stages have these rates.

With so many microbatches in the pipeline at once, a stage that is faster than the slowest has as many waiting as a
queue with one server of its utilisation, drawn from that queue's stationary distribution, the geometric one; all others
wait at the slowest stage. Where several are the slowest, every division among them is as likely (a closed network's
product form). Real brokers differ in detail: there, room is limited, and a step's end empties all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

FULL = 1.0 - 1e-9
"""Utilisation from which on a stage is one of the slowest."""


def draw_backlog(rates: Sequence[float], num_waiting: int, random: Random) -> list[int]:
    """Return how many of `num_waiting` jobs wait in each stage."""
    throughput = min(rates)
    waiting = [0] * len(rates)
    slowest = []
    left = num_waiting
    for stage, rate in enumerate(rates):
        if rate <= throughput / FULL:
            slowest.append(stage)
        elif throughput > 0.0:
            waiting[stage] = min(left, int(math.log(1.0 - random.random()) / math.log(throughput / rate)))
            left -= waiting[stage]
    cuts = sorted(int(random.random() * (left + 1)) for _ in slowest[1:])
    for stage, low, high in zip(slowest, [0, *cuts], [*cuts, left], strict=True):
        waiting[stage] = high - low
    return waiting
