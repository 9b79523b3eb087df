"""From what the log says and what befell machines to the figures of the laboratory."""

from __future__ import annotations

from random import Random

import pytest

from tests.lab.churn import Fates, State
from tests.lab.reckoning import (
    LEAST_PASSES,
    Change,
    Commit,
    Pass,
    Rated,
    Record,
    Span,
    allowed_share,
    at_speed_of,
    join_of,
    mean_of,
    placed_changes,
    samples_per_s,
    speed_in,
)


def commit(at_s, step, *sessions, idle=()):
    counted = {str(session): [index] for index, session in enumerate(sessions)} | {str(each): [] for each in idle}
    return Record(at_s, {"event": "commit", "step": step, "stages": [{"stage": 0, "contributions": counted}]})


def join(at_s, node, session, stage, role="worker"):
    return Record(at_s, {"event": "join", "node": node, "role": role, "session": session, "stage": stage})


def leave(at_s, session):
    return Record(at_s, {"event": "leave", "session": session})


def test_who_has_counted_nothing_takes_no_part_in_a_commit():
    (found,) = Commit.of([commit(1.0, 0, 7, 8, idle=[9])])
    assert found == Commit(at_s=1.0, step=0, sessions=frozenset({7, 8}))


def test_commits_that_a_rollback_has_voided_are_left_out():
    records = [commit(float(step), step, 1) for step in range(4)]
    records += [Record(4.0, {"event": "rollback", "step": 2, "branch": 1}), commit(5.0, 2, 1)]
    assert [(found.step, found.at_s) for found in Commit.of(records)] == [(0, 0.0), (1, 1.0), (2, 5.0)]


def test_a_rate_is_one_of_whole_steps():
    assert samples_per_s(Commit.of([commit(10.0, 0, 1), commit(12.0, 1, 1), commit(14.0, 2, 1)]), 32) == 16.0
    with pytest.raises(ValueError, match="1 commits"):
        samples_per_s(Commit.of([commit(10.0, 0, 1)]), 32)


def test_a_join_is_held_against_the_time_before_it():
    """Steps of 2 s, then one of 3 s while somebody joins, then one of 2 s that he takes part in; the first is too old."""
    ends_s = [0.0, 10.0, 12.0, 14.0, 16.0, 19.0]
    records = [commit(at_s, step, 1) for step, at_s in enumerate(ends_s)]
    records += [commit(21.0, len(ends_s), 1, 5), commit(30.0, len(ends_s) + 1, 1, 5)]
    found = join_of(Commit.of(records), 5, begun_s=17.0, before_s=10.0, global_batch=8)
    assert found.counted_after_s == 4.0
    assert found.samples_per_s_before == 4.0
    assert found.lower_percent == pytest.approx(20.0)
    assert (found.delay_s, found.delay_before_s) == (1.0, 0.0)


def test_a_join_without_a_count_or_a_time_before_is_none():
    commits = Commit.of([commit(1.0, 0, 1), commit(2.0, 1, 1), commit(3.0, 2, 1, 5)])
    with pytest.raises(ValueError, match="session 6 has counted nothing"):
        join_of(commits, 6, begun_s=2.5, before_s=10.0, global_batch=8)
    with pytest.raises(ValueError, match="0 commits"):
        join_of(commits, 5, begun_s=0.5, before_s=10.0, global_batch=8)


def test_a_mean_over_time_has_each_value_for_as_long_as_it_lasts():
    changes = [Change(0.0, 1.0), Change(10.0, 0.5), Change(30.0, 1.0)]
    assert mean_of(changes, begin_s=0.0, end_s=40.0) == 0.75
    assert mean_of(changes, begin_s=5.0, end_s=15.0) == 0.75
    assert mean_of(changes, begin_s=12.0, end_s=20.0) == 0.5


@pytest.mark.parametrize(("num_live", "share"), [(6, 1.0), (5, 0.5), (3, 0.5), (2, 0.0)])
def test_the_best_placement_is_that_of_whole_workers(num_live, share):
    assert allowed_share(num_live, num_machines=6, num_stages=3) == share


def test_a_worker_counts_while_it_is_in_and_its_machine_is_live():
    records = [
        join(0.0, "lab0-worker-0", 1, 0),
        join(0.0, "lab0-broker-0", 2, 1, role="broker"),
        join(1.0, "lab1-worker-0", 3, 1),
        join(2.0, "lab2-worker-0", 4, 1),
        leave(6.0, 3),
        join(8.0, "lab1-worker-0", 5, 0),
    ]
    liveness = [(4.0, "lab1", False), (7.0, "lab1", True), (9.0, "lab2", False)]
    found = placed_changes(records, liveness, num_stages=2, full=1)
    assert found == [
        Change(0.0, 0.0), Change(1.0, 1.0), Change(2.0, 1.0), Change(4.0, 1.0), Change(6.0, 1.0),
        Change(7.0, 1.0), Change(8.0, 1.0), Change(9.0, 0.0),
    ]  # fmt: skip


def passes_of(*cpu_s):
    """Passes that end a second apart, each of so many seconds of the processor's time."""
    return [Pass(1.0 + index, each_s) for index, each_s in enumerate(cpu_s)]


def test_what_else_a_yardstick_says_is_no_pass():
    assert Pass.of([(1.0, "UserWarning: 0.5"), (2.0, "pass 0.25"), (3.0, "")]) == [Pass(2.0, 0.25)]


def test_a_speed_is_passes_by_the_processors_time_of_those_that_ended_meanwhile():
    passes = passes_of(*[0.1, 0.3] * LEAST_PASSES, *[9.0] * 5)
    assert speed_in(passes, Span(0.0, 2.0 * LEAST_PASSES)) == pytest.approx(5.0)


def test_too_few_passes_are_no_speed():
    with pytest.raises(ValueError, match=f"{LEAST_PASSES - 1} passes of the yardstick in 10 s"):
        speed_in(passes_of(*[0.1] * (LEAST_PASSES - 1)), Span(0.0, 10.0))


def test_a_rate_is_less_in_a_time_in_which_processors_are_slower():
    fast, slow = Span(0.0, 10.0), Span(10.0, 20.0)
    passes = passes_of(*[0.1] * 10, *[0.125] * 10)
    assert at_speed_of(slow, Rated(2.5, fast), passes) == pytest.approx(2.0)
    assert at_speed_of(fast, Rated(2.0, slow), passes) == pytest.approx(2.5)
    assert at_speed_of(fast, Rated(2.5, fast), passes) == 2.5


def test_a_rate_knows_from_which_commit_to_which_it_is():
    commits = Commit.of([commit(1.0, 0, 7), commit(3.0, 1, 7), commit(5.0, 2, 7)])
    assert Rated.of(commits, 8) == Rated(samples_per_s=4.0, span=Span(1.0, 5.0))


def test_fates_repeat_with_their_seed_and_each_fault_comes_as_often():
    machines = [f"lab{index}" for index in range(6)]

    def drawn(seed):
        fates, random, live, states = Fates(seed), Random(seed), set(machines), []
        for _ in range(300):
            spared = {random.choice(machines)}
            found = fates.draw(live=sorted(live), down=sorted(set(machines) - live), spared=spared)
            assert found is not None
            name, state = found
            if state is State.LIVE:
                assert name not in live
                live.add(name)
            else:
                assert name in live - spared
                live.remove(name)
            states.append(state)
        return states

    states = drawn(3)
    assert states == drawn(3)
    assert states != drawn(4)
    counts = [states.count(fault) for fault in (State.KILLED, State.FROZEN, State.CUT)]
    assert max(counts) - min(counts) <= 1
    assert min(counts) > 20


def test_nothing_happens_where_nobody_may_be_struck_and_nobody_is_down():
    assert Fates(0).draw(live=["lab0"], down=[], spared={"lab0"}) is None
