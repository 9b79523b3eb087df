"""What the faults cost: recomputed from when they were done and when the log said what.

            kill worker-1   leave     join again
    steps  |  |  |  |  |  |      |        |     |  |  |  |
           quiet          <------ disturbed -------> quiet

A disturbed time begins with the last commit before a fault and ends with the first one after everybody is back; those of
faults that overlap are one. Its cost is the number of quiet steps that it would have had room for, less those by which the
run got on in it, in equal parts to all faults in it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zswarm.chaos.faults import Fault, Kind
from zswarm.chaos.history import History

LEAST_QUIET_STEPS = 5
"""Fewer of them say nothing about how long a step takes."""
NOTICED_AFTER_S = 2.0
"""How long after a frozen process goes on its leave is still put down to that."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one fault."""

    fault: Fault
    detection_s: float | None = None
    """Until the log said that the process left, or that the trainer began again; None if it never did."""
    back_at_s: float = 0.0
    """When everything was as before."""
    lost_steps: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return everything of it for a file."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """A time in which faults were in effect."""

    begin_s: float
    end_s: float
    num_steps: int
    """By how many the run got on; with a rollback it may be fewer than none."""
    outcomes: list[Outcome]


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a run with faults came to."""

    outcomes: list[Outcome]
    num_steps: int
    num_voided: int
    """Commits that a rollback made void: steps that were done again."""
    counts: dict[str, int]
    """Records of each kind."""
    quiet_step_s: float | None = None
    """Median time of a step in which everybody was there; None if there were too few."""
    disturbed_steps_per_s: float | None = None
    """How fast the run got on while faults were in effect; rollbacks may make it less than nothing."""
    disturbances: list[Disturbance] = field(default_factory=list)

    @property
    def lost_steps_per_fault(self) -> float | None:
        """Mean cost of a fault."""
        lost = [outcome.lost_steps for outcome in self.outcomes if outcome.lost_steps is not None]
        return statistics.fmean(lost) if lost else None

    def as_json(self) -> dict[str, Any]:
        """Return everything of it for a file."""
        return {
            "num_steps": self.num_steps,
            "num_voided": self.num_voided,
            "counts": self.counts,
            "quiet_step_s": self.quiet_step_s,
            "disturbed_steps_per_s": self.disturbed_steps_per_s,
            "lost_steps_per_fault": self.lost_steps_per_fault,
            "faults": [outcome.as_json() for outcome in self.outcomes],
        }


@dataclass(frozen=True, slots=True)
class _Point:
    """The run's place at one time."""

    at_s: float
    step: int


def figures(history: History, faults: Sequence[Fault]) -> Figures:
    """Return what the faults did to the run of this log; both have times of the same clock."""
    outcomes = [_outcome(fault, history, faults) for fault in faults]
    points, num_voided = _points(history)
    counts: dict[str, int] = {}
    for seen in history.seen:
        counts[seen.record["event"]] = counts.get(seen.record["event"], 0) + 1
    found = Figures(outcomes=outcomes, num_steps=points[-1].step if points else 0, num_voided=num_voided, counts=counts)
    if not points:
        return found
    found.disturbances = _disturbances(outcomes, points)
    quiet = [
        after.at_s - before.at_s
        for before, after in itertools.pairwise(points)
        if after.step == before.step + 1 and not _overlaps(before.at_s, after.at_s, found.disturbances)
    ]
    if len(quiet) >= LEAST_QUIET_STEPS:
        found.quiet_step_s = statistics.median(quiet)
        for disturbance in found.disturbances:
            room = (disturbance.end_s - disturbance.begin_s) / found.quiet_step_s
            for outcome in disturbance.outcomes:
                outcome.lost_steps = (room - disturbance.num_steps) / len(disturbance.outcomes)
    if found.disturbances:
        disturbed_s = sum(disturbance.end_s - disturbance.begin_s for disturbance in found.disturbances)
        num_disturbed = sum(disturbance.num_steps for disturbance in found.disturbances)
        found.disturbed_steps_per_s = num_disturbed / disturbed_s
    return found


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the least value that so many percent of them do not exceed, None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def _outcome(fault: Fault, history: History, faults: Sequence[Fault]) -> Outcome:
    """Find in the log when the fault was noticed and when its effect was over."""
    end_s = max([fault.at_s, fault.until_s or 0.0, *(seen.at_s for seen in history.seen[-1:])])
    next_s = min(
        (other.at_s for other in faults if other.name == fault.name and other.at_s > fault.at_s), default=end_s
    )
    if fault.role == "trainer":
        if fault.kind is Kind.FREEZE:
            return Outcome(fault=fault, back_at_s=fault.until_s or end_s)
        started_s = _first(history, fault.at_s, event="start")
        detection_s = None if started_s is None else started_s - fault.at_s
        return Outcome(fault=fault, detection_s=detection_s, back_at_s=started_s or end_s)
    left_s = None if fault.session is None else _first(history, fault.at_s, event="leave", session=fault.session)
    if fault.kind is Kind.FREEZE:
        until_s = fault.until_s or end_s
        if left_s is None or left_s > min(next_s, until_s + NOTICED_AFTER_S):
            return Outcome(fault=fault, back_at_s=until_s)
    again_s = _first(history, left_s if left_s is not None else fault.at_s, event="join", node=fault.name)
    return Outcome(
        fault=fault,
        detection_s=None if left_s is None else left_s - fault.at_s,
        back_at_s=end_s if again_s is None else again_s,
    )


def _first(history: History, after_s: float, **wanted: Any) -> float | None:
    """Return when the first record with these fields was seen at this time or later."""
    begin = bisect_left(history.seen, after_s, key=lambda seen: seen.at_s)
    for seen in history.seen[begin:]:
        if all(seen.record.get(key) == value for key, value in wanted.items()):
            return seen.at_s
    return None


def _points(history: History) -> tuple[list[_Point], int]:
    """Return the run's start and its commits, and how many of these were made void."""
    points: list[_Point] = []
    step = num_voided = 0
    for seen in history.seen:
        match seen.record:
            case {"event": "commit", "step": committed}:
                step = committed + 1
            case {"event": "rollback", "step": target}:
                num_voided += step - target
                step = target
                continue
            case {"event": "start"} if not points:
                pass
            case _:
                continue
        points.append(_Point(seen.at_s, step))
    return points, num_voided


def _disturbances(outcomes: Sequence[Outcome], points: Sequence[_Point]) -> list[Disturbance]:
    times = [point.at_s for point in points]
    found: list[tuple[int, int, list[Outcome]]] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.fault.at_s):
        first = max(0, bisect_right(times, outcome.fault.at_s) - 1)
        last = min(len(points) - 1, bisect_left(times, outcome.back_at_s))
        if first >= last:
            continue  # the run had got to its last step
        if found and first < found[-1][1]:
            begin, end, together = found[-1]
            found[-1] = (begin, max(end, last), [*together, outcome])
        else:
            found.append((first, last, [outcome]))
    return [
        Disturbance(
            begin_s=times[first],
            end_s=times[last],
            num_steps=points[last].step - points[first].step,
            outcomes=together,
        )
        for first, last, together in found
    ]


def _overlaps(begin_s: float, end_s: float, disturbances: Iterable[Disturbance]) -> bool:
    return any(begin_s < disturbance.end_s and disturbance.begin_s < end_s for disturbance in disturbances)
