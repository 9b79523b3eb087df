"""The swarm under churn: by hand where numbers are small, and what must hold whatever the trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm.planning.priced import PricedPlanner
from zswarm.planning.published import Algorithm2, NoMoves
from zswarm.planning.view import Move, Reason
from zswarm.simulation.churn.preemptions import parsed
from zswarm.simulation.churn.setting import Leavers, Placement, Policy, Setting
from zswarm.simulation.churn.spot import spot_trace
from zswarm.simulation.churn.swarm import ChurningSwarm

SLOWEST = Policy(name="none", planner=NoMoves, placement=Placement.SLOWEST)
TWO = Setting(
    costs=(1.0, 1.0),
    microbatch_s=1.0,
    state_bytes=1000.0,
    bandwidth_bytes_per_s=10.0,
    num_microbatches=50,
)
"""A worker does one microbatch per second, a download takes 100 s."""


class Scripted:
    """Says at the first step's end that one worker is to move."""

    next_plan_s = 0.0

    def __init__(self, *moves: Move) -> None:
        self.moves = list(moves)
        self.asked_s: list[float] = []

    def plan(self, view, now):
        self.asked_s.append(now)
        moves, self.moves = self.moves, []
        return moves or Reason("all is said")


def trace(*lines):
    return list(parsed(lines, "test"))


def lived(setting, changes, policy=SLOWEST, seed=0):
    return ChurningSwarm(setting, policy, seed).run(changes)


# -- by hand -----------------------------------------------------------------------------------------

FOUR = ("0,arrive,a", "0,arrive,b", "0,arrive,c", "0,arrive,d")
"""Two in each stage: two microbatches per second, a step of 25 s."""


def test_who_is_there_at_the_beginning_works_at_once():
    outcome = lived(TWO, trace(*FOUR, "110,arrive,e"))
    assert (outcome.microbatches, outcome.optimal_microbatches, outcome.share) == (220.0, 220.0, 1.0)
    assert (outcome.num_steps, outcome.downloaded_bytes) == (4, 0.0)


def test_the_slowest_stage_decides():
    outcome = lived(TWO, trace(*FOUR, "10,leave,a", "60,arrive,e"))
    assert outcome.microbatches == 10 * 2.0 + 50 * 1.0
    assert outcome.optimal_microbatches == 10 * 2.0 + 50 * 1.0


def test_a_newcomer_downloads_first():
    """The optimum has it at once: 100 s of one microbatch per second are the difference."""
    outcome = lived(TWO, trace(*FOUR, "10,leave,a", "60,arrive,e", "260,leave,e"))
    assert outcome.microbatches == 20.0 + 150 * 1.0 + 100 * 2.0
    assert outcome.optimal_microbatches == 20.0 + 50 * 1.0 + 200 * 2.0
    assert outcome.downloaded_bytes == 1000.0


def test_a_mover_computes_nothing_until_it_has_arrived():
    """Three in each stage, until one of stage 0 moves and leaves two."""
    planner = Scripted(Move(session=1, source=0, target=1))
    policy = Policy(name="scripted", planner=lambda: planner, placement=Placement.SLOWEST)
    six = trace(*FOUR, "0,arrive,e", "0,arrive,f", "200,arrive,g")
    outcome = lived(replace(TWO, num_microbatches=60), six, policy)
    assert planner.asked_s[0] == 20.0
    assert outcome.microbatches == pytest.approx(20 * 3.0 + 180 * 2.0)
    assert outcome.downloaded_bytes == pytest.approx(1000.0)
    assert (outcome.num_moves, outcome.num_lost_moves) == (1, 0)


def test_moves_wait_for_the_end_of_a_step_unless_they_need_not():
    changes = trace(*FOUR, "300,arrive,g")
    at_ends = Scripted()
    lived(TWO, changes, Policy(name="", planner=lambda: at_ends, placement=Placement.SLOWEST))
    assert at_ends.asked_s == [25.0 * step for step in range(1, 12)]
    planner = Algorithm2(period_s=60.0)
    policy = Policy(name="", planner=lambda: planner, placement=Placement.SLOWEST)
    lived(replace(TWO, waits_for_steps=False), changes, policy)
    assert planner.next_plan_s == 300.0


def test_a_mover_that_leaves_on_the_way_is_a_lost_move():
    planner = Scripted(Move(session=1, source=0, target=1))
    policy = Policy(name="scripted", planner=lambda: planner, placement=Placement.SLOWEST)
    outcome = lived(TWO, trace(*FOUR, "60,leave,a", "300,arrive,e"), policy)
    assert (outcome.num_moves, outcome.num_lost_moves) == (1, 1)
    assert outcome.downloaded_bytes == pytest.approx(350.0)


def test_a_move_of_somebody_who_is_gone_does_nothing():
    """It takes heartbeats to notice that somebody is gone."""
    planner = Scripted(Move(session=1, source=0, target=1))
    policy = Policy(name="scripted", planner=lambda: planner, placement=Placement.SLOWEST)
    outcome = lived(TWO, trace(*FOUR, "24,leave,a", "300,arrive,e"), policy)
    assert planner.moves == []
    assert outcome.num_moves == 0


def test_an_empty_stage_stops_the_pipeline_until_somebody_has_come_from_elsewhere():
    lost = ("10,leave,a", "10,leave,c")
    none = lived(TWO, trace(*FOUR, *lost, "400,arrive,e"))
    assert (none.microbatches, none.stalled_s) == (20.0, 390.0)
    ours = lived(TWO, trace(*FOUR, *lost, "400,arrive,e"), replace(SLOWEST, planner=PricedPlanner))
    assert ours.num_moves == 1
    assert 100.0 < ours.stalled_s < 120.0
    assert ours.microbatches == pytest.approx(20.0 + (390.0 - ours.stalled_s))


def test_unequal_machines_work_at_their_speeds():
    setting = replace(TWO, speeds=(1.0, 0.5))
    outcome = lived(setting, trace(*FOUR, "100,arrive,e"))
    assert outcome.microbatches == pytest.approx(150.0)
    assert outcome.optimal_microbatches == pytest.approx(150.0)


# -- whatever the trace ------------------------------------------------------------------------------

POLICIES = [
    Policy(name=f"{name}, {placement}", planner=planner, placement=placement)
    for name, planner in [
        ("none", NoMoves),
        ("published", lambda: Algorithm2(period_s=60.0)),
        ("priced", PricedPlanner),
    ]
    for placement in Placement
]
SMALL = Setting(costs=(1.0, 1.5, 1.0), num_microbatches=16)


@given(
    st.sampled_from(POLICIES),
    st.sampled_from([(1.0,), (1.0, 0.25)]),
    st.sampled_from(Leavers),
    st.booleans(),
    st.integers(0, 1000),
)
def test_nothing_is_made_of_nothing(policy, speeds, leavers, waits, seed):
    """Nobody beats the optimum, every download is of somebody who came or moved, and the time adds up."""
    changes = spot_trace(seed=seed, hours=2.0, num_workers=20)
    setting = replace(SMALL, speeds=speeds, leavers=leavers, waits_for_steps=waits)
    outcome = lived(setting, changes, policy, seed)
    assert 0.0 <= outcome.microbatches <= outcome.optimal_microbatches * (1.0 + 1e-9)
    assert outcome.duration_s == changes[-1].time_s
    assert 0.0 <= outcome.stalled_s <= outcome.duration_s
    assert outcome.num_steps * setting.num_microbatches <= outcome.microbatches + 1e-6
    assert outcome.microbatches < (outcome.num_steps + 1) * setting.num_microbatches + 1e-6
    assert outcome.num_joins == sum(change.is_arrival for change in changes)
    num_begun = sum(change.time_s == 0.0 for change in changes)
    most = (outcome.num_joins - num_begun + outcome.num_moves) * setting.state_bytes
    assert outcome.downloaded_bytes <= most * (1.0 + 1e-9)
    assert outcome.num_lost_moves <= outcome.num_moves
    assert policy.planner is not NoMoves or outcome.num_moves == 0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_the_same_seed_lives_the_same_life(policy):
    changes = spot_trace(hours=3.0, num_workers=24)
    assert lived(SMALL, changes, policy, 5) == lived(SMALL, changes, policy, 5)


def test_what_is_random_differs_from_seed_to_seed():
    changes = spot_trace(hours=3.0, num_workers=24)
    assert len({lived(SMALL, changes, POLICIES[0], seed).microbatches for seed in range(5)}) == 5
