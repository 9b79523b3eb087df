"""Workers are moved to other stages: only in the moment of a commit, never the last, and the log says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.letters import move, of_type
from tests.trainer.swarm import FULL, Trainer, records, to, written
from tests.trainer.test_departures import commit, left
from zswarm import limits
from zswarm.ids import Leaving, Role, Session, Stage
from zswarm.messages import Commit, Fence, Moved, View, Welcome
from zswarm.trainer.moves import Moves


@pytest.fixture
def trainer() -> Trainer:
    """Two workers of stage 0 (sessions 1 and 5, nodes w0 and w2), one of stage 1 (2, w1), a broker of each (3, 4)."""
    return Trainer.of_three(steps=5)


def ordered(trainer: Trainer, node: str, stage: int, **of: Any) -> tuple[bool, str]:
    """Order a worker to be moved; returns the answer."""
    commands = trainer.get(move(node, stage, **of), peer="sim://operator")
    (answer,) = of_type(commands, Moved)
    assert to(commands, Moved) == ["sim://operator"]
    assert (answer.node, answer.stage) == (node, stage)
    return answer.is_accepted, answer.text


def moves(commands: list[Any]) -> list[tuple[str, int, int, str | None]]:
    """Return node, from, to and problem of everybody who was moved."""
    found = [record for record in written(commands) if record["event"] == "move"]
    return [(record["node"], record["stage"], record["to"], record.get("problem")) for record in found]


def test_a_worker_is_moved_with_the_next_commit_and_loses_nothing(trainer):
    assert ordered(trainer, "w2", 1) == (True, "w2 goes to stage 1 when step 0 is committed")
    trainer.report(5, 0b0011)
    assert records(trainer.live(2.0)) == [], "not before"
    commands = commit(trainer, {1: 0b1100, 5: 0b0011, 2: FULL})
    assert records(commands)[-2:] == ["move", "leave"]
    assert moves(commands) == [("w2", 0, 1, None)]
    assert left(commands) == [(5, "moved to stage 1", 0)]
    assert to(commands, Commit) == ["sim://1", "sim://2"], "who is moved would go on with the next step"
    assert to(commands, Fence) == ["sim://5"]
    assert of_type(commands, View)
    (welcome,) = of_type(trainer.join("w2", nonce=2, stage=0), Welcome)
    assert (welcome.yours, welcome.stage) == (6, 1)


def test_a_move_at_a_commit_is_no_loss(trainer):
    """It was taken for one: what was alive of the new step was held for lost after half a heartbeat, and done again."""
    roster = trainer.machine.roster
    before = (roster.lost_view, roster.lost_at_s)
    ordered(trainer, "w2", 1)
    view = roster.view
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL})) == [("w2", 0, 1, None)]
    assert roster.view > view
    assert (roster.lost_view, roster.lost_at_s) == before


def test_a_move_in_the_middle_of_a_step_is_a_loss(trainer):
    """It takes over from the last of a stage, who leaves: what it had in hand is nobody's."""
    roster = trainer.machine.roster
    trainer.now_s = 2.0
    commands = trainer.report(2, leaving=Leaving.DRAINING)
    assert left(commands) == [(5, "moved to stage 1, whose last worker leaves", 0)]
    assert (roster.lost_view, roster.lost_at_s) == (roster.view, 2.0)


def test_the_wish_is_for_one_life(trainer):
    ordered(trainer, "w2", 1)
    commit(trainer, {1: FULL, 5: 0, 2: FULL})
    trainer.join("w2", nonce=2, stage=0)
    (welcome,) = of_type(trainer.join("w2", nonce=3, stage=0), Welcome)
    assert welcome.stage == 0


def test_an_order_may_come_twice_and_the_last_one_holds(trainer):
    trainer = Trainer(steps=5, layers_per_stage=(1, 1, 1), unit_bytes=(100,) * 3)
    for index in range(4):
        trainer.join(f"w{index}")
    for index in range(3):
        trainer.join(f"b{index}", Role.BROKER)
    for session in range(1, 8):
        trainer.report(session, stage=trainer.machine.roster.records[Session(session)].stage)
    assert ordered(trainer, "w3", 1) == ordered(trainer, "w3", 1)
    assert ordered(trainer, "w3", 2) == (True, "w3 goes to stage 2 when step 0 is committed, and not to stage 1")
    assert set(trainer.machine.moves.ordered) == {4}
    commands = commit(trainer, {1: FULL, 4: 0, 2: FULL, 3: FULL})
    assert moves(commands) == [("w3", 0, 2, None)]


def test_an_order_that_cannot_be_leaves_the_one_before_it_and_says_so(trainer):
    """A slip of the pen after an order had been taken took it back without a word."""
    ordered(trainer, "w2", 1)
    assert ordered(trainer, "w2", 7) == (
        False,
        "there is no stage 7: the last is 1; as ordered before, it goes to stage 1 when step 0 is committed",
    )
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL})) == [("w2", 0, 1, None)]


def test_an_order_is_taken_back_by_the_stage_that_the_worker_is_in(trainer):
    """It was taken back, too, but the answer was that this cannot be."""
    ordered(trainer, "w2", 1)
    assert ordered(trainer, "w2", 0) == (True, "w2 stays in stage 0, and does not go to stage 1")
    assert ordered(trainer, "w2", 0) == (False, "w2 is in stage 0")
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL})) == []


@pytest.mark.parametrize(
    ("node", "stage", "reason"),
    [
        ("w9", 1, "there is no w9 in the swarm"),
        ("b0", 1, "b0 is a broker: only workers are moved"),
        ("w2", 2, "there is no stage 2: the last is 1"),
        ("w2", 0, "w2 is in stage 0"),
        ("w1", 0, "w1 is the last worker of stage 1 that has its state"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(trainer, node, stage, reason):
    assert ordered(trainer, node, stage) == (False, reason)
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL})) == []


def test_whoever_leaves_is_not_moved(trainer):
    trainer.report(5, leaving=Leaving.DRAINING)
    assert ordered(trainer, "w2", 1) == (False, "w2 leaves")
    assert ordered(trainer, "w0", 1) == (False, "w0 is the last worker of stage 0 that has its state")


def test_of_two_workers_of_a_stage_one_may_go(trainer):
    assert ordered(trainer, "w2", 1)[0]
    reason = "w0 is the last worker of stage 0 that has its state as soon as those are gone who go: w2"
    assert ordered(trainer, "w0", 1) == (False, reason)
    assert set(trainer.machine.moves.ordered) == {5}, "the order before it holds"


def test_a_worker_without_its_state_does_not_count_as_one_who_stays(trainer):
    trainer.report(5, ready=False)
    assert ordered(trainer, "w0", 1) == (False, "w0 is the last worker of stage 0 that has its state")


def test_a_full_stage_takes_nobody(trainer, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PARTICIPANTS", 2)
    trainer.join("w3")
    assert ordered(trainer, "w2", 1) == (False, "stage 1 has all the workers that it can have")


def test_what_is_not_possible_any_more_is_not_done_and_the_log_says_why(trainer):
    ordered(trainer, "w2", 1)
    trainer.dies(1)
    commands = commit(trainer, {5: FULL, 2: FULL})
    problem = "w2 is the last worker of stage 0 that has its state"
    assert moves(commands) == [("w2", 0, 1, problem)]
    assert left(commands) == []
    assert moves(commit(trainer, {5: FULL, 2: FULL}, step=1)) == [], "it is not tried again"


def test_whoever_has_died_meanwhile_is_moved_no_more(trainer):
    ordered(trainer, "w2", 1)
    trainer.dies(5)
    assert moves(commit(trainer, {1: FULL, 2: FULL})) == []


def test_before_the_run_begins_and_in_its_last_two_steps_nobody_is_moved(trainer):
    gathering = Trainer(workers_per_stage=2)
    gathering.enroll()
    gathering.join("w2")
    assert ordered(gathering, "w2", 1) == (False, "the run is gathering")
    for step in range(3):
        commit(trainer, {1: FULL, 5: 0, 2: FULL}, step=step)
        for session in (1, 5, 2):
            trainer.report(session, step=step + 1)
    assert ordered(trainer, "w2", 1) == (False, "the run is in its last two steps: nobody is moved any more")


def test_an_order_that_cannot_be_any_more_is_not_told_as_one_that_holds(trainer):
    assert ordered(trainer, "w2", 1)[0]
    trainer.report(5, leaving=Leaving.DRAINING)
    assert ordered(trainer, "w2", 1) == (False, "w2 leaves")


def test_an_order_for_another_run_is_of_no_account(trainer):
    assert of_type(trainer.get(move("w2", 1, run=8), peer="sim://operator"), Moved) == []
    assert ordered(trainer, "w2", 1, run=7)[0]


def test_whoever_keeps_a_copy_for_a_checkpoint_goes_after_it(trainer):
    """Another keeps it if there is one; a copy that is being fetched already is waited for."""
    trainer = Trainer.of_three(checkpoint_every=1, steps=5)
    commit(trainer, {1: FULL, 5: 0, 2: FULL})
    for session in (1, 5, 2):
        trainer.report(session, step=1)
    assert trainer.machine.committer.donors[Stage(0)] == 1
    assert ordered(trainer, "w0", 1)[0]
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL}, step=1)) == []
    for session in (1, 5, 2):
        trainer.report(session, step=2)
    trainer.live(1.0)
    for part in (0, 1):
        trainer.machine.archive.abandon(f"part {part}")
    assert moves(commit(trainer, {1: FULL, 5: 0, 2: FULL}, step=2)) == [("w0", 0, 1, None)]
    assert trainer.machine.committer.donors[Stage(0)] == 5


def test_a_trainer_that_takes_the_run_up_knows_who_was_moved(trainer):
    ordered(trainer, "w2", 1)
    commit(trainer, {1: FULL, 5: 0, 2: FULL})
    after = trainer.again(steps=5)
    (welcome,) = of_type(after.join("w2", nonce=2, stage=0), Welcome)
    assert welcome.stage == 1
    assert isinstance(after.machine.moves, Moves)
