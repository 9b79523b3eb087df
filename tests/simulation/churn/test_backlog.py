from __future__ import annotations

from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm.simulation.churn.backlog import draw_backlog

RATES = st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 40.0]), min_size=1, max_size=6)


@given(RATES, st.integers(0, 500), st.integers())
def test_everything_that_waits_waits_somewhere(rates, num_waiting, seed):
    backlog = draw_backlog(rates, num_waiting, Random(seed))
    assert sum(backlog) == num_waiting
    assert min(backlog) >= 0


def test_what_is_left_waits_at_the_slowest_stage():
    """At one that is twice as fast waits one job on average, as at a queue that is half busy."""
    draws = [draw_backlog([2.0, 1.0, 1e9], 100, Random(seed)) for seed in range(2000)]
    assert mean(draw[0] for draw in draws) == pytest.approx(1.0, abs=0.1)
    assert mean(draw[1] for draw in draws) == pytest.approx(99.0, abs=0.1)
    assert {draw[2] for draw in draws} == {0}


def test_equal_stages_have_the_same_share_on_average_and_not_each_time():
    draws = [draw_backlog([1.0, 1.0, 1.0], 90, Random(seed)) for seed in range(2000)]
    for stage in range(3):
        assert mean(draw[stage] for draw in draws) == pytest.approx(30.0, abs=2.0)
    assert len({draw[0] for draw in draws}) > 50


def test_before_a_stage_in_which_nobody_is_everything_waits():
    assert draw_backlog([3.0, 0.0, 2.0], 50, Random(0)) == [0, 50, 0]
