"""The arithmetic of the laboratory's figures: from what a run's log says, and what befell machines, to rates and shares."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

LEAST_PASSES = 8
"""Of the yardstick in a time, for a mean that says something."""


class Record(NamedTuple):
    """A record of the log, and when it was written."""

    at_s: float
    content: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A step that counts, when it was committed, and who has counted something in it."""

    at_s: float
    step: int
    sessions: frozenset[int]

    @classmethod
    def of(cls, records: Sequence[Record]) -> list[Self]:
        """Return the commits of a log, in order; what a rollback has voided is left out."""
        commits: list[Self] = []
        for at_s, content in records:
            match content:
                case {"event": "commit", "step": step, "stages": stages}:
                    counted = (stage["contributions"].items() for stage in stages)
                    sessions = frozenset(int(session) for each in counted for session, indices in each if indices)
                    commits.append(cls(at_s=at_s, step=step, sessions=sessions))
                case {"event": "rollback", "step": step}:
                    commits = [commit for commit in commits if commit.step < step]
        return commits


def durations_s(commits: Sequence[Commit]) -> list[float]:
    """Return how long each step took that followed another one."""
    return [after.at_s - before.at_s for before, after in pairwise(commits)]


def samples_per_s(commits: Sequence[Commit], global_batch: int) -> float:
    """Return the rate from the first to the last of these commits, which need not follow each other.

    Raises:
        ValueError: there are fewer than two.

    """
    if len(commits) < 2:
        raise ValueError(f"{len(commits)} commits have no step between them")
    return global_batch * (len(commits) - 1) / (commits[-1].at_s - commits[0].at_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a join did to a run that was going on."""

    counted_after_s: float
    """Until the first commit that the newcomer has counted something for."""
    samples_per_s_before: float
    lower_percent: float
    """By how much the rate was lower from the command to that commit than before; negative if it was higher."""
    delay_s: float
    """The largest excess of a step in that time over the median step before."""
    delay_before_s: float
    """The same of the steps before, when nobody joined."""


def join_of(commits: Sequence[Commit], session: int, *, begun_s: float, before_s: float, global_batch: int) -> Joined:
    """Reckon what a join did that began at `begun_s`, beside the time of `before_s` before it.

    Raises:
        ValueError: fewer than two commits lie before it, or the session has counted nothing yet.

    """
    first = next((index for index, commit in enumerate(commits) if session in commit.sessions), None)
    if first is None:
        raise ValueError(f"session {session} has counted nothing")
    earlier = [commit for commit in commits if begun_s - before_s <= commit.at_s <= begun_s]
    # From the last commit before the command on: a rate is one of whole steps.
    during = [commit for commit in commits[: first + 1] if commit.at_s >= earlier[-1].at_s] if earlier else []
    rate_before = samples_per_s(earlier, global_batch)
    median_s = statistics.median(durations_s(earlier))
    return Joined(
        counted_after_s=commits[first].at_s - begun_s,
        samples_per_s_before=rate_before,
        lower_percent=100 * (1 - samples_per_s(during, global_batch) / rate_before),
        delay_s=max(durations_s(during)) - median_s,
        delay_before_s=max(durations_s(earlier)) - median_s,
    )


class Span(NamedTuple):
    """A time."""

    begin_s: float
    end_s: float


class Rated(NamedTuple):
    """A rate, and the time in which it was measured."""

    samples_per_s: float
    span: Span

    @classmethod
    def of(cls, commits: Sequence[Commit], global_batch: int) -> Self:
        """Return the rate of `samples_per_s`; the same errors."""
        rate = samples_per_s(commits, global_batch)
        return cls(rate, Span(commits[0].at_s, commits[-1].at_s))


class Pass(NamedTuple):
    """A pass of the yardstick: when it was over, and what it took of the processor's time."""

    at_s: float
    cpu_s: float

    @classmethod
    def of(cls, lines: Sequence[tuple[float, str]]) -> list[Self]:
        """Return those that a yardstick has told of; torch may have said other things."""
        words = [(at_s, line.split()) for at_s, line in lines]
        return [cls(at_s, float(told[1])) for at_s, told in words if len(told) == 2 and told[0] == "pass"]


def speed_in(passes: Sequence[Pass], span: Span) -> float:
    """Return how many passes a processor did in a second of its time.

    Raises:
        ValueError: fewer than LEAST_PASSES ended in that time.

    """
    some_s = [each.cpu_s for each in passes if span.begin_s < each.at_s <= span.end_s]
    if len(some_s) < LEAST_PASSES:
        raise ValueError(f"{len(some_s)} passes of the yardstick in {span.end_s - span.begin_s:.0f} s")
    return 1 / statistics.fmean(some_s)


def at_speed_of(span: Span, rated: Rated, passes: Sequence[Pass]) -> float:
    """Return what a rate would have been had it been measured at another time; errors as those of `speed_in`."""
    return rated.samples_per_s * speed_in(passes, span) / speed_in(passes, rated.span)


class Change(NamedTuple):
    """From `at_s` on something has another value."""

    at_s: float
    value: float


def mean_of(changes: Sequence[Change], *, begin_s: float, end_s: float) -> float:
    """Return the mean over time of what changes; the first change must not come after the beginning."""
    assert changes
    assert changes[0].at_s <= begin_s < end_s
    total = 0.0
    for change, next_s in zip(changes, [*(change.at_s for change in changes[1:]), float("inf")], strict=True):
        total += change.value * max(0.0, min(next_s, end_s) - max(change.at_s, begin_s))
    return total / (end_s - begin_s)


def allowed_share(num_live: int, *, num_machines: int, num_stages: int) -> float:
    """Return what part of their full throughput equal machines allow of which so many are live.

    It is that of the best placement, in which the stage with the fewest has as many as possible: a worker computes one
    stage, so five machines do in three stages no more than three of them would.
    """
    return (num_live // num_stages) / (num_machines // num_stages)


def placed_changes(
    records: Sequence[Record], liveness: Sequence[tuple[float, str, bool]], *, num_stages: int, full: int
) -> list[Change]:
    """Return how the share changes that the stage with the fewest workers has: those in the swarm, on live machines.

    `liveness` says when which machine began (True) or ceased to be live; all are at first. A worker is of the machine
    whose name its own begins with. `full` workers of a stage are a share of 1.
    """
    moments = [
        *records,
        *(Record(at_s, {"event": "live" if is_live else "down", "machine": name}) for at_s, name, is_live in liveness),
    ]
    places: dict[int, tuple[str, int]] = {}
    down: set[str] = set()
    changes = []
    for at_s, content in sorted(moments, key=lambda moment: moment.at_s):
        match content:
            case {"event": "join", "role": "worker", "session": session, "node": node, "stage": stage}:
                places[session] = (node.split("-")[0], stage)
            case {"event": "leave", "session": session}:
                places.pop(session, None)
            case {"event": "down", "machine": name}:
                down.add(name)
            case {"event": "live", "machine": name}:
                down.discard(name)
            case _:
                continue
        counts = Counter(stage for machine, stage in places.values() if machine not in down)
        changes.append(Change(at_s, min(counts[stage] for stage in range(num_stages)) / full))
    return changes
