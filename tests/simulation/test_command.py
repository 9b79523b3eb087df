"""`zswarm simulate`: what it prints, and its exit code."""

from __future__ import annotations

import json

import pytest

from zswarm.simulation.command import simulate
from zswarm.simulation.schedule import Schedule


def test_clean_schedules_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(3, 10) == 0
    printed = capsys.readouterr().out
    assert "3 schedules" in printed
    assert "commit records" in printed
    assert "every schedule kept every promise" in printed


def test_a_failing_schedule_is_named_with_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    """The seed, the promise, what happened last, and the command that shows everything."""
    assert simulate(2, 0, mutant="commit-before-log") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "seed 0 broke a promise: I4: trainer tells of the commit of step 0" in printed
    assert "--schedules 1 --seed 1 --mutant commit-before-log --trace" in printed
    assert "2 schedules broke a promise, those of the seeds 0 1" in printed


def test_a_failing_schedule_is_made_smaller_for_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(1, 0, mutant="commit-before-log")
    printed = capsys.readouterr().out
    content = json.loads(printed[printed.index('{\n "what"') : printed.index("\n}\n") + 2])
    assert content["what"] == ""
    assert content["broke"].startswith("I4: ")
    assert Schedule.from_json(content["schedule"]).num_microbatches == 1


@pytest.mark.parametrize("mutant", [None, "commit-before-log"])
def test_several_processes_print_what_one_prints(mutant: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the time that it took: the same totals, the same failures in the same order."""
    printed = []
    for jobs in (1, 2):
        simulate(10, 20, mutant=mutant, jobs=jobs)
        lines = capsys.readouterr().out.splitlines()
        printed.append([line for line in lines if "schedules per second" not in line])
    assert printed[0] == printed[1]


def test_a_trace_shows_events_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(1, 12, trace=True)
    lines = capsys.readouterr().out.splitlines()
    assert any("broker-0     < Register(" in line for line in lines)
    assert any("trainer      > Register(" in line for line in lines)
    assert any(" < Run(" in line for line in lines)
