"""What an onlooker who never forgets finds wrong with a log: I4, I5 and R3."""

from __future__ import annotations

from typing import Any

import pytest

from zswarm.ids import Branch, Generation, Round, RunId, Session, Stage, Step
from zswarm.messages import Commit, Prepare, Prepared, Welcome
from zswarm.simulation.history import History
from zswarm.simulation.violation import Violation
from zswarm.trainer.settings import Append


def append(event: str, *, durable: bool = True, **fields: Any) -> Append:
    return Append(record={"event": event, **fields}, durable=durable)


def commit(
    step: int, branch: int = 0, *, round_: int | None = None, counted: dict[str, list[int]] | None = None
) -> Append:
    contributions = counted if counted is not None else {"1": [0], "2": [1]}
    stage = {"stage": 0, "round": 10 * branch + step + 1 if round_ is None else round_, "contributions": contributions}
    return append("commit", branch=branch, step=step, stages=[stage])


def prepare(round_: int, *participants: int) -> Prepare:
    return Prepare(
        run=RunId(1),
        generation=Generation(1),
        session=Session(0),
        branch=Branch(0),
        step=Step(0),
        round=Round(round_),
        participants=tuple(map(Session, participants)),
        ledger=b"",
    )


def prepared(round_: int, session: int) -> Prepared:
    return Prepared(
        run=RunId(1),
        generation=Generation(1),
        session=Session(session),
        branch=Branch(0),
        step=Step(0),
        round=Round(round_),
        digest=1,
        finite=True,
        square_norm=1.0,
        ledger=b"",
        loss_sum=0.0,
        num_targets=0,
    )


def history(*rounds: int) -> History:
    made = History(num_stages=1)
    made.appended(append("start", generation=1))
    for round_ in rounds:
        made.opened(prepare(round_, 1, 2))
        made.prepared(prepared(round_, 1))
        made.prepared(prepared(round_, 2))
    return made


def test_steps_follow_each_other_on_each_branch() -> None:
    """After a rollback the same steps come again, on the next branch."""
    made = history(1, 2, 12, 13)
    made.appended(commit(0))
    made.appended(commit(1))
    made.appended(append("checkpoint", branch=0, step=1))
    made.appended(append("rollback", branch=1, step=1))
    made.appended(commit(1, branch=1))
    made.appended(commit(2, branch=1))
    assert (made.branch, made.step) == (1, 3)
    assert sorted(made.commits) == [(0, 0), (0, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (commit(0), "step 0 of branch 0 is committed, next is 1"),
        (commit(2), "step 2 of branch 0 is committed, next is 1"),
        (commit(1, branch=1), "step 1 of branch 1 is committed, next is 1 of branch 0"),
        (commit(1, round_=99), "nobody was asked to prepare round 99"),
        (append("commit", durable=False, branch=0, step=1, stages=[]), "not durable"),
        (append("rollback", durable=False, branch=1, step=0), "not durable"),
        (append("rollback", branch=2, step=0), "to branch 2 from 0"),
        (append("rollback", branch=1, step=2), "to step 2 from 1"),
        (append("rollback", branch=1, step=1), "which has no checkpoint"),
        (append("start", generation=1), "after 1"),
    ],
    ids=lambda value: value.record["event"] if isinstance(value, Append) else "",
)
def test_i4_sees_a_log_that_contradicts_itself(record: Append, match: str) -> None:
    made = history(1, 2)
    made.appended(commit(0))
    with pytest.raises(Violation, match=f"I4: .*{match}"):
        made.appended(record)


def test_nothing_is_committed_after_the_end_until_a_trainer_takes_the_run_up() -> None:
    made = history(1, 2)
    made.appended(append("finish", code=1))
    with pytest.raises(Violation, match=r"I4: .*after the end"):
        made.appended(commit(0))
    made.appended(append("start", generation=2))
    made.appended(commit(0))


def leave(session: int) -> Append:
    return append("leave", durable=False, session=session, reason="silent")


def test_i5_sees_a_contribution_that_was_given_up_before_all_had_prepared() -> None:
    made = History(num_stages=1)
    made.opened(prepare(1, 1, 2))
    made.prepared(prepared(1, 1))
    made.appended(leave(1))
    made.prepared(prepared(1, 2))
    with pytest.raises(Violation, match=r"I5: .*session 1 contributes"):
        made.appended(commit(0))


def test_whoever_was_given_up_after_all_had_prepared_may_contribute() -> None:
    made = history(1)
    made.appended(leave(1))
    made.appended(commit(0))


def test_a_member_that_has_counted_nothing_may_go_at_any_time() -> None:
    made = History(num_stages=1)
    made.opened(prepare(1, 1, 2))
    made.appended(leave(1))
    made.appended(commit(0, counted={"1": [], "2": [0, 1]}))


def test_i5_sees_a_round_with_somebody_who_is_gone() -> None:
    """What a trainer would begin that has lost the record of it, and has not lost the session."""
    made = history()
    made.appended(leave(2))
    with pytest.raises(Violation, match=r"I5: round 5 is begun with \[2\]"):
        made.opened(prepare(5, 1, 2))


def test_a_round_with_other_participants_is_another_round() -> None:
    made = history(1)
    made.opened(prepare(1, 1, 2))
    with pytest.raises(Violation, match="R5: round 1 is begun twice"):
        made.opened(prepare(1, 1))


def test_i4_sees_a_commit_that_is_told_and_not_decided() -> None:
    made = history(1)
    message = Commit(
        run=RunId(1),
        generation=Generation(1),
        session=Session(0),
        branch=Branch(0),
        step=Step(0),
        round=Round(1),
        digest=1,
        scale=1.0,
        lr=0.1,
        apply=True,
    )
    with pytest.raises(Violation, match="I4: trainer tells of the commit of step 0"):
        made.told(message, "trainer")
    made.appended(commit(0))
    made.told(message, "trainer")


def welcome(session: int, nonce: int) -> Welcome:
    return Welcome(
        run=RunId(1),
        generation=Generation(1),
        session=Session(0),
        branch=Branch(0),
        step=Step(0),
        boot_nonce=nonce,
        yours=Session(session),
        stage=Stage(0),
        num_stages=1,
        first_layer=0,
        num_layers=1,
        heartbeat_s=1.0,
        unit_bytes=1,
        wiring="queue",
        size_bytes=0,
    )


def test_r3_sees_a_session_that_two_lives_get() -> None:
    """Also if a trainer that has issued it has died since, and has forgotten."""
    made = history()
    made.welcomed(welcome(7, nonce=70))
    made.welcomed(welcome(7, nonce=70))
    with pytest.raises(Violation, match="R3: session 7 of life 70 is issued to life 71 as well"):
        made.welcomed(welcome(7, nonce=71))
