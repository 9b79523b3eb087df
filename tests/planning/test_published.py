from __future__ import annotations

import pytest

from tests.planning.views import changed, view_of
from zswarm.planning.published import Algorithm2, NoMoves
from zswarm.planning.view import Move, Reason

LOADS = [5, 0, 9]


@pytest.fixture
def planner():
    """One that has slept for its first period."""
    planner = Algorithm2(period_s=60.0)
    assert planner.plan(view_of([1.0], [1.0, 1.0], [1.0], queued=LOADS), -60.0) == Reason(
        "the next plan is due in 60 s", is_early=True
    )
    return planner


def test_one_of_the_least_loaded_stage_goes_to_the_most_loaded(planner):
    assert planner.plan(view_of([1.0], [1.0, 1.0], [1.0], queued=LOADS), 0.0) == [Move(session=2, source=1, target=2)]


def test_it_is_the_one_with_the_shortest_queue(planner):
    view = changed(view_of([1.0], [1.0, 1.0], [1.0], queued=LOADS), 2, num_pending=1)
    assert planner.plan(view, 0.0) == [Move(session=3, source=1, target=2)]


def test_it_sleeps_for_t_between_plans(planner):
    view = view_of([1.0], [1.0, 1.0], [1.0], queued=LOADS)
    assert isinstance(planner.plan(view, 0.0), list)
    assert planner.plan(view, 59.0) == Reason("the next plan is due in 1 s", is_early=True)
    assert planner.next_plan_s == 60.0
    assert isinstance(planner.plan(view, 75.0), list)
    assert planner.next_plan_s == 135.0


@pytest.mark.parametrize("loads", [[0, 0, 0], [7, 7, 7]])
def test_of_equal_loads_the_first_is_both_and_nobody_moves(planner, loads):
    reason = planner.plan(view_of([1.0], [1.0], [1.0], queued=loads), 0.0)
    assert reason == Reason("all stages have the same load")


def test_of_several_that_are_most_or_least_it_is_the_first(planner):
    view = view_of([1.0], [1.0], [1.0], [1.0], queued=[0, 9, 9, 0])
    assert planner.plan(view, 0.0) == [Move(session=1, source=0, target=1)]


def test_as_printed_it_takes_the_last_worker_of_a_stage(planner):
    assert planner.plan(view_of([1.0], [1.0, 1.0], queued=[0, 1]), 0.0) == [Move(session=1, source=0, target=1)]


def test_as_printed_it_never_comes_to_rest(planner):
    """Queues of a balanced swarm differ by chance, and it answers each difference."""
    there = planner.plan(view_of([1.0, 1.0], [1.0, 1.0], queued=[0, 1]), 0.0)
    back = planner.plan(view_of([1.0], [1.0, 1.0, 1.0], queued=[1, 0]), 60.0)
    assert [(move.source, move.target) for move in (*there, *back)] == [(0, 1), (1, 0)]


def test_who_downloads_is_no_peer_yet(planner):
    view = changed(view_of([1.0], [1.0], queued=[0, 1]), 1, is_ready=False)
    assert planner.plan(view, 0.0) == Reason("stage 0 has the smallest load and nobody who could leave it")


def test_without_rebalancing_nobody_moves():
    assert NoMoves().plan(view_of([], [1.0, 1.0], queued=[9, 0]), 0.0) == Reason("rebalancing is off")
    assert NoMoves().next_plan_s > 1e300
