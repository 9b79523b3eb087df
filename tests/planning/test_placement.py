from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.planning.views import changed, rates_of, sizes_of, view_of
from zswarm.ids import Session
from zswarm.planning.placement import place, place_again
from zswarm.planning.rates import optimal_throughput
from zswarm.planning.view import WorkerView

OWN, SHORT = 0, 1
SPEEDS = st.sampled_from([0.25, 0.5, 1.0])
STAGES = st.lists(st.lists(SPEEDS, max_size=6), min_size=1, max_size=5)


def joined(view, stage, job_s=0.0):
    newcomer = WorkerView(session=Session(len(view.workers) + 1), stage=stage, is_ready=False, job_s=job_s)
    return replace(view, workers=(*view.workers, newcomer))


def test_a_newcomer_goes_to_the_slowest_stage_not_to_the_smallest():
    assert place(view_of([1.0], [0.25, 0.25, 0.25])) == 1
    assert place(view_of([1.0, 1.0], [1.0, 1.0, 1.0], costs=[1.0, 2.0])) == 1


def test_of_equal_stages_it_is_the_one_with_fewer_workers_and_then_the_first():
    assert place(view_of([0.5, 0.5], [1.0])) == 1
    assert place(view_of([1.0], [1.0], [1.0])) == 0


def test_who_is_on_the_way_is_counted():
    """Several that come at once do not all go to one stage."""
    view = changed(view_of([1.0], [1.0], [1.0, 1.0]), 1, is_ready=False)
    first = place(view)
    second = place(joined(view, first))
    assert {first, second} == {0, 1}


@given(STAGES, SPEEDS)
def test_no_other_stage_gives_a_higher_throughput(stages, speed):
    view = view_of(*stages)
    job_s = 1.0 / (2.0 * speed)
    results = [min(rates_of(joined(view, stage, job_s))) for stage in range(len(stages))]
    assert results[place(view)] == max(results)


@given(st.integers(1, 5), st.integers(0, 40), st.data())
def test_newcomers_alone_fill_equal_stages_to_the_optimum(num_stages, num_workers, data):
    """From nothing, with costs as they are."""
    costs = data.draw(st.lists(st.sampled_from([1.0, 1.5, 2.0]), min_size=num_stages, max_size=num_stages))
    view = view_of(*([] for _ in range(num_stages)), costs=costs)
    for _ in range(num_workers):
        view = joined(view, place(view))
    assert sum(sizes_of(view)) == num_workers
    assert min(rates_of(view)) == optimal_throughput([1.0] * num_workers, costs)


# -- who comes back ----------------------------------------------------------------------------------


def test_who_comes_back_goes_where_somebody_is_short_if_its_own_stage_can_do_without_it():
    """It went back to where two others were by then, while two stages had one worker each."""
    assert place_again(view_of([1.0, 1.0], [1.0], [1.0, 1.0]), OWN) == SHORT
    assert place_again(view_of([1.0], [1.0], [1.0, 1.0]), OWN) == OWN
    assert place_again(view_of([1.0, 1.0], [1.0], costs=[2.0, 1.0]), OWN) == OWN


def test_who_loads_counts_where_somebody_is_short_and_not_where_it_would_be_missed():
    """Those who load may get the state from the only one who has it."""
    view = view_of([0.1, 1.0, 1.0], [1.0])
    for session in (2, 3):
        view = changed(view, session, is_ready=False)
    assert place_again(view, OWN) == OWN
    assert place_again(changed(view_of([1.0, 1.0], [1.0, 1.0]), 4, is_ready=False), OWN) == OWN
    assert place_again(changed(view_of([1.0], [1.0, 1.0]), 1, is_ready=False), OWN) == OWN


def test_what_may_be_a_wrong_measurement_is_not_worth_a_download():
    assert place_again(view_of([1.0, 1.0], [1.45]), OWN) == OWN
    assert place_again(view_of([1.0, 1.0], [1.35]), OWN) == SHORT
    assert place_again(view_of([1.0] * 20, [0.95] * 20), OWN) == OWN
    assert place_again(view_of([1.0] * 20, [0.85] * 20), OWN) == SHORT


@given(STAGES, SPEEDS, st.data())
def test_to_go_elsewhere_never_makes_the_swarm_slower(stages, speed, data):
    view = view_of(*stages)
    own = data.draw(st.integers(0, len(stages) - 1))
    gone = min(rates_of(joined(view, place_again(view, own), 1.0 / (2.0 * speed))))
    assert gone >= min(rates_of(joined(view, own, 1.0 / (2.0 * speed))))
