"""Processes ask to leave: who is let go, when, and who takes over from the last of a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.letters import attach, credit, inherit, of_type, stop
from tests.trainer.swarm import FULL, Trainer, records, to, written
from zswarm import limits
from zswarm.bequests import unpacked
from zswarm.ids import Leaving, Role, Session, Stage
from zswarm.messages import Attach, Commit, Fence, Inherit, Prepare, Register, Restore, View, Void, Welcome

IDLE, DRAINING = Leaving.IDLE, Leaving.DRAINING


@pytest.fixture
def trainer() -> Trainer:
    """Two workers of stage 0 (sessions 1 and 5), one of stage 1 (2), a broker of each stage (3 and 4)."""
    return Trainer.of_three()


def left(commands: list[Any]) -> list[tuple[int, str, int]]:
    """Return session, reason and losses of everybody who has left."""
    leaves = [record for record in written(commands) if record["event"] == "leave"]
    return [(record["session"], record["reason"], record["lost"]) for record in leaves]


def commit(trainer: Trainer, counted: dict[int, int], step: int = 0) -> list[Any]:
    """Let these workers have counted that, and everybody prepare it; returns what follows from the last of them."""
    for session, ledger in counted.items():
        trainer.report(session, **(trainer.says[session] | {"counted": ledger, "step": step}))
    commands: list[Any] = []
    for session, ledger in counted.items():
        commands = trainer.prepare(session, ledger, step=step)
    return commands


def test_whoever_has_counted_nothing_is_let_go_at_once(trainer):
    commands = trainer.report(5, leaving=IDLE)
    assert left(commands) == [(5, "drained", 0)]
    assert to(commands, Fence) == ["sim://5"]
    assert of_type(commands, View)


def test_whoever_still_has_something_in_hand_stays(trainer):
    assert left(trainer.report(5, leaving=DRAINING)) == []
    assert left(trainer.live(2.0)) == []


def test_who_does_not_know_of_everybody_stays(trainer):
    """A broker that it has not heard of may have given it a job, and has not let it go."""
    view = trainer.machine.roster.view
    assert left(trainer.report(5, leaving=IDLE, view=view - 1)) == []
    assert left(trainer.report(5, leaving=IDLE, view=view)) == [(5, "drained", 0)]


def test_what_it_has_counted_is_committed_first(trainer):
    """It takes part in the round, and is let go with the very commit, before it has applied it."""
    assert left(trainer.report(5, 0b0011, leaving=IDLE)) == []
    commands = commit(trainer, {1: 0b1100, 5: 0b0011, 2: FULL})
    assert to(commands, Commit) == ["sim://1", "sim://5", "sim://2"]
    assert left(commands) == [(5, "drained", 0)]
    (view, *_) = of_type(commands, View)
    assert view.step == 1, "brokers hear with it that the step is over"


def test_who_leaves_and_has_counted_nothing_is_in_no_round(trainer):
    trainer.report(5, leaving=DRAINING)
    (prepare,) = of_type(trainer.report(1, FULL), Prepare)
    assert prepare.participants == (1,)


def test_who_leaves_and_is_in_a_round_stays_until_it_is_over(trainer):
    trainer.report(1, FULL)
    assert trainer.rounds()[5]
    assert left(trainer.report(5, leaving=IDLE)) == []
    trainer.prepare(1, FULL, step=0)
    trainer.prepare(5, 0, step=0)
    trainer.report(2, FULL)
    assert left(trainer.prepare(2, step=0)) == [(5, "drained", 0)]


def test_all_of_a_stage_may_be_in_its_round_and_leave(trainer):
    """If everybody leaves, those who have counted nothing take part: somebody has to hold the result."""
    trainer.report(5, leaving=IDLE, counted=0)
    trainer = Trainer(workers_per_stage=1)
    trainer.gather()
    trainer.report(1, FULL, leaving=DRAINING)
    assert trainer.rounds()[1]


def test_time_was_up(trainer):
    trainer.report(5, 0b0011, leaving=DRAINING)
    commands = trainer.get(stop(5))
    assert left(commands) == [(5, "asked to leave, 2 microbatches redone", 2)]
    trainer.report(1, 0b0001)
    assert left(trainer.get(stop(1))) == [(1, "asked to leave, 1 microbatch redone", 1)]


def test_the_last_to_hold_a_state_stays_until_another_holds_it(trainer):
    commit(trainer, {1: FULL, 5: 0, 2: FULL})
    for session in (1, 2, 5):
        trainer.report(session, step=1)
    assert left(trainer.report(2, step=1, leaving=IDLE)) == [
        (5, "moved to stage 1, whose last worker leaves", 0),
    ]
    assert left(trainer.report(2, step=1, leaving=IDLE)) == []
    (welcome,) = of_type(trainer.join("w2", nonce=2, stage=0), Welcome)
    assert (welcome.yours, welcome.stage) == (6, 1), "where nobody stays"
    (restore,) = of_type(trainer.report(6, step=1, ready=False), Restore)
    assert restore.donor == 2
    assert left(trainer.report(2, step=1, leaving=IDLE)) == [], "it gives its state"
    assert left(trainer.report(6, step=1)) == [(2, "drained", 0)]


def test_nobody_is_moved_whose_stage_has_no_other(trainer):
    trainer = Trainer()
    trainer.gather()
    trainer.train()
    trainer = Trainer(steps=5)
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    assert left(trainer.report(2, step=1, leaving=IDLE)) == []
    assert left(trainer.live(2.0)) == []


def test_of_those_who_could_take_over_it_is_the_one_with_least_to_lose(trainer):
    trainer.report(1, 0b0001)
    trainer.report(5, 0b0110)
    assert left(trainer.report(2, leaving=DRAINING)) == [(1, "moved to stage 1, whose last worker leaves", 1)]


def test_only_one_is_sent_until_there_was_time_to_come(trainer):
    trainer.join("w3")
    trainer.join("w4")
    for session in (6, 7):
        trainer.report(session)
    where = {session: record.stage for session, record in trainer.machine.roster.records.items()}
    assert [where[Session(s)] for s in (1, 2, 5, 6, 7)] == [0, 1, 0, 1, 0]
    trainer.report(2, leaving=DRAINING)
    assert left(trainer.report(6, leaving=DRAINING)) == [(7, "moved to stage 1, whose last worker leaves", 0)]
    del trainer.says[7]
    assert left(trainer.live(limits.EMPTY_STAGE_HEARTBEATS - 1.0)) == []
    assert left(trainer.live(2.0)) == [(5, "moved to stage 1, whose last worker leaves", 0)]


def with_machines(*nodes: str) -> Trainer:
    """Return a trainer whose workers w0 (stage 0, session 1) and w1 (stage 1, 2) are joined by these, `machine:name`, in stage 0
    from session 5 on.
    """
    trainer = Trainer()
    trainer.gather()
    for session, node in enumerate(nodes, 5):
        trainer.join(node, stage=0)
        trainer.report(session)
    return trainer


def moved(commands: list[Any]) -> list[int]:
    """Return who is sent to another stage."""
    return [record["session"] for record in written(commands) if record["event"] == "move"]


def test_who_is_on_a_machine_that_somebody_leaves_is_not_sent(trainer):
    """All processes of a machine were asked at once: one that had not said so yet was sent, and the state waited for it."""
    trainer = with_machines("lab1:a", "lab2:b", "lab1:c", "lab1:d")
    trainer.report(8, leaving=DRAINING)
    assert moved(trainer.report(2, leaving=DRAINING)) == [6]


def test_who_is_on_such_a_machine_has_time_to_say_so_first():
    trainer = with_machines("lab1:a", "lab1:b", "lab1:c")
    trainer.report(1, leaving=DRAINING)
    trainer.report(7, leaving=DRAINING)
    assert moved(trainer.report(2, leaving=DRAINING)) == []
    trainer.report(6, leaving=DRAINING)
    assert moved(trainer.live(1.0)) == [], "one alone stays where it is"
    trainer = with_machines("lab1:a", "lab1:b", "lab1:c")
    trainer.report(1, leaving=DRAINING)
    trainer.report(7, leaving=DRAINING)
    trainer.report(2, leaving=DRAINING)
    assert moved(trainer.live(0.5)) == [6]


@pytest.mark.parametrize("how", ["farewell", "late word", "next life", "next life is gone"])
def test_another_one_is_sent_where_the_one_that_was_sent_leaves_as_well(how):
    """Five heartbeats passed before anybody else was sent: half of the time that those have who wait for him."""
    trainer = with_machines("w2", "w3", "w4")
    assert moved(trainer.report(2, leaving=DRAINING)) == [7]
    del trainer.says[7]
    if how == "farewell":
        commands = trainer.get(stop(7))
    elif how == "late word":
        commands = trainer.report(7, leaving=DRAINING)
        del trainer.says[7]
    else:
        trainer.join("w4", nonce=2, stage=0)
        assert moved(trainer.report(8, ready=False)) == []
        commands = trainer.report(8, ready=False, leaving=DRAINING if how == "next life" else IDLE)
        assert left(commands)[:-1] == ([(8, "drained", 0)] if how == "next life is gone" else [])
    assert moved(commands + trainer.live(0.5)) == [6]


def test_where_the_last_is_gone_somebody_is_sent_at_once(trainer):
    """A broker that is alone and empty goes without a word before."""
    trainer.join("b2", Role.BROKER, stage=0)
    trainer.report(6)
    assert left(trainer.get(stop(4)))[1:] == [(6, "moved to stage 1, whose last broker leaves", 0)]
    trainer.join("b2", Role.BROKER, nonce=2, stage=0)
    assert moved(trainer.live(1.0)) == []


def test_who_joins_goes_where_fewest_stay(trainer):
    trainer.report(1, leaving=DRAINING)
    trainer.report(5, leaving=DRAINING)
    (welcome,) = of_type(trainer.join("w9"), Welcome)
    assert welcome.stage == 0


def test_who_leaves_gets_no_state_and_others_give_it_first(trainer):
    trainer.join("w3")
    trainer.report(6, stage=1)
    commit(trainer, {1: FULL, 5: 0, 2: FULL, 6: 0})
    for session in (1, 2, 5, 6):
        trainer.report(session, step=1)
    trainer.report(2, 0b1, step=1, leaving=DRAINING)
    trainer.join("w4")
    commands = trainer.report(7, step=0, ready=False)
    stage = trainer.machine.roster.records[Session(7)].stage
    assert [order.donor for order in of_type(commands, Restore)] == [6 if stage == 1 else 1]
    assert of_type(trainer.report(7, step=0, ready=False, leaving=DRAINING), Restore) == []


def test_the_copy_for_a_checkpoint_is_asked_of_one_who_stays():
    trainer = Trainer.of_three(checkpoint_every=1, steps=4)
    trainer.report(1, 0b0011, leaving=DRAINING)
    commands = commit(trainer, {1: 0b0011, 5: 0b1100, 2: FULL})
    told = {c.peer: c.message.snapshot for c in commands if getattr(c, "message", None) in of_type(commands, Commit)}
    assert told == {"sim://1": False, "sim://5": True, "sim://2": True}


def test_a_copy_that_is_being_fetched_keeps_whoever_has_it():
    trainer = Trainer.of_three(checkpoint_every=1, steps=4)
    commit(trainer, {1: 0b0011, 5: 0b1100, 2: FULL})
    for session in (1, 5, 2):
        trainer.report(session, step=1)
    assert left(trainer.report(1, step=1, leaving=IDLE)) == []
    trainer.live(1.0)
    trainer.give_state(1)
    assert left(trainer.log) == [(1, "drained", 0)]


# -- what is handed over -----------------------------------------------------------------------------


def hand_over(trainer: Trainer, counted: int = 0b0011, **of: Any) -> list[Any]:
    """Let worker 5 leave with what it has counted, and worker 1 say that this is there; returns what follows."""
    trainer.report(5, counted, leaving=IDLE, **of)
    return trainer.report(1, 0b0100, inherits=(5, counted))


def test_what_it_has_counted_is_another_ones_as_soon_as_that_has_it(trainer):
    commands = trainer.report(5, 0b0011, leaving=IDLE)
    assert to(commands, Inherit) == ["sim://1"]
    (order,) = of_type(commands, Inherit)
    assert order == replace(inherit(5, 0b0011), address=order.address)
    assert order.address == trainer.machine.roster.records[5].addresses[0]
    assert left(commands) == []
    commands = trainer.report(1, 0b0100, inherits=(5, 0b0011))
    assert left(commands) == [(5, "drained", 0)]
    (leave,) = [record for record in written(commands) if record["event"] == "leave"]
    assert leave["heir"] == 1
    assert [*map(unpacked, of_type(commands, View))] == 4 * [{5: (1, 0b0011)}]
    assert "replay" not in records(trainer.live(1.5)), "the heir need not have said so yet"
    (prepare,) = of_type(trainer.report(1, FULL), Prepare)
    assert (prepare.participants, prepare.ledger) == ((1,), b"\x0f")


def test_the_order_is_repeated_until_the_share_is_there(trainer):
    trainer.report(5, 0b0011, leaving=IDLE)
    assert of_type(trainer.live(2.0), Inherit)
    record = trainer.machine.roster.records[1]
    record.inherits, record.inherited = Session(5), 0b0011
    assert of_type(trainer.machine.departures.orders(0, trainer.now_s + 9.0), Inherit) == []


def test_whose_share_it_is_is_told_until_the_step_is_over(trainer):
    hand_over(trainer)
    assert trainer.machine.roster.bequests == {5: (1, 0b0011)}
    commit(trainer, {1: FULL, 2: FULL})
    assert trainer.machine.roster.bequests == {}


def test_a_trainer_that_starts_again_knows_whose_share_it_is(trainer):
    hand_over(trainer)
    after = trainer.again()
    assert after.machine.roster.bequests == {5: (1, 0b0011)}
    views = of_type(after.report(1, FULL, view=0), View)
    assert views
    assert all(unpacked(view) == {5: (1, 0b0011)} for view in views)


def test_nothing_is_handed_over_that_a_round_waits_for(trainer):
    trainer.report(1, 0b1100)
    assert to(trainer.report(5, 0b0011), Prepare) == ["sim://1", "sim://5"]
    assert of_type(trainer.report(5, 0b0011, leaving=IDLE), Inherit) == []


def test_nothing_changes_hands_while_something_is_voided(trainer):
    """The heir may have answered before it counts what it has inherited: a stage would seem to lack what it has."""
    trainer.report(5, 0b0011, leaving=IDLE)
    trainer.machine.supply.replays.demand(0b0100)
    assert of_type(trainer.live(0.5), Void)
    assert left(trainer.report(1, 0b0100, inherits=(5, 0b0011))) == []
    for session in (1, 2, 3, 4, 5):
        trainer.says[session]["voided"] = 1
    assert left(trainer.live(1.0)) == [(5, "drained", 0)]


def test_who_leaves_as_well_is_no_heir(trainer):
    trainer.report(1, leaving=DRAINING)
    assert of_type(trainer.report(5, 0b0011, leaving=IDLE), Inherit) == []


def test_who_does_not_know_yet_what_it_has_inherited_is_nobody_elses_heir(trainer):
    """It would give up the one share for the other."""
    trainer.join("w3", stage=0)
    trainer.report(6)
    trainer.report(1, 0b0100)
    trainer.report(5, 0b0011, leaving=IDLE)
    assert [
        record["heir"] for record in written(trainer.report(6, inherits=(5, 0b0011))) if record["event"] == "leave"
    ] == [6]
    view = trainer.machine.roster.view
    trainer.report(6, view=view - 1)
    assert to(trainer.report(1, 0b0100, leaving=IDLE), Inherit) == []
    assert to(trainer.report(6, 0b0011, view=view), Inherit) == ["sim://6"]


def test_what_changes_after_the_order_is_ordered_anew(trainer):
    """The heir would count what is not in its order, or not count what is."""
    trainer.report(5, 0b0011, leaving=IDLE)
    assert of_type(trainer.report(5, 0b0111, leaving=IDLE), Inherit)[0].ledger == b"\x07"


def test_the_heir_is_on_a_machine_that_nobody_leaves():
    """One that was asked to leave, too, and had not said so yet, got what the other had counted, and had to hand over both."""
    trainer = with_machines("lab1:a", "lab1:b")
    trainer.report(1, 0b0100)
    assert to(trainer.report(5, 0b0011, leaving=IDLE), Inherit) == ["sim://1"]


def two_leave_to_one(trainer):
    """Have two workers leave with something counted, and the third of their stage (session 6) be told to take the first's."""
    trainer.join("w3", stage=0)
    trainer.report(6)
    trainer.report(1, 0b0100)
    trainer.report(5, 0b0011, leaving=IDLE)
    trainer.report(1, 0b0100, leaving=IDLE)


def test_one_leaver_after_the_other_hands_over_as_soon_as_the_heir_has_counted(trainer):
    """It took no notice of the next order while it counted, which came again a heartbeat later: each leaver took a second."""
    two_leave_to_one(trainer)
    assert left(trainer.report(6, inherits=(5, 0b0011))) == [(5, "drained", 0)]
    assert to(trainer.report(1, 0b0100, leaving=IDLE), Inherit) == []
    assert to(trainer.report(6), Inherit) == [], "it counts what it has inherited"
    assert to(trainer.report(6, 0b0011), Inherit) == ["sim://6"]


def test_an_heir_that_does_not_count_what_it_has_inherited_is_not_waited_for_without_end(trainer):
    """A Void may have made it worthless."""
    two_leave_to_one(trainer)
    trainer.report(6, inherits=(5, 0b0011))
    trainer.report(1, 0b0100, leaving=IDLE)
    trainer.report(6)
    assert "sim://6" in to(trainer.live(1.5), Inherit)


# -- brokers -----------------------------------------------------------------------------------------


def test_a_broker_that_has_nothing_left_is_let_go(trainer):
    trainer.join("b2", Role.BROKER)
    trainer.report(6)
    assert left(trainer.report(3, leaving=DRAINING)) == []
    assert left(trainer.report(3, leaving=IDLE)) == [(3, "drained", 0)]


def test_a_broker_whose_time_was_up(trainer):
    trainer.report(3, active=0b0111, ahead=0b1000, leaving=DRAINING)
    assert left(trainer.get(stop(3))) == [(3, "asked to leave, 4 microbatches in its queue", 0)]


def test_a_broker_is_sent_to_a_stage_whose_last_leaves(trainer):
    trainer.join("b2", Role.BROKER)
    trainer.report(6, active=0b1)
    assert left(trainer.report(4, leaving=DRAINING)) == [(3, "moved to stage 1, whose last broker leaves", 0)]
    (welcome,) = of_type(trainer.join("b0", Role.BROKER, nonce=2, stage=0), Welcome)
    assert welcome.stage == 1


def test_a_broker_of_stage_0_that_closes_hears_when_nothing_comes_any_more(trainer):
    commands = trainer.get(credit(3, 1000, trainer=1, closes=True))
    assert [send for send in of_type(commands, Attach) if send.is_done] == [attach(0, is_done=True)]
    again = trainer.get(credit(3, 1000, trainer=1, closes=True))
    assert [send for send in of_type(again, Attach) if send.is_done] == []
    assert attach(0, is_done=True) in of_type(trainer.live(2.0), Attach)


def test_nobody_is_sent_anywhere_before_the_run_has_begun():
    trainer = Trainer(workers_per_stage=2)
    trainer.enroll()
    trainer.report(1)
    trainer.join("w2")
    trainer.report(5)
    assert left(trainer.report(2, leaving=DRAINING)) == []
    assert Register not in {type(c) for c in trainer.log}
    assert trainer.machine.roster.staying(Role.WORKER, Stage(1)) == ()
