"""The trainer dies and starts again: the log says what is certain, the swarm says the rest."""

from __future__ import annotations

import pytest

from tests.letters import credit, evaluated, fence, heartbeat, of_type, pull, stop
from tests.trainer.swarm import BROKERS, FULL, WORKERS, Trainer, records, to
from zswarm import limits
from zswarm.ids import Role, StatePart
from zswarm.machine import Exit, Tick
from zswarm.messages import (
    Commit,
    Fence,
    Forward,
    HeartbeatAck,
    Prepare,
    Restore,
    View,
    Void,
    Welcome,
)
from zswarm.trainer.phases import Phase
from zswarm.trainer.replays import first_attempt
from zswarm.trainer.settings import Append, Read, Sample

EVERYBODY = (*WORKERS, *BROKERS)


@pytest.fixture
def trainer():
    """The first life of a trainer, which has taken step 0 of three."""
    trainer = Trainer()
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    return trainer


def everybody_reports(trainer, **of) -> list:
    """Let all four processes speak to the new generation for the first time, and then with its view."""
    commands = []
    for generation in (1, 2):
        for session in EVERYBODY:
            commands += trainer.report(session, generation=generation, **of)
    return commands


def test_it_writes_its_generation_down_before_it_speaks(trainer):
    after = trainer.again()
    start, *rest = after.do(Tick())
    assert (start.record["event"], start.record["generation"], start.durable) == ("start", 2, True)
    assert [command for command in rest if isinstance(command, Append)] == []


def test_a_checkpoint_that_was_complete_before_the_log_said_so_is_in_the_log_now(trainer):
    """A rollback goes to it, and whoever reads the log has to know that it can."""
    after = trainer.again(checkpoint=(0, 1))
    start, append, *rest = after.do(Tick())
    assert start.record["event"] == "start"
    assert (append.record, append.durable) == ({"event": "checkpoint", "branch": 0, "step": 1}, True)
    assert records(rest) == []
    after.log = [*trainer.log, *after.log]
    assert records(after.again().do(Tick())) == ["start"], "once"


def test_whoever_is_in_the_log_is_told_at_once_and_heard_from_then_on(trainer):
    """The trainer knows where they listen, and not over which connection they speak: a heartbeat brings it."""
    after = trainer.again()
    _, *told = after.do(Tick())
    assert sorted(to(told, View)) == ["sim://b0/a", "sim://b1/a", "sim://w0/a", "sim://w1/a"]
    commands = after.tick(0.5) + after.tick(1.0)
    assert to(commands, HeartbeatAck) == []
    assert to(after.report(1) + after.tick(1.5), HeartbeatAck) == ["sim://1"]


def test_sessions_go_on_with_their_heartbeats(trainer):
    after = trainer.again()
    everybody_reports(after, step=1)
    roster = after.machine.roster
    assert set(roster.records) == set(EVERYBODY)
    assert {record.peer for record in roster.records.values()} == {f"sim://{session}" for session in EVERYBODY}
    assert not any(record.is_silent for record in roster.records.values())
    assert of_type(after.log, Fence) == []
    assert after.machine.phase is Phase.TRAINING
    assert after.machine.committer.version == (0, 1)


def test_a_view_of_an_older_generation_counts_as_none(trainer):
    """Its number may be larger than ours: the process would never learn of the new generation, nor be told its view."""
    after = trainer.again()
    after.do(Tick())
    (view,) = of_type(after.report(1, step=1, generation=1, view=1000), View)
    assert (view.generation, view.view) == (2, after.machine.roster.view)
    assert after.machine.roster.records[1].reported_view == 0
    assert of_type(after.report(1, step=1, generation=2, view=view.view), View) == []
    assert after.machine.roster.records[1].reported_view == view.view


def test_newcomers_get_sessions_above_those_of_the_log(trainer):
    trainer.join("w9")
    trainer.get(stop(5))
    after = trainer.again()
    assert after.get(heartbeat(5, 1))[-1].message.fenced == 5, "it has left"
    assert [message.yours for message in of_type(after.join("w8"), Welcome)] == [6]


def test_a_life_that_is_known_gets_its_session_again(trainer):
    """Its Register or its Welcome was lost with the trainer."""
    after = trainer.again()
    assert [message.yours for message in of_type(after.join("w0"), Welcome)] == [1]
    assert records(after.join("w0")) == []
    (view,) = of_type(after.report(1, step=0, ready=False, view=0), View)
    assert view.generation == 2


def test_a_new_life_ends_the_one_of_the_log(trainer):
    after = trainer.again()
    after.do(Tick())
    commands = after.join("w0", nonce=2, stage=0)
    assert records(commands) == ["leave", "join"]
    assert to(commands, Fence) == [], "where it was, nobody listens"
    assert after.report(1)[-1].message == fence(1, generation=2)


def test_rounds_and_attempts_are_new(trainer):
    before = trainer.rounds()[1]
    after = trainer.again()
    everybody_reports(after, step=1)
    after.count(1)
    assert after.rounds()[1] > before
    assert after.rounds()[1] >> 32 == 2
    assert of_type(after.log, Sample) == [], "steps 1 and 2 pass for admitted"
    (commit,) = [c.record for c in after.commit(1) if isinstance(c, Append)]
    assert {stage["round"] >> 32 for stage in commit["stages"]} == {2}


def test_the_run_goes_on_to_its_end(trainer):
    after = trainer.again()
    everybody_reports(after, step=1)
    after.train(1)
    after.collect()
    assert records(after.log) == ["start", "commit", "commit", "checkpoint", "finish"]
    assert after.machine._exit == Exit(code=0, text="all steps are done")


def test_only_what_nobody_reports_is_admitted_again(trainer):
    after = trainer.again()
    everybody_reports(after, step=1)
    after.report(1, 0b0011, step=1, pending=0b0100)
    after.report(2, 0b0001, step=1)
    after.report(4, step=1, active=0b0010)
    commands = after.live(1.0)
    wave = of_type(commands, Void)[0]
    assert (wave.ledger, wave.attempt) == (b"\x08", first_attempt(2) + 1), "without waiting for two heartbeats"
    for session in EVERYBODY:
        commands = after.report(session, **(after.says[session] | {"voided": wave.attempt}))
    assert [(sample.step, sample.microbatch) for sample in of_type(commands, Sample)] == [(1, 3)]
    (forward,) = of_type(after.get(credit(3, 9 * 100, trainer=2)), Forward)
    assert (forward.microbatch, forward.attempt, forward.mask) == (3, wave.attempt, b"\x03")


def test_nothing_is_admitted_again_before_everybody_has_spoken(trainer):
    after = trainer.again()
    for session in (1, 2, 3):
        after.report(session, step=1)
    assert of_type(after.live(3.0), Void) == []
    commands = after.live(1.0)
    assert "leave" in records(commands), "it is silent, and given up as such"
    assert of_type(after.live(1.0), Void) != []


def test_a_step_of_which_nothing_is_left_is_computed_again(trainer):
    """The brokers and workers have died with the trainer, except for the parameters of the workers."""
    after = trainer.again()
    everybody_reports(after, step=1)
    wave = of_type(after.live(1.0), Void)[0]
    assert wave.ledger == b"\x0f"


def test_a_commit_that_was_written_and_not_told_is_told_by_the_next_life(trainer):
    """Whoever holds the result of that round applies it; nobody is sent for its state."""
    commands = trainer.count(1)
    number = trainer.rounds()
    trainer.prepare(1, step=1)
    commands = trainer.prepare(2, step=1)
    position = next(i for i, c in enumerate(trainer.log) if c is commands[0])
    assert records([trainer.log[position]]) == ["commit"]
    after = trainer.again(num_commands=position + 1)
    assert after.machine.committer.version == (0, 2)
    for session in WORKERS:
        (message,) = of_type(after.report(session, FULL, step=1, prepared=number[session], generation=1), Commit)
        assert (message.step, message.round, message.generation) == (1, number[session], 2)
    for session in BROKERS:
        after.report(session, step=1)
    assert of_type(after.live(2.0), Restore) == []
    assert after.apply(2) is not None
    after.train(2)
    after.collect()
    assert after.machine._exit == Exit(code=0, text="all steps are done")


def test_a_commit_that_was_not_written_never_was(trainer):
    trainer.count(1)
    old = trainer.rounds()
    trainer.prepare(1, step=1)
    commands = trainer.prepare(2, step=1)
    position = next(i for i, c in enumerate(trainer.log) if c is commands[0])
    after = trainer.again(num_commands=position)
    assert after.machine.committer.version == (0, 1)
    everybody_reports(after, step=1)
    commands = after.count(1, prepared=old[1])
    assert of_type(after.log, Commit) == []
    assert len(to(commands, Prepare)) == 2, "the round begins anew"
    assert records(after.commit(1)) == ["commit"]


def test_a_worker_that_has_joined_and_was_not_ready_is_told_where_its_state_is(trainer):
    trainer.join("w9", stage=0)
    after = trainer.again()
    everybody_reports(after, step=1)
    after.report(5, step=0, ready=False, generation=1)
    assert "sim://5" in to(after.live(1.0), Restore)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_without_any_worker_left_the_run_begins_with_a_rollback(has_checkpoint):
    trainer = Trainer(checkpoint_every=1)
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    trainer.live(1.0)
    if has_checkpoint:
        trainer.give_state(1)
        trainer.seal(1)
    trainer.commit(1)
    for session in EVERYBODY:
        trainer.get(stop(session))
    after = trainer.again()
    commands = after.do(Tick())
    step = 1 if has_checkpoint else 0
    assert records(commands) == ["start", "rollback"]
    assert after.machine.committer.version == (1, step)
    for index in range(2):
        after.join(f"w{index}")
        after.join(f"b{index}", Role.BROKER)
    for session in (5, 7):
        after.report(session, step=0, ready=not step)
    orders = {(message.donor, message.branch, message.step) for message in of_type(after.live(1.0), Restore)}
    assert orders == {(0, 1, step)}


def test_a_rollback_that_is_in_the_log_is_not_done_again():
    trainer = Trainer()
    trainer.gather()
    trainer.commit(0)
    for session in WORKERS:
        trainer.get(stop(session))
    for session in BROKERS:
        trainer.report(session)
    trainer.says = {session: {} for session in BROKERS}
    trainer.live(limits.EMPTY_STAGE_HEARTBEATS + 2)
    assert trainer.machine.committer.version == (1, 0)
    after = trainer.again()
    assert after.machine.committer.version == (1, 0)
    assert records(after.do(Tick())) == ["start"]
    assert after.machine.phase is Phase.TRAINING, "a run that has gone back to its beginning has begun"


def test_before_the_first_commit_the_run_gathers_as_it_did():
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    after = trainer.again(num_held_out=1)
    after.do(Tick())
    assert after.machine.phase is Phase.GATHERING
    commands = everybody_reports(after)
    assert after.machine.phase is Phase.TRAINING
    assert [sample.purpose.name for sample in of_type(commands, Sample)] == ["EVALUATE"]
    after.get(evaluated(2, 0))
    assert "commit" in records(after.commit(0))


def test_a_held_out_loss_that_is_in_the_log_is_not_asked_for_again():
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    trainer.get(evaluated(2, 0, loss_sum=3.0))
    after = trainer.again(num_held_out=1)
    assert of_type(everybody_reports(after), Sample) == []
    assert "commit" in records(after.commit(0))


def test_after_the_last_commit_only_the_model_is_missing(trainer):
    for step in (1, 2):
        trainer.commit(step)
        trainer.apply(step + 1)
    after = trainer.again()
    after.do(Tick())
    assert after.machine.phase is Phase.COLLECTING
    for session in WORKERS:
        after.report(session, step=3, generation=1)
    for session in BROKERS:
        after.report(session, step=2, generation=1)
    after.collect()
    assert records(after.log) == ["start", "checkpoint", "finish"]


def test_with_the_last_checkpoint_in_the_log_the_run_is_over(trainer):
    for step in (1, 2):
        trainer.commit(step)
        trainer.apply(step + 1)
    trainer.live(1.0)
    trainer.give_state(3)
    trainer.seal(3)
    end = next(i for i, c in enumerate(trainer.log) if isinstance(c, Append) and c.record["event"] == "finish")
    after = trainer.again(num_commands=end)
    assert records(after.do(Tick())) == ["start", "finish"]
    assert after.machine._exit == Exit(code=0, text="all steps are done")


def test_the_trainer_may_die_more_than_once(trainer):
    second = trainer.again()
    everybody_reports(second, step=1)
    second.commit(1)
    before = second.rounds()[1]
    records_ = [command for command in trainer.log if isinstance(command, Append)]
    second.log = records_ + second.log
    third = second.again()
    assert (third.settings.generation, third.machine.committer.version) == (3, (0, 2))
    for session in EVERYBODY:
        third.report(session, step=2, generation=2)
        third.report(session, step=2)
    third.count(2)
    assert third.rounds()[1] > before
    assert third.settings.first_session == 5


def test_a_checkpoint_gives_its_state_in_the_next_life_too():
    trainer = Trainer(checkpoint_every=1)
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    trainer.live(1.0)
    trainer.give_state(1)
    trainer.seal(1)
    after = trainer.again()
    assert after.machine.archive.newest == (0, 1)
    everybody_reports(after, step=1)
    after.report(2, step=1, ready=False)
    order = next(message for message in of_type(after.live(1.0), Restore))
    assert (order.donor, order.step) == (0, 1)
    message = pull(1, session=2, step=1, part=StatePart.OPTIMIZER)
    assert after.get(message) == [Read(peer="sim://2", pull=message, checkpoint=(0, 1))]
