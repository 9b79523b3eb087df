from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning.views import changed, rates_of, view_of
from zswarm.limits import MAX_SPEED_RATIO
from zswarm.planning.rates import Rates, optimal_throughput, speeds_of


def best_by_trying(speeds, costs):
    """The throughput of the best of all assignments."""
    best = 0.0
    for stages in product(range(len(costs)), repeat=len(speeds)):
        sums = [0.0] * len(costs)
        for speed, stage in zip(speeds, stages, strict=True):
            sums[stage] += speed
        best = max(best, min(total / cost for total, cost in zip(sums, costs, strict=True)))
    return best


COSTS = st.lists(st.sampled_from([1.0, 1.5, 2.0]), min_size=1, max_size=3)


@given(st.integers(0, 7), st.sampled_from([0.5, 1.0, 3.0]), COSTS)
def test_of_equal_workers_the_optimum_is_that_of_the_best_assignment(num_workers, speed, costs):
    speeds = [speed] * num_workers
    assert optimal_throughput(speeds, costs) == pytest.approx(best_by_trying(speeds, costs))


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0]), max_size=7), COSTS)
def test_of_unequal_workers_it_is_an_upper_bound(speeds, costs):
    assert optimal_throughput(speeds, costs) >= best_by_trying(speeds, costs) - 1e-12


def test_the_bound_is_reached_where_workers_divide_evenly():
    assert optimal_throughput([1.0, 0.5, 0.5, 2.0], [1.0, 1.0]) == 2.0


def test_fewer_workers_than_stages_do_nothing():
    assert optimal_throughput([5.0, 1.0], [1.0, 1.0, 1.0]) == 0.0


def test_a_stages_rate_is_the_sum_of_its_workers_speeds_by_its_cost():
    assert rates_of(view_of([1.0, 0.5], [2.0, 2.0, 2.0], costs=[1.0, 3.0])) == pytest.approx([1.5, 2.0])


def test_the_last_stage_does_a_microbatch_in_one_job():
    view = view_of([1.0], [1.0])
    once = replace(view, stages=(view.stages[0], replace(view.stages[1], jobs_per_microbatch=1)))
    assert rates_of(once) == pytest.approx([1.0, 2.0])


def test_what_a_worker_did_elsewhere_says_what_it_will_do_here():
    """A job of a stage three times as costly takes it three times as long."""
    view = changed(view_of([1.0, 1.0], [1.0], costs=[3.0, 1.0]), 3, stage=1, job_s=1.5, measured_in=0)
    assert speeds_of(view)[3] == pytest.approx(1.0)


def test_the_median_stands_for_whom_nobody_has_measured():
    assert speeds_of(view_of([1.0, 3.0, 0.0], [9.0]))[3] == 3.0
    assert set(speeds_of(view_of([0.0], [0.0])).values()) == {1.0}


def test_a_report_that_is_far_off_counts_no_more_than_a_hundredfold():
    speeds = speeds_of(view_of([1.0, 1.0, 1e9], [1.0, 1e-9]))
    assert (speeds[3], speeds[5]) == (MAX_SPEED_RATIO, 1.0 / MAX_SPEED_RATIO)


def test_who_is_on_the_way_counts_as_coming_and_not_as_ready():
    view = changed(view_of([1.0], [1.0, 0.5]), 3, is_ready=False)
    rates = Rates.of(view, speeds_of(view))
    assert (rates.ready, rates.coming) == ([1.0, 1.0], [1.0, 1.5])
    assert (rates.num_ready, rates.num_coming) == ([1, 1], [1, 2])
