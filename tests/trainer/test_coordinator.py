from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    load,
    nack,
    of_type,
    one_of_each,
    prepared,
    register,
    state,
    stop,
)
from tests.trainer.settings import settings
from zswarm.ids import TRAINER, Direction, Link, NackCode, Purpose, RejectCode, Role
from zswarm.limits import MAX_PARTICIPANTS
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.messages import (
    Ack,
    Attach,
    Commit,
    Forward,
    HeartbeatAck,
    Prepare,
    Pull,
    Reject,
    Stop,
    View,
    Welcome,
)
from zswarm.trainer.coordinator import CLOSING_HEARTBEATS, Coordinator, Phase
from zswarm.trainer.settings import Append, EvaluationDone, Interrupted, Sample, Sampled, StepDone, Store

WORKERS = (1, 2)
BROKERS = (3, 4)
"""Of stages 0 and 1; sessions in the order of registering."""
FULL = 0b1111


class Fixture:
    """A trainer, its clock, and the processes of `settings()`."""

    def __init__(self, **changes) -> None:
        self.now_s = 0.0
        self.machine = Coordinator(settings(**changes), random=lambda: 0.0)
        self.reports = 0
        self.log: list[Any] = []

    def do(self, event) -> list[Any]:
        commands = self.machine.handle(event, self.now_s)
        self.log += commands
        for sample in of_type(commands, Sample):
            drawn = Sampled(purpose=sample.purpose, step=sample.step, microbatch=sample.microbatch, load=load("x"))
            commands = commands + self.do(drawn)
        return commands

    def get(self, message, peer: str | None = None, frames=()):
        return self.do(Received(peer=peer or f"sim://{message.session}", message=message, frames=frames))

    def tick(self, now_s):
        self.now_s = now_s
        return self.do(Tick())

    def join(self, node, role=Role.WORKER, **of):
        return self.get(register(node, role=role, **of), peer=f"sim://{node}")

    def gather(self) -> list[Any]:
        """Let everybody register and be ready; returns what follows from the last report."""
        for index in range(2):
            self.join(f"w{index}")
        for index in range(2):
            self.join(f"b{index}", Role.BROKER)
        return [command for session in WORKERS for command in self.report(session)]

    def report(self, session, counted=0, *, step=0, **of):
        self.reports += 1
        return self.get(heartbeat(session, self.reports, step=step, counted=counted, **of))

    def commit(self, step) -> list[Any]:
        """Let every stage count and prepare everything; returns what follows from the last Prepared."""
        for session in WORKERS:
            self.report(session, FULL, step=step)
        commands: list[Any] = []
        for stage, session in enumerate(WORKERS):
            round_ = self.machine.committer._rounds[stage].round
            commands = self.get(prepared(session, round_, counted=FULL, step=step, loss_sum=2.0))
        return commands

    def train(self) -> list[Any]:
        """Take all steps; returns what follows from the last worker's report of the last step."""
        steps = self.machine._settings.steps
        for step in range(steps):
            self.commit(step)
            for session in WORKERS:
                commands = self.report(session, step=step + 1)
        return commands

    def collect(self) -> list[Any]:
        """Let the first worker of each stage send its layer, which ends the run."""
        self.tick(self.now_s + 1.0)
        self.get(state(1, 0, 0, 10, 10, step=3), frames=("layer 0",))
        return self.get(state(2, 1, 0, 10, 10, step=3), frames=("layer 1",))


def records(commands) -> list[str]:
    return [command.record["event"] for command in commands if isinstance(command, Append)]


@pytest.fixture
def trainer():
    return Fixture()


# -- gathering ---------------------------------------------------------------------------------------


def test_register_is_answered_by_welcome_each_time(trainer):
    first, again = trainer.join("w0"), trainer.join("w0")
    (one,), (two,) = of_type(first, Welcome), of_type(again, Welcome)
    assert one == two
    assert (one.yours, one.stage, one.num_stages, one.unit_bytes, one.size_bytes) == (1, 0, 2, SIZE_BYTES, 2)
    assert (records(first), records(again)) == (["join"], [])
    assert first[0].frames == (b"{}",)


def test_everybody_learns_of_a_newcomer(trainer):
    trainer.join("w0")
    views = [c for c in trainer.join("b0", Role.BROKER) if isinstance(c, Send) and isinstance(c.message, View)]
    assert [(view.peer, view.message.view) for view in views] == [("sim://w0", 3), ("sim://b0", 3)]
    assert [member.node for member in views[0].frames] == ["w0", "b0"]


def test_an_old_view_is_answered_by_the_newest(trainer):
    trainer.join("w0")
    (old,) = of_type(trainer.report(1, view=1), View)
    assert old.view == 2
    (new,) = of_type(trainer.report(1, view=2), HeartbeatAck)
    assert new.view == 2


def test_the_run_begins_when_everybody_is_ready(trainer):
    for node, role in (("w0", Role.WORKER), ("w1", Role.WORKER), ("b0", Role.BROKER), ("b1", Role.BROKER)):
        trainer.join(node, role)
    trainer.report(1)
    commands = trainer.report(2, ready=False)
    assert (trainer.machine.phase, records(commands)) == (Phase.GATHERING, [])
    commands = trainer.report(2)
    (start,) = [c for c in commands if isinstance(c, Append)]
    assert start.durable
    assert (start.record["event"], start.record["workers"], start.record["brokers"]) == ("start", [1, 1], [1, 1])
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


def test_workers_join_until_the_first_commit_brokers_always(trainer):
    trainer.gather()
    trainer.commit(0)
    (reject,) = of_type(trainer.join("w9"), Reject)
    assert (reject.code, "step 1" in reject.text) == (RejectCode.NOT_NEEDED, True)
    assert of_type(trainer.join("b9", Role.BROKER), Welcome)


def test_a_new_life_of_a_known_worker_is_a_newcomer(trainer):
    """It was once let in by its name, with fresh parameters in the middle of the run."""
    trainer.gather()
    trainer.commit(0)
    assert of_type(trainer.join("w0", nonce=2), Reject)
    assert of_type(trainer.join("w0"), Welcome), "the known life may ask again"


def test_a_worker_that_was_not_ready_for_the_first_commit_is_sent_away(trainer):
    trainer.gather()
    trainer.join("w9")
    trainer.report(5, ready=False)
    commands = trainer.commit(0)
    assert "leave" in records(commands)
    assert [c.peer for c in commands if isinstance(c, Send) and isinstance(c.message, Reject)] == ["sim://5"]
    views = [c for c in commands if isinstance(c, Send) and isinstance(c.message, View)]
    assert all([member.node for member in view.frames] == ["w0", "w1", "b0", "b1"] for view in views)
    assert len(views) == 4
    assert of_type(trainer.report(5, FULL, step=1), Reject)
    assert of_type(trainer.join("w9"), Reject)


# -- training ----------------------------------------------------------------------------------------


def test_microbatches_go_out_within_the_credit(trainer):
    trainer.gather()
    (message,) = of_type(trainer.get(credit(3, SIZE_BYTES)), Forward)
    assert (message.microbatch, message.route, message.session) == (0, (3,), TRAINER)
    sends = trainer.get(ack(3, 0, Direction.FORWARD, room=credit(3, 2 * SIZE_BYTES).room))
    assert [message.microbatch for message in of_type(sends, Forward)] == [1]
    trainer.get(nack(3, 1, NackCode.BUSY))
    assert trainer.machine.outbox.num_waiting == 3


def test_unacknowledged_microbatches_are_repeated(trainer):
    trainer.gather()
    (first,) = of_type(trainer.get(credit(3, SIZE_BYTES)), Forward)
    assert trainer.machine.next_deadline_s() == 1.0
    commands = trainer.tick(1.0)
    assert of_type(commands, Forward) == [first]
    assert len(of_type(commands, Attach)) == 1


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
    trainer = Fixture(num_held_out=1)
    trainer.gather()
    assert of_type(trainer.commit(0), StepDone) == []
    commands = trainer.get(evaluated(2, 0, loss_sum=3.0))
    assert of_type(commands, EvaluationDone) == [EvaluationDone(step=0, loss=3.0)]
    assert records(commands) == ["evaluation", "commit"]
    commands = trainer.get(evaluated(2, 0, loss_sum=3.0))
    assert [type(c.message) for c in commands] == [Ack], "it came again"


def test_every_heartbeat_asks_again_what_is_open(trainer):
    trainer.gather()
    trainer.report(1, FULL)
    assert len(of_type(trainer.tick(1.0), Prepare)) == 1
    assert len(of_type(trainer.tick(2.0), Prepare)) == 1


# -- the end -----------------------------------------------------------------------------------------


def test_a_whole_run(trainer):
    trainer.gather()
    trainer.train()
    assert trainer.machine.phase is Phase.COLLECTING
    commands = trainer.collect()
    pulls = of_type(trainer.log, Pull)
    assert [(pull.layer, pull.step) for pull in pulls] == [(0, 3), (1, 3)]
    assert of_type(commands, Store)
    assert len(of_type(commands, Stop)) == 4
    assert of_type(commands, Exit) == []
    assert records(trainer.log) == ["join"] * 4 + ["start"] + ["commit"] * 3 + ["finish"]
    assert [done.step for done in of_type(trainer.log, StepDone)] == [0, 1, 2]
    for session in (1, 2, 3):
        assert of_type(trainer.get(stop(session)), Exit) == []
    assert of_type(trainer.get(stop(4)), Exit) == [Exit(code=0, text="all steps are done")]


def test_parameters_are_fetched_only_after_their_evaluation():
    trainer = Fixture(num_held_out=1)
    trainer.gather()
    trainer.get(evaluated(2, 0))
    assert of_type(trainer.train(), Pull) == []
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
    assert (records(commands), of_type(commands, Exit)[0].code) == (["finish"], 130)


def test_the_end_comes_once(trainer):
    trainer.gather()
    trainer.do(Interrupted())
    assert records(trainer.do(Interrupted())) == []
    assert records(trainer.get(failure(1, "late"))) == []
    assert trainer.machine._exit.code == 130


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (failure(1, "division by zero", layer="layer 3 (Norm)"), "w0 (stage 0, layer 3 (Norm)): division by zero"),
        (failure(1, "no such model"), "w0 (stage 0): no such model"),
        (stop(2), "w1 (stage 1) has left; what it had counted is lost"),
    ],
    ids=["a layer", "a stage", "leaving"],
)
def test_what_ends_the_run_says_why(trainer, message, text):
    trainer.gather()
    commands = trainer.get(message)
    (finish,) = [c for c in commands if isinstance(c, Append)]
    assert (finish.record["event"], finish.record["code"], finish.record["reason"]) == ("finish", 1, text)
    assert len(of_type(commands, Stop)) == 4
    assert trainer.machine._exit == Exit(code=1, text=text)


def test_a_double_count_ends_the_run_without_a_commit(trainer):
    trainer.gather()
    trainer.join("w2")
    trainer.report(5, 0b0001)
    commands = trainer.report(1, FULL)
    assert records(commands) == ["finish"]
    assert "counted by two workers" in trainer.machine._exit.text


def test_a_silent_process_ends_the_run(trainer):
    trainer.gather()
    for now_s in range(1, 11):
        trainer.tick(float(now_s))
        for session in (1, 2, 3):
            trainer.get(broker_heartbeat(session))
        assert trainer.machine.phase is Phase.TRAINING
    trainer.tick(11.0)
    assert "b1 (stage 1) has not been heard of for 11 s" in trainer.machine._exit.text


def test_after_an_own_stall_nobody_is_blamed(trainer):
    trainer.gather()
    trainer.tick(1.0)
    trainer.tick(500.0)
    assert trainer.machine.phase is Phase.TRAINING
    for now_s in range(501, 515):
        trainer.tick(float(now_s))
    assert trainer.machine.phase is Phase.CLOSING, "but they must be heard of again"


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.CLOSING])
def test_at_the_end_newcomers_are_turned_away_but_not_who_is_known(trainer, phase):
    """A late copy of a live worker's Register once ended that worker while its layers were being fetched."""
    trainer.gather()
    trainer.train()
    if phase is Phase.CLOSING:
        trainer.collect()
    assert trainer.machine.phase is phase
    assert of_type(trainer.join("b9", Role.BROKER), Reject)
    assert of_type(trainer.join("w0"), Welcome)
    assert of_type(trainer.join("b0", Role.BROKER), Welcome)


# -- any message in any state ------------------------------------------------------------------------

EVERYTHING = [*one_of_each(1, step=0), *one_of_each(3, step=7), *one_of_each(99, step=0), *one_of_each(TRAINER, step=0)]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("message", EVERYTHING, ids=lambda m: f"{type(m).__name__} of {m.session}")
def test_any_message_is_harmless(message, phase):
    """Twice, in every phase: nothing is committed, nobody is expelled, and the run still ends well."""
    trainer = Fixture()
    if phase is not Phase.GATHERING:
        trainer.gather()
    if phase in (Phase.COLLECTING, Phase.CLOSING):
        trainer.train()
    if phase is Phase.CLOSING:
        trainer.collect()
    before = records(trainer.log)
    trainer.reports = max(trainer.reports, 1)
    for _ in range(2):
        trainer.get(message, peer="sim://stranger", frames=("x",))
    assert [event for event in records(trainer.log)[len(before) :] if event != "join"] == []
    if phase is Phase.GATHERING:
        trainer.gather()
    if phase in (Phase.GATHERING, Phase.TRAINING):
        trainer.get(register("stranger", nonce=99), peer="sim://stranger")
        trainer.train()
    if phase is not Phase.CLOSING:
        trainer.collect()
    assert trainer.machine._exit == Exit(code=0, text="all steps are done")


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_loss_is_acknowledged_whatever_it_is(trainer, purpose):
    trainer.gather()
    (send,) = [c for c in trainer.get(evaluated(2, 5, purpose=purpose), peer=Link(b"w")) if isinstance(c, Send)]
    assert (send.peer, type(send.message), send.message.direction) == (Link(b"w"), Ack, Direction.LOSS)


def test_messages_of_another_run_are_dropped(trainer):
    trainer.gather()
    assert trainer.get(stop(1, run=OTHER_RUN)) == []
    assert trainer.machine.phase is Phase.TRAINING
