"""`zswarm simulate`: what it prints, and its exit code."""

from __future__ import annotations

import pytest

from zswarm.simulation.command import simulate


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


def test_a_trace_shows_events_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    simulate(1, 12, trace=True)
    lines = capsys.readouterr().out.splitlines()
    assert any("broker-0     < Register(" in line for line in lines)
    assert any("trainer      > Register(" in line for line in lines)
    assert any(" < Run(" in line for line in lines)
