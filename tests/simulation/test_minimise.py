"""A schedule that fails is made smaller and still fails, and can be kept."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from zswarm.simulation.faults import Fault
from zswarm.simulation.minimise import MOST_TRIES, as_seed, minimise, without
from zswarm.simulation.mutants import in_force
from zswarm.simulation.schedule import Schedule, make_schedule
from zswarm.simulation.simulate import Report, run
from zswarm.simulation.violation import Violation

LARGE = next(
    schedule
    for schedule in map(make_schedule, range(1000))
    if len(schedule.strikes) > 4 and len(schedule.faults) > 8 and schedule.num_stages > 1
)


def fails_with(schedule: Schedule, *, broken: bool) -> Report:
    violation = Violation("I1", "broken") if broken else None
    return Report(
        schedule=schedule,
        digest="",
        num_events=1,
        virtual_s=1.0,
        counters=Counter(),
        records=(),
        violation=violation,
    )


def test_what_does_not_matter_is_taken_away() -> None:
    """One strike breaks the promise: all else goes, and that stays."""
    culprit = LARGE.strikes[2]
    tries = []

    def run_once(schedule: Schedule) -> Report:
        tries.append(schedule)
        return fails_with(schedule, broken=culprit in schedule.strikes)

    smaller = minimise(fails_with(LARGE, broken=True), run_once=run_once).schedule
    assert smaller.strikes == (culprit,)
    assert smaller.faults == {culprit.fault}
    assert (smaller.weather.loss, smaller.poisons, smaller.num_held_out) == (0.0, (), 0)
    assert (smaller.num_microbatches, smaller.steps, smaller.workers_per_stage) == (1, 1, 1)
    assert len(tries) <= MOST_TRIES


def test_another_violation_is_not_the_same() -> None:
    def run_once(schedule: Schedule) -> Report:
        return replace(fails_with(schedule, broken=True), violation=Violation("I8", "another"))

    report = fails_with(LARGE, broken=True)
    assert minimise(report, run_once=run_once) is report


@pytest.mark.parametrize("fault", Fault)
def test_a_schedule_without_a_fault_has_none_of_it(fault: Fault) -> None:
    """What is left is what a schedule has that was drawn without it."""
    for schedule in map(make_schedule, range(30)):
        calmer = without(schedule, fault)
        assert fault not in calmer.faults
        assert not any(strike.fault is fault for strike in calmer.strikes)
    if fault is Fault.LOSS:
        assert calmer.weather.loss == 0.0
    if fault is Fault.INTERRUPTION:
        assert calmer.interrupted_at_s is None


def test_a_broken_machine_leads_to_a_file_for_the_seeds() -> None:
    with in_force("commit-before-log"):
        report = minimise(run(make_schedule(0)))
        content = json.loads(as_seed(report))
        again = run(Schedule.from_json(content["schedule"]))
    assert again.violation is not None
    assert str(again.violation) == content["broke"]
    assert content["broke"].startswith("I4")
    assert content["schedule"]["faults"] == []
    assert run(report.schedule).violation is None
