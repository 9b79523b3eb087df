"""A run without faults, from the first process to the last, and whatever message comes meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.letters import (
    OTHER_RUN,
    SIZE_BYTES,
    ack,
    broker_heartbeat,
    credit,
    evaluated,
    failure,
    heartbeat,
    nack,
    of_type,
    one_of_each,
    prepared,
    pull,
    register,
    stop,
)
from tests.trainer.swarm import BROKERS, FULL, WORKERS, Trainer, records, to
from zswarm.ids import TRAINER, Direction, Link, NackCode, Purpose, RejectCode, Role, RunId
from zswarm.limits import MAX_PARTICIPANTS
from zswarm.machine import Exit, Send, Tick
from zswarm.messages import (
    Ack,
    Attach,
    Commit,
    Fence,
    Forward,
    HeartbeatAck,
    Prepare,
    Pull,
    Reject,
    Restore,
    Stop,
    View,
    Void,
    Welcome,
)
from zswarm.trainer.phases import CLOSING_HEARTBEATS, Phase
from zswarm.trainer.settings import Append, EvaluationDone, Forsake, Interrupted, Read, Sample, Seal, StepDone, Store


@pytest.fixture
def trainer():
    return Trainer()


# -- gathering ---------------------------------------------------------------------------------------


def test_before_it_says_a_word_the_log_says_that_this_generation_has_begun(trainer):
    start, *rest = trainer.join("w0")
    assert isinstance(start, Append)
    assert start.durable
    record = start.record
    assert (record["event"], record["run"], record["generation"]) == ("start", f"{7:016x}", 1)
    assert (record["stages"], record["split"], record["workers"], record["brokers"]) == (2, [1, 1], [1, 1], [1, 1])
    assert rest
    assert records(trainer.do(Tick()) + trainer.gather()).count("start") == 0, "once"


def test_register_is_answered_by_welcome_each_time(trainer):
    trainer.do(Tick())
    first, again = trainer.join("w0"), trainer.join("w0")
    (one,), (two,) = of_type(first, Welcome), of_type(again, Welcome)
    assert one == two
    assert (one.yours, one.stage, one.num_stages, one.unit_bytes, one.size_bytes) == (1, 0, 2, SIZE_BYTES, 2)
    assert (records(first), records(again)) == (["join"], [])
    assert [send.frames for send in first if isinstance(send, Send) and isinstance(send.message, Welcome)] == [(b"{}",)]


def test_a_session_is_in_the_log_before_its_process_knows_it(trainer):
    trainer.do(Tick())
    append, *sends = trainer.join("b0", Role.BROKER, nonce=5)
    assert append.durable
    assert append.record == {
        "event": "join",
        "node": "b0",
        "role": "broker",
        "session": 1,
        "stage": 0,
        "boot_nonce": 5,
        "addresses": ["sim://b0/a", "sim://b0/b"],
    }
    assert isinstance(sends[0].message, Welcome)


def test_everybody_learns_of_a_newcomer(trainer):
    trainer.join("w0")
    views = [c for c in trainer.join("b0", Role.BROKER) if isinstance(c, Send) and isinstance(c.message, View)]
    assert [(view.peer, view.message.view) for view in views] == [("sim://w0", 3), ("sim://b0", 3)]
    assert [member.node for member in views[0].frames] == ["w0", "b0"]


def test_an_old_view_is_answered_by_the_newest(trainer):
    trainer.join("w0")
    (old,) = of_type(trainer.report(1, view=1), View)
    assert old.view == 2
    assert of_type(trainer.report(1, view=2), View) == []


def test_the_run_begins_when_everybody_is_ready(trainer):
    for node, role in (("w0", Role.WORKER), ("w1", Role.WORKER), ("b0", Role.BROKER), ("b1", Role.BROKER)):
        trainer.join(node, role)
    trainer.report(1)
    commands = trainer.report(2, ready=False)
    assert (trainer.machine.phase, of_type(commands, Sample)) == (Phase.GATHERING, [])
    commands = trainer.report(2)
    assert trainer.machine.phase is Phase.TRAINING
    assert [(s.step, s.microbatch) for s in of_type(commands, Sample)] == [(0, index) for index in range(4)]


@pytest.mark.parametrize(
    "message",
    [
        register("w9", run=OTHER_RUN),
        replace(register("w9"), addresses=register("b9", role=Role.BROKER).addresses),
        replace(register("b9", role=Role.BROKER), addresses=register("w9").addresses),
    ],
    ids=["another run", "a worker with two addresses", "a broker with one"],
)
def test_who_cannot_take_part(trainer, message):
    (reject,) = of_type(trainer.get(message, peer="sim://x"), Reject)
    assert (reject.code, trainer.machine.roster.records) == (RejectCode.WRONG_RUN, {})


def test_a_full_run_says_so(trainer):
    for index in range(2 * MAX_PARTICIPANTS):
        trainer.machine.roster.register(register(f"w{index}"), "sim://w", 0.0)
    (reject,) = of_type(trainer.join("one too many"), Reject)
    assert reject.code is RejectCode.FULL
    assert of_type(trainer.join("w0"), Welcome), "the known life may ask again"
    assert of_type(trainer.join("w0", nonce=2), Welcome), "and a new one takes its place"


def test_whoever_comes_later_is_told_where_its_state_is(trainer):
    """Processes join at any time; what they count, and when, follows from their reports alone."""
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    (welcome,) = of_type(trainer.join("w9"), Welcome)
    assert (welcome.yours, welcome.stage, welcome.step) == (5, 0, 1)
    trainer.report(5, step=0, ready=False)
    (restore,) = of_type(trainer.live(1.0), Restore)
    assert (restore.donor, restore.address, restore.step) == (1, "sim://w0/a", 1)
    assert len(of_type(trainer.live(2.0), Restore)) == 2, "until it says that it is ready"
    assert of_type(trainer.report(5, step=1), Restore) == []
    assert len(to(trainer.count(1), Prepare)) == 3


# -- training ----------------------------------------------------------------------------------------


def test_microbatches_go_out_within_the_credit(trainer):
    trainer.gather()
    (message,) = of_type(trainer.get(credit(3, SIZE_BYTES)), Forward)
    assert (message.microbatch, message.route, message.session) == (0, (3,), TRAINER)
    assert (message.attempt, message.mask) == (0, b"\x03")
    sends = trainer.get(ack(3, 0, Direction.FORWARD, room=credit(3, 2 * SIZE_BYTES, received_bytes=SIZE_BYTES).room))
    assert [message.microbatch for message in of_type(sends, Forward)] == [1]
    trainer.get(nack(3, 1, NackCode.BUSY))
    assert trainer.machine.outbox.num_waiting == 2, "another broker may not have it: this one may, from another copy"


def test_unacknowledged_microbatches_are_repeated(trainer):
    trainer.gather()
    (first,) = of_type(trainer.get(credit(3, SIZE_BYTES)), Forward)
    assert of_type(trainer.tick(0.5), Forward) == []
    assert trainer.machine.next_deadline_s() == 1.0
    assert of_type(trainer.tick(1.0), Forward) == [first]


def test_a_counted_microbatch_makes_room_for_the_next(trainer):
    trainer.gather()
    assert [(s.step, s.microbatch) for s in of_type(trainer.report(1, 0b0101), Sample)] == [(1, 0), (1, 1)]
    assert of_type(trainer.report(2, 0b1111), Sample) == [], "only stage 0 is the last to count"


def test_a_step_is_committed_once_and_told_in_order(trainer):
    trainer.gather()
    commands = trainer.commit(0)
    (record,) = [c for c in commands if isinstance(c, Append)]
    (done,) = of_type(commands, StepDone)
    kinds = [type(getattr(c, "message", c)) for c in commands]
    assert kinds.index(Append) < kinds.index(Commit) < kinds.index(StepDone)
    assert (record.record["event"], record.durable) == ("commit", True)
    assert (done.step, done.loss, done.lr, done.workers) == (0, 0.5, pytest.approx(0.1), (1, 1))
    for session in WORKERS:
        assert of_type(trainer.report(session, FULL), StepDone) == []


def test_outputs_of_a_committed_step_are_dropped(trainer):
    trainer.gather()
    trainer.report(1, 0b0011)
    trainer.commit(0)
    assert {key[1] for _, key in trainer.machine.outbox.pending()} == {1}


def test_the_first_step_waits_for_the_evaluation_of_its_parameters():
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    assert of_type(trainer.commit(0), StepDone) == []
    commands = trainer.get(evaluated(2, 0, loss_sum=3.0))
    assert of_type(commands, EvaluationDone) == [EvaluationDone(step=0, loss=3.0)]
    assert records(commands) == ["evaluation", "commit"]
    commands = trainer.get(evaluated(2, 0, loss_sum=3.0))
    assert [type(c.message) for c in commands] == [Ack], "it came again"


@pytest.mark.parametrize("of", [{"branch": 1}, {"step": 1}, {"purpose": Purpose.TRAIN}])
def test_a_loss_of_other_parameters_is_none_of_these(of):
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    assert of_type(trainer.get(evaluated(2, 0, **of)), EvaluationDone) == []
    assert of_type(trainer.get(evaluated(2, 0)), EvaluationDone) == [EvaluationDone(step=0, loss=1.0)]


def test_an_evaluation_that_brings_nothing_is_begun_again():
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    samples = of_type(trainer.live(10.0), Sample)
    assert [sample.purpose for sample in samples if sample.purpose is Purpose.EVALUATE] == [Purpose.EVALUATE]


def test_each_heartbeat_asks_again_what_is_open_and_speaks_twice(trainer):
    """An Attach tells the brokers of stage 0 where the trainer is; what it says in between shows a lost connection."""
    trainer.gather()
    trainer.report(1, FULL)
    for now_s in (1.0, 2.0, 3.0):
        halfway = [type(c.message) for c in trainer.tick(now_s - 0.5)] + [type(c.message) for c in trainer.tick(now_s)]
        assert (halfway.count(Prepare), halfway.count(Attach)) == (1, 1)
        assert halfway.count(HeartbeatAck) == 2 * len(trainer.machine.roster.records)


# -- checkpoints -------------------------------------------------------------------------------------


def test_a_checkpoint_is_taken_while_training_goes_on():
    trainer = Trainer(checkpoint_every=1)
    trainer.gather()
    commands = trainer.commit(0)
    assert [message.snapshot for message in of_type(commands, Commit)] == [True, True]
    trainer.apply(1)
    assert [(message.layer, message.step) for message in of_type(trainer.live(1.0), Pull)] == [(0, 1), (1, 1)]
    commands = trainer.commit(1)
    assert [message.snapshot for message in of_type(commands, Commit)] == [False, False], "one at a time"
    trainer.apply(2)
    assert len(of_type(trainer.give_state(1), Store)) == 1
    assert of_type(trainer.log, Seal) == [Seal(branch=0, step=1)]
    (append,) = [command for command in trainer.seal(1) if isinstance(command, Append)]
    assert (append.record, append.durable) == ({"event": "checkpoint", "branch": 0, "step": 1}, True)
    trainer.commit(2)
    assert [message.snapshot for message in of_type(trainer.log, Commit)][-2:] == [False, False], "the last is no copy"


def test_a_checkpoint_without_its_worker_is_forsaken():
    trainer = Trainer(checkpoint_every=1)
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    commands = trainer.dies(2)
    assert of_type(commands, Forsake) == [Forsake(branch=0, step=1)]
    assert "checkpoint" in records(commands)
    assert trainer.machine.archive.newest is None


# -- the end -----------------------------------------------------------------------------------------


def test_a_whole_run(trainer):
    trainer.gather()
    trainer.train()
    assert trainer.machine.phase is Phase.COLLECTING
    commands = trainer.collect()
    assert {(message.layer, message.part, message.step) for message in of_type(trainer.log, Pull)} == {
        (layer, part, 3) for layer in (0, 1) for part in (0, 1)
    }
    assert len(of_type(trainer.log, Store)) == 4
    assert of_type(trainer.log, Seal) == [Seal(branch=0, step=3)]
    assert len(of_type(commands, Stop)) == 4
    assert of_type(commands, Exit) == []
    assert records(trainer.log) == ["start"] + ["join"] * 4 + ["commit"] * 3 + ["checkpoint", "finish"]
    assert [done.step for done in of_type(trainer.log, StepDone)] == [0, 1, 2]
    for session in (1, 2, 3):
        assert of_type(trainer.get(stop(session)), Exit) == []
    assert of_type(trainer.get(stop(4)), Exit) == [Exit(code=0, text="all steps are done")]


def test_a_model_that_cannot_be_written_is_a_failure(trainer):
    trainer.gather()
    trainer.train()
    trainer.live(1.0)
    trainer.give_state(3)
    commands = trainer.seal(3, problem="no space left")
    assert records(commands) == ["finish"]
    assert trainer.machine._exit.code == 1
    assert "no space left" in trainer.machine._exit.text


def test_the_last_state_is_fetched_from_whoever_is_left(trainer):
    trainer.gather()
    trainer.join("w2")
    trainer.report(5)
    for step in range(3):
        trainer.count(step)
        for session, counted in ((1, FULL), (5, 0), (2, FULL)):
            trainer.prepare(session, counted, step=step)
        trainer.report(5, step=step + 1)
        trainer.apply(step + 1)
    trainer.live(1.0)
    assert "sim://w0/a" in to(trainer.log, Pull)
    trainer.get(stop(1))
    trainer.says.pop(1)
    trainer.live(1.0)
    assert "sim://w2/a" in to(trainer.log, Pull)
    trainer.give_state(3, (5, 2))
    trainer.seal(3)
    assert trainer.machine._exit == Exit(code=0, text="all steps are done")


def test_parameters_are_fetched_only_after_their_evaluation():
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    trainer.get(evaluated(2, 0))
    trainer.train()
    assert of_type(trainer.live(2.0), Pull) == []
    assert len(of_type(trainer.get(evaluated(2, 0, step=3)), Pull)) == 2


def test_stop_is_repeated_until_everybody_has_left_or_time_is_up(trainer):
    trainer.gather()
    trainer.do(Interrupted())
    trainer.get(stop(1))
    commands = trainer.tick(0.5)
    assert len(of_type(commands, Stop)) == 3
    assert of_type(commands, Exit) == []
    assert of_type(trainer.report(2), Stop), "and to whoever reports"
    assert of_type(trainer.tick(CLOSING_HEARTBEATS), Exit) == [Exit(code=130, text="interrupted")]


def test_an_interruption_before_anybody_came_ends_at_once(trainer):
    commands = trainer.do(Interrupted())
    assert (records(commands), of_type(commands, Exit)[0].code) == (["start", "finish"], 130)


def test_the_end_comes_once(trainer):
    trainer.gather()
    trainer.do(Interrupted())
    assert records(trainer.do(Interrupted())) == []
    assert records(trainer.get(failure(1, "late"))) == []
    assert records(trainer.seal(3, problem="late")) == []
    assert records(trainer.tick(0.9)) == [], "nobody is given up any more"
    assert trainer.machine._exit.code == 130


def test_a_closing_trainer_does_not_wake_up_for_outputs_that_it_no_longer_repeats(trainer):
    """It had the deadline of an unacknowledged Forward, did nothing about it, and spun until it left."""
    trainer.gather()
    trainer.get(credit(3, SIZE_BYTES))
    assert trainer.machine.outbox.next_deadline_s() is not None
    trainer.now_s = 0.1
    trainer.do(Interrupted())
    num_ticks = 0
    while not of_type(trainer.do(Tick()), Exit):
        later = trainer.machine.next_deadline_s()
        assert later > trainer.now_s
        trainer.now_s, num_ticks = later, num_ticks + 1
    assert 1 <= num_ticks < 20


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.CLOSING])
def test_newcomers_are_welcome_until_the_end(trainer, phase):
    """While the last state is being fetched a process may still be needed, so that somebody gives it."""
    trainer.gather()
    trainer.train()
    if phase is Phase.CLOSING:
        trainer.collect()
    assert trainer.machine.phase is phase
    kind = Reject if phase is Phase.CLOSING else Welcome
    assert of_type(trainer.join("b9", Role.BROKER), kind)


# -- any message in any state ------------------------------------------------------------------------

EVERYTHING = [*one_of_each(1, step=0), *one_of_each(3, step=7), *one_of_each(99, step=0), *one_of_each(TRAINER, step=0)]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("message", EVERYTHING, ids=lambda m: f"{type(m).__name__} of {m.session}")
def test_any_message_is_harmless(message, phase):
    """Twice, in every phase: nothing is committed, nobody is given up, and the run still ends well."""
    trainer = Trainer()
    trainer.enroll()
    if phase is not Phase.GATHERING:
        trainer.gather()
    if phase in (Phase.COLLECTING, Phase.CLOSING):
        trainer.train()
    if phase is Phase.CLOSING:
        trainer.collect()
    before = records(trainer.log)
    trainer.num_reports = max(trainer.num_reports, 1)
    for _ in range(2):
        trainer.get(message, peer="sim://stranger", frames=("x",))
    assert [event for event in records(trainer.log)[len(before) :] if event != "join"] == []
    if phase is Phase.GATHERING:
        trainer.gather()
    if phase in (Phase.GATHERING, Phase.TRAINING):
        trainer.train()
    if phase is not Phase.CLOSING:
        trainer.collect()
    assert trainer.machine._exit == Exit(code=0, text="all steps are done")


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_loss_is_acknowledged_whatever_it_is(trainer, purpose):
    trainer.gather()
    commands = trainer.get(evaluated(2, 5, purpose=purpose), peer=Link(b"w"))
    (send,) = [c for c in commands if isinstance(c, Send)]
    assert (send.peer, type(send.message), send.message.direction) == (Link(b"w"), Ack, Direction.LOSS)


def test_messages_of_another_run_are_dropped(trainer):
    trainer.gather()
    assert trainer.get(stop(1, run=OTHER_RUN)) == []
    assert trainer.get(stop(99, run=OTHER_RUN)) == []
    assert trainer.machine.phase is Phase.TRAINING
    assert set(trainer.machine.roster.records) == {*WORKERS, *BROKERS}


def test_a_swarm_in_which_nothing_happens_costs_nothing_but_heartbeats(trainer):
    """Neither is anything void nor anybody told to get what it has."""
    trainer.gather()
    trainer.report(3, active=FULL)
    commands = trainer.live(20.0)
    assert records(commands) == []
    assert [message for kind in (Void, Restore, Fence, View, Read) for message in of_type(commands, kind)] == []
    assert trainer.get(pull(0, session=1)) == [], "no checkpoint has this state"


def test_whoever_takes_part_in_another_run_at_this_address_is_told_that_it_is_over():
    """The run before this one ended with its trainer's machine, and its workers wait for it."""
    trainer = Trainer()
    trainer.gather()
    for message in (heartbeat(1, 1, generation=3), broker_heartbeat(3, 1)):
        (send,) = trainer.get(replace(message, run=RunId(99)), peer="sim://old")
        assert isinstance(send, Send)
        assert (send.peer, type(send.message), send.message.run) == ("sim://old", Stop, 99)
        assert send.message.generation == message.generation
    assert trainer.get(replace(prepared(1, 1), run=RunId(99))) == []
