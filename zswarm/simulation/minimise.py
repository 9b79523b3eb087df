"""Making a schedule that breaks a promise as small as it can be made, so that somebody can understand it.

One thing after the other is taken away: a fault, a strike, a process, a step. What still breaks the same promise
without it is kept without it. The number of tries is bounded; the outcome need not be the smallest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from zswarm.simulation.faults import Fault
from zswarm.simulation.network import Weather
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.simulate import Report, run

MOST_TRIES = 80
_FAIR = Weather()
_CALM_WEATHER: dict[Fault, dict[str, Any]] = {
    Fault.LOSS: {"loss": 0.0},
    Fault.CORRUPTION: {"corruption": 0.0},
    Fault.DUPLICATION: {"duplication": 0.0},
    Fault.STRAGGLING: {"straggling": 0.0},
    Fault.REORDERING: {"in_order": True},
    Fault.SLOW_LINKS: {"latency_high_s": _FAIR.latency_high_s},
    Fault.SLOW_PAYLOADS: {"payload_factor": 1.0},
}


def without(schedule: Schedule, fault: Fault) -> Schedule:
    """Return the schedule without one kind of fault."""
    calmer = replace(
        schedule,
        faults=schedule.faults - {fault},
        strikes=tuple(strike for strike in schedule.strikes if strike.fault is not fault),
        weather=replace(schedule.weather, **_CALM_WEATHER.get(fault, {})),
    )
    match fault:
        case Fault.UNEVEN_WORKERS:
            return replace(calmer, slowness=1.0)
        case Fault.FORGETFUL_WORKERS:
            return replace(calmer, pace=replace(calmer.pace, keep=1.0, evict=0.0))
        case Fault.TIGHT_BROKERS:
            return replace(calmer, capacity_bytes=1_000_000)
        case Fault.LATE_PROCESSES:
            return replace(calmer, late_brokers=0, late_workers=0)
        case Fault.INTERRUPTION:
            return replace(calmer, interrupted_at_s=None)
        case Fault.SLOW_LOG:
            return replace(calmer, sync_s=0.0)
        case Fault.POISON:
            return replace(calmer, poisons=())
        case _:
            return calmer


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Yield schedules with one thing less, those that make the most difference first."""
    for fault in sorted(schedule.faults):
        yield without(schedule, fault)
    for index in range(len(schedule.strikes)):
        yield replace(schedule, strikes=schedule.strikes[:index] + schedule.strikes[index + 1 :])
    for index in range(len(schedule.poisons)):
        yield replace(schedule, poisons=schedule.poisons[:index] + schedule.poisons[index + 1 :])
    if schedule.num_held_out:
        yield replace(schedule, num_held_out=0)
    for name in ("steps", "num_microbatches", "workers_per_stage", "brokers_per_stage"):
        if getattr(schedule, name) > 1:
            yield replace(schedule, **{name: getattr(schedule, name) - 1})
    if any(layers > 1 for layers in schedule.layers_per_stage):
        yield replace(schedule, layers_per_stage=())


def minimise(report: Report, *, run_once: Callable[[Schedule], Report] = run) -> Report:
    """Return the report of a smaller schedule that breaks the same promise; the same one if none is found."""
    assert report.violation is not None
    tries = 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for schedule in _smaller(report.schedule):
            if tries >= MOST_TRIES:
                return report
            tries += 1
            found = run_once(schedule)
            if found.violation is not None and found.violation.rule == report.violation.rule:
                report, is_smaller = found, True
                break
    return report


def as_seed(report: Report) -> str:
    """Return the file for `tests/seeds/` that keeps a schedule; what broke it has to be put into words."""
    content = {"what": "", "broke": str(report.violation), "schedule": report.schedule.as_json()}
    return json.dumps(content, indent=1)
