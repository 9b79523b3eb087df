from __future__ import annotations

import pytest

from zswarm.trainer.costs import Costs


def commit(step: int, time_s: float) -> dict[str, object]:
    return {"event": "commit", "step": step, "time_s": time_s}


def ran(costs: Costs, *ends_s: float) -> list[object]:
    """Return what each of these steps, the first is step 0, took longer than usual."""
    return [costs.priced(commit(step, end_s)).get("late_s") for step, end_s in enumerate(ends_s)]


def test_a_step_that_nothing_happened_in_has_no_cost():
    assert ran(Costs(), 5.0, 7.0, 9.0, 15.0) == [None] * 4


@pytest.mark.parametrize("event", ["leave", "replay", "abort"])
def test_a_step_that_something_happened_in_cost_what_it_took_longer_than_the_median(event):
    costs = Costs()
    ran(costs, 5.0, 7.0, 9.0, 12.0)
    happened = {"event": event, "time_s": 12.5}
    assert costs.priced(happened) == happened
    assert costs.priced(commit(4, 16.5))["late_s"] == pytest.approx(2.5)
    assert "late_s" not in costs.priced(commit(5, 18.5)), "it is over"
    costs.priced(happened)
    assert costs.priced(commit(6, 20.0))["late_s"] == pytest.approx(-0.5), "and it is not usual"


def test_what_nobody_has_seen_has_no_price():
    """The first steps of a trainer's life, or one that began in another life."""
    costs = Costs(step=7)
    costs.priced({"event": "leave", "time_s": 0.5})
    assert "late_s" not in costs.priced(commit(7, 3.0))
    costs.priced({"event": "leave", "time_s": 3.5})
    assert "late_s" not in costs.priced(commit(8, 6.0)), "nothing is usual yet"


def test_a_rollback_costs_the_time_since_the_step_that_it_goes_back_to():
    costs = Costs()
    ran(costs, 5.0, 7.0, 9.0, 11.0)
    back = costs.priced({"event": "rollback", "step": 2, "time_s": 11.5})
    assert (back["steps_again"], back["again_s"]) == (2, 4.5)
    again = costs.priced({"event": "rollback", "step": 2, "time_s": 12.0})
    assert (again["steps_again"], again["again_s"]) == (0, 0.5)
    assert costs.priced(commit(2, 15.0))["late_s"] == pytest.approx(1.0)


def test_no_second_is_counted_by_two_rollbacks():
    """The second rollback to the same step cost the time before the first one, too: 7 s for two steps of 1 s."""
    costs = Costs()
    ran(costs, *range(1, 16))
    first = costs.priced({"event": "rollback", "step": 10, "time_s": 15.0})
    assert (first["steps_again"], first["again_s"]) == (5, 5.0)
    costs.priced(commit(10, 16.0))
    costs.priced(commit(11, 17.0))
    second = costs.priced({"event": "rollback", "step": 10, "time_s": 17.0})
    assert (second["steps_again"], second["again_s"]) == (2, 2.0)


@pytest.mark.parametrize(("step", "again_s"), [(2, 8.0), (7, None), (8, 2.0)])
def test_of_many_steps_since_the_newest_checkpoint_the_last_are_remembered(monkeypatch, step, again_s):
    """They were all of the run where there are no checkpoints. The checkpoint's own is not forgotten."""
    monkeypatch.setattr("zswarm.trainer.costs.MOST_ENDS", 4)
    costs = Costs()
    ran(costs, 1.0, 2.0)
    costs.priced({"event": "checkpoint", "step": 2, "time_s": 2.0})
    for end_s in range(3, 11):
        costs.priced(commit(end_s - 1, float(end_s)))
    assert costs.priced({"event": "rollback", "step": step, "time_s": 10.0}).get("again_s") == again_s


def test_of_a_step_before_its_life_a_trainer_knows_no_time():
    costs = Costs(step=7)
    costs.priced(commit(7, 3.0))
    back = costs.priced({"event": "rollback", "step": 5, "time_s": 4.0})
    assert back["steps_again"] == 3
    assert "again_s" not in back
