from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning.views import carried_out, changed, rates_of, sizes_of, view_of
from zswarm.planning.priced import HYSTERESIS, PERIOD_S, PricedPlanner
from zswarm.planning.rates import optimal_throughput
from zswarm.planning.view import Move, Reason


def plan(view):
    return PricedPlanner().plan(view, 0.0)


def ones(num):
    return [1.0] * num


# -- what it does ------------------------------------------------------------------------------------


def test_a_worker_goes_from_where_there_are_most_to_the_slowest_stage():
    moves = plan(view_of(ones(4), ones(2), ones(3)))
    assert [(move.source, move.target) for move in moves] == [(0, 1)]


def test_several_go_at_once():
    """Two stages have lost a third of their workers each."""
    view = view_of(ones(6), ones(3), ones(6), ones(3), ones(7))
    moves = plan(view)
    assert len({move.session for move in moves}) == len(moves) > 1
    assert sizes_of(carried_out(view, moves)) == [5, 5, 5, 5, 5]


def test_what_only_helps_together_is_done_together():
    """To raise one of two equally slow stages alone raises nothing."""
    moves = plan(view_of(ones(4), ones(2), ones(2), ones(4)))
    assert sorted((move.source, move.target) for move in moves) == [(0, 1), (3, 2)]


def test_load_is_normalised_by_speed():
    """The stage with the fewest workers is the fastest here."""
    moves = plan(view_of([4.0, 4.0], ones(4), ones(4)))
    assert moves == Reason("no move makes the slowest stage faster")
    moves = plan(view_of([4.0, 4.0], ones(3), ones(8)))
    assert {(move.source, move.target) for move in moves} == {(2, 1)}


def test_load_is_normalised_by_the_stages_cost():
    assert plan(view_of(ones(2), ones(4), costs=[1.0, 2.0])) == Reason("no move makes the slowest stage faster")
    moves = plan(view_of(ones(3), ones(3), costs=[1.0, 2.0]))
    assert [(move.source, move.target) for move in moves] == [(0, 1)]


def test_of_unequal_workers_the_one_goes_that_makes_both_stages_even():
    """Rates of 3.5 and 1.5: the worker of speed 1 makes both 2.5."""
    assert plan(view_of([2.0, 1.0, 0.5], [1.5])) == [Move(session=2, source=0, target=1)]


def test_an_empty_stage_gets_somebody():
    moves = plan(view_of(ones(2), [], ones(3)))
    assert [(move.source, move.target) for move in moves] == [(2, 1)]


# -- what it does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1, 1], [5, 5, 5], [5, 5, 6], [6, 5, 6, 5], [75, 75, 75, 75]])
def test_a_balanced_swarm_plans_nothing(sizes):
    assert plan(view_of(*map(ones, sizes))) == Reason("no move makes the slowest stage faster")


def test_a_gain_below_the_hysteresis_is_none():
    view = view_of(ones(302), ones(300))
    assert plan(view) == Reason("moves would bring +0.33%, less than the hysteresis")
    assert isinstance(PricedPlanner(hysteresis=0.003).plan(view, 0.0), list)


def test_the_last_worker_stays():
    """However slow it makes the other stage."""
    assert plan(view_of([9.0], [1.0])) == Reason("no move makes the slowest stage faster")
    assert plan(view_of([9.0], [], [1.0])) == Reason("no move makes the slowest stage faster")


def test_the_last_that_is_ready_stays():
    """The others of its stage are still downloading, from it."""
    view = view_of(ones(3), [0.5])
    for session in (2, 3):
        view = changed(view, session, is_ready=False)
    assert plan(view) == Reason("no move makes the slowest stage faster")
    assert plan(changed(view, 2, is_ready=True)) == [Move(session=2, source=0, target=1)]


@pytest.mark.parametrize(("least_ready", "num_moves"), [(1, 1), (2, 1), (3, 0)])
def test_so_many_who_are_ready_stay_as_a_stage_needs(least_ready, num_moves):
    moves = plan(replace(view_of(ones(3), ones(1)), least_ready=least_ready))
    assert len(moves if isinstance(moves, list) else []) == num_moves


def test_who_is_not_ready_or_not_measured_stays():
    view = view_of(ones(4), ones(1))
    view = changed(changed(changed(view, 1, is_ready=False), 2, job_s=0.0), 3, is_ready=False)
    assert plan(view) == [Move(session=4, source=0, target=1)]
    assert plan(changed(view, 4, job_s=0.0)) == Reason("no move makes the slowest stage faster")


def test_who_is_on_the_way_counts_where_it_goes():
    """Otherwise each period would send another one, as long as the first has not arrived."""
    view = view_of(ones(4), ones(2))
    (move,) = plan(view)
    assert plan(changed(view, move.session, stage=1, is_ready=False)) == Reason(
        "no move makes the slowest stage faster"
    )


def test_a_download_that_takes_longer_than_a_worker_stays_is_not_worth_it():
    assert plan(view_of(ones(4), ones(2), download_s=4000.0)) == Reason(
        "moves would bring +50.00%, less than their downloads cost"
    )
    assert isinstance(plan(view_of(ones(4), ones(2), download_s=400.0)), list)


def test_a_newcomer_that_comes_soon_does_it_for_nothing():
    """It has to download as well, but nobody's work is missed meanwhile."""
    slow = {"download_s": 600.0, "residence_s": 1e5}
    assert isinstance(plan(view_of(ones(76), ones(74), **slow)), list)
    assert plan(view_of(ones(76), ones(74), join_every_s=60.0, **slow)) == Reason(
        "moves would bring +1.35%, less than their downloads cost"
    )
    assert isinstance(plan(view_of(ones(76), ones(74), join_every_s=1200.0, **slow)), list)


def test_many_who_download_from_one_take_longer():
    """Twenty that come to a stage with one worker share its uplink."""
    view = view_of(ones(30), ones(1), download_s=100.0, residence_s=1000.0, join_every_s=300.0)
    moves = plan(view)
    assert 1 <= len(moves) < 14


def test_one_wrong_report_empties_no_stage():
    """A worker that claims a job in a nanosecond would be enough for its stage, if it were believed."""
    view = changed(view_of(ones(200), ones(200)), 1, job_s=1e-9)
    assert sizes_of(carried_out(view, plan(view)))[0] >= 150


def test_it_plans_once_per_period():
    planner = PricedPlanner()
    view = view_of(ones(4), ones(2))
    assert isinstance(planner.plan(view, 7.0), list)
    assert planner.next_plan_s == 7.0 + PERIOD_S
    assert planner.plan(view, 8.0) == Reason(f"the next plan is due in {PERIOD_S - 1.0:.0f} s", is_early=True)
    assert isinstance(planner.plan(view, 7.0 + PERIOD_S), list)


# -- it comes to rest --------------------------------------------------------------------------------

SPEEDS = st.sampled_from([0.25, 0.3, 0.5, 1.0])
COSTS = st.lists(st.sampled_from([1.0, 1.5, 2.0]), min_size=5, max_size=5)
UNEQUAL = st.lists(st.lists(SPEEDS, max_size=8), min_size=2, max_size=5)
EQUAL = st.lists(st.integers(0, 12).map(ones), min_size=2, max_size=5)


def until_at_rest(view):
    """Carry out plan after plan; return the views in between and all moves."""
    views, moves = [view], []
    while isinstance(planned := plan(views[-1]), list):
        assert len({move.session for move in planned}) == len(planned) > 0
        assert {move.source for move in planned}.isdisjoint(move.target for move in planned)
        moves += planned
        views.append(carried_out(views[-1], planned))
        assert len(views) < 1000
    return views, moves


@given(st.one_of(UNEQUAL, EQUAL), COSTS, st.sampled_from([1.0, 60.0, 1000.0]), st.sampled_from([inf, 300.0]))
def test_without_churn_it_comes_to_rest_and_never_lowers_the_throughput(stages, costs, download_s, join_every_s):
    """Each plan raises the throughput by more than the hysteresis, so there are only so many; nobody goes to and fro."""
    view = view_of(*stages, costs=costs[: len(stages)], download_s=download_s, join_every_s=join_every_s)
    views, moves = until_at_rest(view)
    throughputs = [min(rates_of(each)) for each in views]
    assert all(after > before * (1.0 + HYSTERESIS) for before, after in pairwise(throughputs))
    if len(views) > 2:
        assert len(views) - 2 <= log(throughputs[-1] / throughputs[1]) / log(1.0 + HYSTERESIS) + 1e-6
    assert len(moves) <= len(view.workers)
    occupied = [size > 0 for size in sizes_of(view)]
    assert all(size > 0 for size, was in zip(sizes_of(views[-1]), occupied, strict=True) if was)


@given(EQUAL, COSTS)
def test_equal_workers_come_to_rest_at_the_optimum(stages, costs):
    """Within the hysteresis, where downloads are short."""
    costs = costs[: len(stages)]
    views, _ = until_at_rest(view_of(*stages, costs=costs))
    best = optimal_throughput([1.0] * len(views[0].workers), costs)
    assert min(rates_of(views[-1])) * (1.0 + HYSTERESIS) >= best
