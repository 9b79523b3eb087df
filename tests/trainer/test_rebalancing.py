"""The coordinator asks a planner: where a newcomer belongs, and who moves once a step is committed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.letters import header, of_type
from tests.trainer.swarm import FULL, Trainer, records, written
from tests.trainer.test_departures import commit, left
from tests.trainer.test_moves import moves
from zswarm import limits
from zswarm.ids import Leaving, NodeId, Role, Session, Stage
from zswarm.messages import Stop, Welcome
from zswarm.planning.view import Move, SwarmView, WorkerView

STATE_BYTES = 1000


def trained(*, job_s: dict[str, tuple[int, float]], is_known: bool = True, **changes: Any) -> Trainer:
    """Return a run in work: each node's stage and seconds per job. Nodes are named in the order of their sessions.

    Its first step is committed, unless it is not known yet how long steps take.
    """
    trainer = Trainer(
        **({"rebalancing": "priced", "state_bytes": (STATE_BYTES,) * 2, "steps": 9, "rebalance_every_s": 1.0} | changes)
    )
    for node, (stage, _) in job_s.items():
        trainer.join(node, stage=stage)
    for index in range(2):
        trainer.join(f"b{index}", Role.BROKER)
    for index, (stage, seconds) in enumerate(job_s.values(), 1):
        trainer.report(index, stage=stage, job_s=seconds)
    for session in (len(job_s) + 1, len(job_s) + 2):
        trainer.report(session)
    if is_known:
        step(trainer, 0)
    trainer.live(trainer.settings.rebalance_every_s)
    return trainer


SLOW_LAST = {"a": (0, 0.1), "b": (1, 2.0), "c": (0, 0.1), "d": (0, 0.1)}
"""Stage 0 does 15 microbatches a second, stage 1 half a microbatch."""


EVEN = {"a": (0, 0.1), "b": (1, 0.2)}


def view(trainer: Trainer) -> SwarmView:
    rebalancer = trainer.machine.rebalancer
    rebalancer._count_departures(rebalancer._churn, trainer.now_s)
    return rebalancer._view(rebalancer._churn, trainer.now_s)


def worker(trainer: Trainer, session: int) -> WorkerView:
    (found,) = [one for one in view(trainer).workers if one.session == session]
    return found


def step(trainer: Trainer, number: int = 1) -> list[Any]:
    """Commit a step of which the first worker of each stage has counted everything."""
    roster = trainer.machine.roster
    first = {roster.of(Role.WORKER, Stage(stage))[0].session for stage in range(2)}
    counted = {r.session: FULL if r.session in first else 0 for r in roster.workers() if r.is_ready}
    commands = commit(trainer, counted, step=number)
    for session in counted:
        if session in roster.records:
            trainer.report(session, **(trainer.says[session] | {"counted": 0, "step": number + 1}))
    return commands


def test_while_the_run_gathers_each_stage_gets_as_many_as_the_others():
    trainer = Trainer(rebalancing="priced", stage_costs=(9.0, 1.0), workers_per_stage=2)
    assert [of_type(trainer.join(f"w{index}"), Welcome)[0].stage for index in range(4)] == [0, 1, 0, 1]


def test_a_newcomer_goes_to_the_slowest_stage_not_to_the_one_with_the_fewest():
    trainer = trained(job_s={"a": (0, 0.1), "b": (1, 9.0), "c": (1, 9.0)})
    (welcome,) = of_type(trainer.join("new"), Welcome)
    assert welcome.stage == 1


def come_back(trainer: Trainer, node: str, session: int) -> int:
    """Let a worker be lost that then asks again, with the state of stage 0; returns where it goes."""
    trainer.dies(session)
    (welcome,) = of_type(trainer.join(node, nonce=2, stage=0), Welcome)
    return welcome.stage


CROWDED = {"a": (0, 0.1), "b": (1, 0.2), "c": (0, 0.1), "d": (0, 0.1)}
"""Stage 0 has three workers, of which two would do, and stage 1 one."""


def test_who_comes_back_goes_to_the_slowest_stage_if_its_own_can_do_without_it():
    assert come_back(trained(job_s=CROWDED), "c", 3) == 1
    assert come_back(trained(job_s=CROWDED | {"e": (1, 0.2)}), "c", 3) == 0
    assert come_back(trained(job_s=CROWDED, rebalancing="none"), "c", 3) == 0


@pytest.mark.parametrize(
    "says",
    [
        pytest.param({"ready": False}, id="loads"),
        pytest.param({"busy_s": 3.0, "usual_s": 0.1}, id="hangs"),
        pytest.param({"leaving": Leaving.DRAINING}, id="leaves"),
    ],
)
def test_a_state_that_only_one_other_is_sure_to_keep_is_not_left(says):
    """With the next loss nobody had it, and the swarm went back to its checkpoint."""
    trainer = trained(job_s=CROWDED)
    trainer.dies(3)
    trainer.report(4, **(trainer.says[4] | says))
    (welcome,) = of_type(trainer.join("c", nonce=2, stage=0), Welcome)
    assert welcome.stage == 0


@pytest.mark.parametrize(("silent_s", "expected"), [(1.5, 1), (2.0, 0)])
def test_nor_is_one_whose_holders_are_not_heard(silent_s, expected):
    trainer = trained(job_s=CROWDED)
    trainer.dies(3)
    del trainer.says[4]
    trainer.live(silent_s)
    (welcome,) = of_type(trainer.join("c", nonce=2, stage=0), Welcome)
    assert welcome.stage == expected


def test_nor_is_one_that_another_one_is_about_to_leave():
    trainer = trained(job_s=CROWDED)
    trainer.dies(3)
    trainer.machine.moves.order(Session(4), Stage(1))
    (welcome,) = of_type(trainer.join("c", nonce=2, stage=0), Welcome)
    assert welcome.stage == 0


EVEN_THREE = {"a": (0, 0.1), "b": (1, 0.2), "c": (0, 0.1), "d": (1, 0.2), "e": (0, 0.1), "f": (1, 0.2)}


@pytest.mark.parametrize(("apart_s", "away_s", "expected"), [(0.0, 0.0, 0), (9.0, 0.0, 1), (0.0, 61.0, 1)])
def test_who_was_lost_at_the_same_time_is_expected_back_at_the_same_time(apart_s, away_s, expected):
    """When a switch came back each worker went where the others were not yet, and all had to get another state."""
    trainer = trained(job_s=EVEN_THREE)
    for session in (4, 6):
        del trainer.says[session]
    trainer.live(apart_s)
    trainer.dies(3)
    trainer.live(away_s)
    assert of_type(trainer.join("c", nonce=2, stage=0), Welcome)[0].stage == expected


def test_who_was_asked_to_go_is_not_expected_back():
    trainer = trained(job_s=EVEN_THREE)
    for session in (4, 6):
        del trainer.says[session]
        trainer.get(Stop(**header(session)))
    trainer.dies(3)
    assert of_type(trainer.join("c", nonce=2, stage=0), Welcome)[0].stage == 1


def test_those_of_its_own_stage_who_stay_away_are_no_reason_to_go():
    trainer = trained(job_s=EVEN_THREE | {"g": (0, 0.1), "h": (0, 0.1)})
    for session in (5, 7):
        del trainer.says[session]
    trainer.dies(3)
    assert of_type(trainer.join("c", nonce=2, stage=0), Welcome)[0].stage == 0


def test_a_stage_that_is_full_gets_nobody(monkeypatch):
    trainer = trained(job_s={"a": (0, 0.1), "b": (1, 9.0), "c": (1, 9.0)})
    monkeypatch.setattr(limits, "MAX_PARTICIPANTS", 2)
    (welcome,) = of_type(trainer.join("new"), Welcome)
    assert welcome.stage == 0


def test_who_is_missed_least_moves_with_the_commit_and_the_log_says_that_it_was_planned():
    trainer = trained(job_s=SLOW_LAST)
    commands = step(trainer)
    assert records(commands)[-3:] == ["plan", "move", "leave"]
    ((_, source, target, problem),) = moves(commands)
    assert (source, target, problem) == (0, 1, None)
    (plan,) = [record for record in written(commands) if record["event"] == "plan"]
    assert (plan["moves"], plan["reason"]) == (1, "the slowest stage gets faster")
    assert [(reason, lost) for _, reason, lost in left(commands)] == [("moved to stage 1", 0)]


@pytest.mark.parametrize(("remembered_s", "num_moves"), [(limits.LOSSES_REMEMBERED_S, 0), (0.0, 1)])
def test_where_workers_get_lost_no_plan_leaves_a_stage_to_one(monkeypatch, remembered_s, num_moves):
    """A run went back to its checkpoint: the one who stayed was dead already, and nobody knew."""
    monkeypatch.setattr(limits, "LOSSES_REMEMBERED_S", remembered_s)
    trainer = trained(job_s=SLOW_LAST)
    trainer.dies(4)
    trainer.live(1.0)
    assert len(moves(step(trainer))) == num_moves


@pytest.mark.parametrize(("busy_s", "num_moves"), [(0.0, 1), (3.0, 0)])
def test_no_plan_leaves_a_stage_to_one_who_may_hang(busy_s, num_moves):
    trainer = trained(job_s={"a": (0, 0.1), "b": (1, 2.0), "c": (0, 0.1)})
    rebalancer = trainer.machine.rebalancer
    trainer.report(3, **(trainer.says[3] | {"busy_s": busy_s, "usual_s": 0.1}))
    problem = rebalancer._order(Move(session=Session(1), source=Stage(0), target=Stage(1)), trainer.now_s)
    assert (problem == "") == bool(num_moves)


def test_stages_that_are_faster_than_the_slowest_wait_for_it():
    for extra_s, expected in ((0.3, {0}), (0.5, set())):
        trainer = trained(job_s=EVEN | {"c": (0, extra_s)})
        assert trainer.machine.rebalancer.waiting(trainer.now_s) == expected
    trainer = Trainer(rebalancing="priced")
    assert trainer.machine.rebalancer.waiting(trainer.now_s) == set()


def test_why_nobody_moves_is_in_the_log():
    trainer = trained(job_s=EVEN)
    (plan,) = [record for record in written(step(trainer)) if record["event"] == "plan"]
    assert (plan["moves"], plan["reason"]) == (0, "no move makes the slowest stage faster")


def test_there_is_a_plan_once_per_period():
    trainer = trained(job_s=EVEN, rebalance_every_s=10.0)
    assert "plan" in records(step(trainer))
    trainer.live(5.0)
    assert "plan" not in records(step(trainer, 2))
    trainer.live(5.0)
    assert "plan" in records(step(trainer, 3))


def test_without_rebalancing_nobody_is_asked():
    trainer = trained(job_s=SLOW_LAST, rebalancing="none")
    assert "plan" not in records(step(trainer))


def test_who_is_on_the_way_counts_where_he_goes_with_the_speed_that_he_has_shown():
    trainer = trained(job_s=SLOW_LAST)
    ((node, *_),) = moves(step(trainer))
    session = next(s for s, name in enumerate(SLOW_LAST, 1) if name == node)
    assert worker(trainer, session) == WorkerView(
        session=Session(session), stage=Stage(1), is_ready=False, job_s=0.1, measured_in=Stage(0)
    )
    (welcome,) = of_type(trainer.join(node, nonce=2, stage=0), Welcome)
    trainer.report(welcome.yours, stage=1, step=2, ready=False)
    assert worker(trainer, welcome.yours).measured_in == 0
    assert len(view(trainer).workers) == 4
    trainer.report(welcome.yours, stage=1, step=2, job_s=0.3)
    assert (worker(trainer, welcome.yours).job_s, worker(trainer, welcome.yours).measured_in) == (0.3, 1)


def test_who_never_arrives_is_forgotten():
    trainer = trained(job_s=SLOW_LAST)
    step(trainer)
    trainer.live(limits.TRAVEL_HEARTBEATS + 1.0)
    assert len(view(trainer).workers) == 3


def test_who_is_ordered_elsewhere_by_hand_counts_there():
    trainer = trained(job_s=SLOW_LAST)
    trainer.machine.moves.order(Session(3), Stage(1))
    assert (worker(trainer, 3).stage, worker(trainer, 3).is_ready) == (1, False)


def test_who_leaves_counts_for_nothing():
    trainer = trained(job_s=SLOW_LAST)
    trainer.report(3, stage=0, job_s=0.1, leaving=Leaving.DRAINING)
    assert [one.session for one in view(trainer).workers] == [1, 2, 4]


def test_what_is_known_of_stages():
    trainer = trained(job_s=SLOW_LAST, stage_costs=(1.0, 3.0))
    trainer.report(5, active=0b0111)
    first, last = view(trainer).stages
    assert (first.cost, first.jobs_per_microbatch, first.num_queued, first.state_bytes) == (1.0, 2, 3, STATE_BYTES)
    assert (last.cost, last.jobs_per_microbatch, last.num_queued) == (3.0, 1, 0)


def test_how_long_a_download_takes_is_learned():
    trainer = trained(job_s=EVEN)
    step(trainer)
    before = view(trainer).bandwidth_bytes_per_s
    assert before == limits.FIRST_BANDWIDTH_BYTES_PER_S
    (welcome,) = of_type(trainer.join("new"), Welcome)
    trainer.now_s += 2.0
    trainer.report(welcome.yours, stage=welcome.stage, step=2, ready=False)
    assert view(trainer).bandwidth_bytes_per_s == before
    trainer.now_s += 2.0
    trainer.report(welcome.yours, stage=welcome.stage, step=2)
    assert view(trainer).bandwidth_bytes_per_s == pytest.approx(0.7 * before + 0.3 * STATE_BYTES / 2.0)


def test_who_comes_back_with_his_parameters_has_neither_downloaded_nor_joined_nor_left():
    """A fence takes a count, not a machine."""
    trainer = trained(job_s=SLOW_LAST, rebalancing="none")
    step(trainer)
    trainer.dies(4)
    (welcome,) = of_type(trainer.join("d", nonce=2, stage=0), Welcome)
    trainer.report(welcome.yours, stage=0, step=2)
    seen = view(trainer)
    assert seen.bandwidth_bytes_per_s == limits.FIRST_BANDWIDTH_BYTES_PER_S
    assert seen.join_every_s == float("inf")
    trainer.live(limits.TRAVEL_HEARTBEATS + 1.0)
    assert trainer.machine.rebalancer._churn._num_left == 0


def test_fresh_parameters_are_no_download():
    trainer = trained(job_s=EVEN, is_known=False)
    (welcome,) = of_type(trainer.join("new"), Welcome)
    trainer.report(welcome.yours, stage=welcome.stage, ready=False)
    trainer.now_s += 2.0
    trainer.report(welcome.yours, stage=welcome.stage)
    assert view(trainer).bandwidth_bytes_per_s == limits.FIRST_BANDWIDTH_BYTES_PER_S


def test_who_comes_and_goes_is_learned_and_moves_are_neither():
    trainer = trained(job_s=SLOW_LAST)
    assert view(trainer).join_every_s == float("inf")
    ((node, *_),) = moves(step(trainer))
    trainer.join(node, nonce=2, stage=0)
    assert view(trainer).join_every_s == float("inf")
    churn = trainer.machine.rebalancer._churn
    before = churn.residence_s(trainer.now_s)
    trainer.now_s += 1.0
    trainer.join("new")
    assert view(trainer).join_every_s < float("inf")
    trainer.dies(2)
    trainer.live(limits.TRAVEL_HEARTBEATS + 1.0)
    assert view(trainer)
    assert churn.residence_s(trainer.now_s) < before


def test_of_several_moves_those_that_cannot_be_are_in_the_log_with_the_reason(monkeypatch):
    """Another one has been ordered by hand meanwhile, so that this one would be the last of its stage."""
    trainer = trained(job_s=SLOW_LAST)
    order = trainer.machine.moves.order
    monkeypatch.setattr(
        trainer.machine.rebalancer._planner,
        "plan",
        lambda *_: [Move(session=Session(s), source=Stage(0), target=Stage(1)) for s in (1, 3, 4)],
    )
    commands = step(trainer)
    (plan,) = [record for record in written(commands) if record["event"] == "plan"]
    assert plan["moves"] == 2
    assert "too few who are well hold the state of stage 0" in plan["reason"]
    assert len(moves(commands)) == 2
    assert order(Session(99), Stage(0)) == "session 99 has left"


def test_the_papers_planner_sleeps_first_and_says_nothing_of_it():
    trainer = trained(job_s=SLOW_LAST, rebalancing="published")
    assert "plan" not in records(step(trainer))
    trainer.live(1.0)
    assert "plan" in records(step(trainer, 2))


def test_the_first_jobs_are_no_measure():
    """They may be many times slower than all others: the first plan is made after a period."""
    trainer = trained(job_s=SLOW_LAST, rebalance_every_s=30.0)
    trainer.machine.rebalancer.begin(trainer.now_s)
    assert "plan" not in records(step(trainer))
    trainer.live(30.0)
    assert "plan" in records(step(trainer, 2))


def test_nobody_is_expected_to_stay_for_longer_than_the_run_lasts():
    trainer = trained(job_s=EVEN, steps=9, is_known=False)
    step(trainer, 0)
    assert view(trainer).residence_s > 1000.0
    trainer.live(2.0)
    step(trainer, 1)
    assert view(trainer).residence_s == pytest.approx(2.0 * 7)


def test_a_speed_is_remembered_for_so_many_nodes(monkeypatch):
    monkeypatch.setattr(limits, "MAX_ENDED_NODES", 2)
    trainer = trained(job_s=SLOW_LAST)
    for session in (3, 4, 1):
        trainer.dies(session)
    assert set(trainer.machine.rebalancer._known) == {NodeId("d"), NodeId("a")}
