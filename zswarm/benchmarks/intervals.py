"""The arithmetic of the benchmarks: rates from the times at which steps ended, and ratios that noise does not reach.

A machine's speed drifts by more than the differences that matter here. So systems are measured in rounds,
each once per round, and what is compared is the ratio within a round; a figure is the median over rounds.

    round 0   A B C      a ratio A/B is made of one round's A and B,
    round 1   C B A      and rounds run in alternating order,
    round 2   A B C      so that a steady drift falls on both sides
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def rate_per_s(ends_s: Sequence[float], num_samples: int) -> float:
    """Return samples per second: `num_samples` over the median duration of the steps after the first.

    `ends_s` are the times at which the steps ended, in order.

    Raises:
        ValueError: there are fewer than two.

    """
    if len(ends_s) < 2:
        raise ValueError(f"{len(ends_s)} steps have no step after the first")
    return num_samples / statistics.median(later - earlier for earlier, later in pairwise(ends_s))


def common_rate_per_s(processes: Sequence[Sequence[float]], num_samples: int) -> float:
    """Return the sum of the rates of processes that ran side by side.

    Each has the times at which its steps ended, of one clock. Only steps that lie wholly in the time in
    which all processes were between their first and last step count: what one does while another has
    the machine's rest for itself is no part of it.

    Raises:
        ValueError: a process has no such step.

    """
    begin_s = max(ends[0] for ends in processes)
    end_s = min(ends[-1] for ends in processes)
    return sum(rate_per_s([at for at in ends if begin_s <= at <= end_s], num_samples) for ends in processes)


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round; raises ValueError where rounds are missing."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def alternating(systems: Sequence[T], num_rounds: int) -> list[list[T]]:
    """Return the order of the systems in each round: forwards, backwards, forwards, ..."""
    return [list(systems) if index % 2 == 0 else list(reversed(systems)) for index in range(num_rounds)]
