from __future__ import annotations

import pytest

from zswarm.config import RunConfig
from zswarm.trainer.pace import RECENT_STEPS, Pace

CONFIG = RunConfig.model_validate(
    {
        "run": {"steps": 100},
        "model": {"sequence_length": 10},
        "batch": {"global_batch": 8, "microbatch": 4},
    }
)


def pace_of(*times):
    pace = Pace(CONFIG, now=1000.0)
    for index, time in enumerate(times):
        pace.commit(5.0 - index, 1000.0 + time)
    return pace


def summary_of(pace, now=1050.0):
    return pace.summary(now, held_out_loss=(5.5, 2.5), wire_bytes=77, stages=4, workers=8)


def test_rates_are_medians_over_the_steps_after_the_first():
    """The first step includes the start; one slow step among many does not change the rate."""
    summary = summary_of(pace_of(30, 32, 34, 44, 46))
    assert summary["samples_per_s"] == 4.0
    assert summary["tokens_per_s"] == 40.0
    assert summary["time_to_first_step_s"] == 30.0


def test_the_summary_has_what_the_documents_say():
    assert summary_of(pace_of(2, 4)) == {
        "steps": 2,
        "loss": [5.0, 4.0],
        "held_out_loss": 2.5,
        "held_out_loss_before": 5.5,
        "samples_per_s": 4.0,
        "tokens_per_s": 40.0,
        "wall_s": 50.0,
        "time_to_first_step_s": 2.0,
        "wire_bytes": 77,
        "stages": 4,
        "workers": 8,
    }


def test_the_line_shows_the_recent_pace():
    slow = [10.0 * step for step in range(1, 20)]
    pace = pace_of(*slow, *(slow[-1] + step for step in range(1, RECENT_STEPS + 1)))
    assert pace.tokens_per_s == 80.0
    assert pace.time_left_s == 100 - pace.num_steps


@pytest.mark.parametrize("times", [(), (4,)])
def test_there_is_no_pace_before_the_second_step(times):
    """The first step's time includes the start: a rate made of it would be wrong by a factor of ten."""
    pace = pace_of(*times)
    assert (pace.tokens_per_s, pace.time_left_s) == (None, None)
    summary = summary_of(pace)
    assert (summary["samples_per_s"], summary["tokens_per_s"]) == (None, None)


def test_nothing_is_divided_by_no_time():
    pace = pace_of(1.0, 1.0)
    assert (pace.tokens_per_s, pace.time_left_s) == (None, 0.0)


def test_a_run_that_goes_on_counts_all_of_its_steps_and_times_only_its_own():
    """The pause between two lives of the trainer is no step's duration."""
    pace = Pace(CONFIG, now=1000.0)
    pace.take_up([9.0, 8.0], wall_s=300.0)
    assert (pace.num_steps, pace.tokens_per_s) == (2, None)
    for time in (10, 12, 14):
        pace.commit(5.0, 1000.0 + time)
    assert pace.time_left_s == 2.0 * 95
    summary = summary_of(pace)
    assert (summary["steps"], summary["loss"]) == (5, [9.0, 8.0, 5.0, 5.0, 5.0])
    assert (summary["samples_per_s"], summary["time_to_first_step_s"], summary["wall_s"]) == (4.0, 10.0, 350.0)


def test_a_rollback_forgets_the_losses_that_it_has_undone():
    """Nor is the way back a step's duration."""
    pace = pace_of(2, 4, 6)
    pace.roll_back(1)
    assert (pace.num_steps, pace.time_left_s) == (1, 2.0 * 99)
    for time in (106, 108):
        pace.commit(1.0, 1000.0 + time)
    summary = summary_of(pace)
    assert (summary["loss"], summary["samples_per_s"]) == ([5.0, 1.0, 1.0], 4.0)
