"""Run a schedule and say what came of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from zswarm.simulation.schedule import Schedule, make_schedule
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.trace import Listener, Trace
from zswarm.simulation.violation import Violation

TRACE_LENGTH = 4000
STORY_LENGTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a schedule; `violation` is None if it kept every promise."""

    schedule: Schedule
    digest: str
    num_events: int
    virtual_s: float
    counters: Counter[str]
    records: tuple[dict[str, Any], ...]
    """The event log of the run."""
    violation: Violation | None


def run(schedule: Schedule, *, listener: Listener | None = None) -> Report:
    """Run a schedule to its end or to its first violation; `listener` is told each happening in a line."""
    swarm = Swarm(schedule, Trace(listener=listener))
    violation = _violation_of(swarm)
    return Report(
        schedule=schedule,
        digest=swarm.trace.digest,
        num_events=swarm.num_events,
        virtual_s=swarm.now_s,
        counters=swarm.counters,
        records=tuple(swarm.disk.records),
        violation=violation,
    )


def story_of(report: Report) -> list[str]:
    """Return the last happenings that concern the microbatch or round which a violation names.

    For that the schedule is run again: it takes the same way.
    """
    swarm = Swarm(report.schedule, Trace(length=TRACE_LENGTH))
    violation = _violation_of(swarm)
    return swarm.trace.story(mentions=_mentions(violation.text) if violation else {}, most=STORY_LENGTH)


def _violation_of(swarm: Swarm) -> Violation | None:
    try:
        swarm.run()
    except Violation as violation:
        return violation
    return None


def run_seed(seed: int, *, listener: Listener | None = None) -> Report:
    """Run the schedule of a seed."""
    return run(make_schedule(seed), listener=listener)


def _mentions(text: str) -> dict[str, int]:
    """Return the fields that a violation's text names, such as `microbatch 3`."""
    found = re.findall(r"\b(microbatch|round) (\d+)", text)
    return {name: int(number) for name, number in found[:1]}
