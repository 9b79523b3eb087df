"""Processes die, come back, contradict each other and fail; the run goes on from what is certain."""

from __future__ import annotations

import pytest

from tests.letters import ack, credit, failure, fence, heartbeat, of_type, prepared, register, stop, void
from tests.trainer.swarm import FULL, Trainer, records, to, written
from zswarm import limits
from zswarm.ids import Address, Direction, Leaving, Role
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.messages import Abort, Commit, Fence, Forward, HeartbeatAck, Prepare, Restore, Stop, View, Void, Welcome
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import Sample, Unreachable

SILENCE_S = limits.SILENCE_HEARTBEATS


@pytest.fixture
def trainer():
    """A run of two workers of stage 0 (sessions 1 and 5), one of stage 1 (2), and two brokers (3 and 4)."""
    return Trainer.of_three()


def answers(trainer, wave) -> list:
    """Let everybody say that it has carried out a Void, and has nothing of it; returns what follows."""
    commands = []
    for session, said in list(trainer.says.items()):
        commands += trainer.report(session, **(said | {"voided": wave.attempt}))
    return commands


# -- giving up ---------------------------------------------------------------------------------------


def test_who_is_silent_is_given_up_and_the_run_goes_on(trainer):
    trainer.report(1, 0b0011)
    del trainer.says[1]
    view = trainer.machine.roster.view
    assert records(trainer.live(SILENCE_S)) == []
    commands = trainer.live(0.5)
    (leave,) = written(commands)
    assert (leave["event"], leave["node"], leave["role"], leave["session"], leave["stage"]) == (
        "leave",
        "w0",
        "worker",
        1,
        0,
    )
    assert (leave["reason"], leave["lost"], leave["silent_s"]) == ("silent for 3.5 s", 2, 3.5)
    assert of_type(commands, Fence) == [fence(1)]
    assert to(commands, Fence) == ["sim://1"]
    assert sorted(to(commands, View)) == ["sim://2", "sim://3", "sim://4", "sim://5"]
    assert {message.view for message in of_type(commands, View)} == {view + 1}
    assert trainer.machine.phase is Phase.TRAINING


def test_what_a_session_says_that_has_left_is_answered_by_fence_as_often_as_it_speaks(trainer):
    trainer.dies(1)
    for message in (heartbeat(1, 999, counted=FULL), prepared(1, 1), stop(1), ack(1, 0, Direction.FORWARD)):
        (answer,) = [c for c in trainer.get(message, peer="sim://again") if isinstance(c, Send)]
        assert (answer.peer, answer.message) == ("sim://again", fence(1))
    assert trainer.machine.committer.owned(0) == 0


def test_a_session_that_was_never_issued_is_fenced(trainer):
    (answer,) = trainer.get(heartbeat(99, 1))
    assert answer.message == fence(99)


def of_three(trainer) -> None:
    """Have a third worker in stage 0 (session 6), and step 1 in work."""
    trainer.join("w6", stage=0)
    trainer.report(6)
    workers = {1: FULL, 5: 0, 6: 0, 2: FULL}
    trainer.count(0)
    for session, counted in workers.items():
        trainer.prepare(session, counted, step=0)
    for session in workers:
        trainer.report(session, step=1)
    assert trainer.machine.committer.step == 1


HANGS = {"step": 1, "busy_s": 5.0, "usual_s": 0.5}


def test_a_fence_says_whether_the_state_of_its_stage_is_safe(trainer):
    """It is not with one worker: whoever is given up may only be slow, and would bring it back."""
    of_three(trainer)
    fences = [*of_type(trainer.report(1, **HANGS), Fence), *of_type(trainer.report(5, **HANGS), Fence)]
    assert fences == [fence(1, is_spare=True), fence(5)]


def test_what_anybody_can_make_is_safe(trainer):
    """Fresh parameters are, with nobody else in the stage."""
    trainer.report(2, **HANGS | {"step": 0})
    assert of_type(trainer.log, Fence) == [fence(2, is_spare=True)]


@pytest.mark.parametrize("busy", [{}, {"busy_s": 1.9, "usual_s": 2.0}])
def test_whoever_is_not_at_one_task_for_long_is_told_nothing_of_its_state(trainer, busy):
    of_three(trainer)
    trainer.report(1, step=1, **busy)
    assert of_type(trainer.dies(1), Fence) == [fence(1)]


def test_a_device_that_may_only_be_slow_from_time_to_time_has_time_to_learn_that(trainer):
    """Every life of its worker ended as soon as it was slow, and the next one knew no better."""
    of_three(trainer)
    trainer.report(1, **HANGS)
    said = []
    for session, later_s in ((7, 0.0), (8, limits.FORGIVEN_HEARTBEATS)):
        trainer.live(later_s)
        trainer.join("w0", nonce=session, stage=0)
        said += of_type(trainer.report(session, **HANGS), Fence)
    assert said == [fence(7), fence(8, is_spare=True)]


@pytest.mark.parametrize(
    ("said", "is_spare"),
    [
        ({"busy_s": 0.9, "usual_s": 0.2}, True),
        ({"busy_s": 1.9, "usual_s": 1.0}, True),
        ({"busy_s": 2.1, "usual_s": 1.0}, False),
        ({"leaving": Leaving.DRAINING}, False),
        ({"ready": False}, False),
    ],
)
def test_whoever_may_hang_or_go_keeps_no_state_for_another(trainer, said, is_spare):
    of_three(trainer)
    trainer.report(5, step=1, **said)
    assert of_type(trainer.report(1, **HANGS), Fence) == [fence(1, is_spare=is_spare)]


def test_who_says_goodbye_has_left(trainer):
    commands = trainer.get(stop(1))
    (leave,) = written(commands)
    assert (leave["session"], leave["reason"]) == (1, "asked to leave, 0 microbatches redone")
    assert trainer.machine.phase is Phase.TRAINING


def test_a_new_life_of_a_node_ends_the_one_before(trainer):
    commands = trainer.join("w0", nonce=2, stage=0)
    leave, join = written(commands)
    assert (leave["event"], leave["session"], leave["reason"]) == ("leave", 1, "it has started again")
    assert (join["event"], join["session"], join["stage"]) == ("join", 6, 0)
    assert to(commands, Fence) == ["sim://1"]
    assert [message.yours for message in of_type(commands, Welcome)] == [6]
    assert trainer.join("w0", nonce=1) == [], "a late copy ends nobody"
    assert of_type(trainer.join("w0", nonce=2), Welcome)


def test_a_lost_connection_is_judged_at_its_time(trainer):
    trainer.do(Unreachable(peer=Address("sim://1")))
    assert trainer.machine.next_deadline_s() == limits.GONE_HEARTBEATS
    assert records(trainer.tick(limits.GONE_HEARTBEATS - 0.01)) == []
    (leave,) = written(trainer.tick(limits.GONE_HEARTBEATS))
    assert (leave["session"], leave["reason"]) == (1, "its connection was lost")


def test_who_speaks_over_another_connection_is_not_gone(trainer):
    trainer.do(Unreachable(peer=Address("sim://1")))
    trainer.num_reports += 1
    trainer.get(heartbeat(1, trainer.num_reports), peer="sim://another")
    trainer.do(Unreachable(peer=Address("sim://1")))
    assert records(trainer.tick(0.5)) == []
    assert "sim://another" in to(trainer.tick(1.0), HeartbeatAck)


def test_the_common_part_of_what_others_accuse_is_given_up(trainer):
    (leave,) = written(trainer.report(2, accused=(1,)))
    assert (leave["session"], leave["reason"]) == (1, "cut off: it and w1 (stage 1) do not reach each other")
    assert written(trainer.report(5, accused=(3,))) == [], "what is said so soon may be about the same"


def test_a_stage_without_anybody_gets_somebody_of_another_stage(trainer):
    """Its broker has died for good. That of the other stage is not moved: it would be missed as much."""
    trainer.join("b2", Role.BROKER)
    trainer.report(6)
    trainer.do(Unreachable(peer=Address("sim://4")))
    del trainer.says[4]
    commands = trainer.live(limits.EMPTY_STAGE_HEARTBEATS + 1)
    (_, leave) = written(commands)
    assert (leave["session"], leave["reason"]) == (6, "stage 1 has no broker left: it is needed there")
    (welcome,) = of_type(trainer.join("b2", Role.BROKER, nonce=2, stage=0), Welcome)
    assert (welcome.yours, welcome.stage) == (7, 1), "though it asks for the place that it had"


def test_a_worker_that_is_stuck_is_given_up(trainer):
    trainer.report(5, job_s=0.01)
    (leave,) = written(trainer.report(1, busy_s=limits.STUCK_HEARTBEATS + 0.1, job_s=0.01, usual_s=0.01))
    assert leave["session"] == 1
    assert leave["reason"].startswith("stuck")


def test_after_an_own_stall_nobody_is_blamed(trainer):
    trainer.live(1.0)
    assert records(trainer.tick(500.0)) == []
    assert set(trainer.machine.roster.records) == {1, 2, 3, 4, 5}
    left = [record["session"] for step in range(1, 9) for record in written(trainer.tick(500.0 + step / 2))]
    assert sorted(left) == [1, 2, 3, 4, 5], "but they must be heard of again"


def test_after_an_own_stall_nobody_is_needed_elsewhere_at_once(trainer):
    trainer.join("b2", Role.BROKER)
    trainer.report(6)
    trainer.do(Unreachable(peer=Address("sim://4")))
    del trainer.says[4]
    trainer.live(1.0)
    trainer.now_s += 100.0
    assert "leave" not in records(trainer.live(limits.NO_BROKER_HEARTBEATS - 1.5))
    assert "leave" in records(trainer.live(3.0))


def test_a_swarm_that_has_nobody_waits_for_somebody(trainer):
    trainer.says.clear()
    for step in range(1, 30):
        trainer.tick(step / 2)
    assert trainer.machine.roster.records == {}
    assert trainer.machine.phase is Phase.TRAINING
    trainer.enroll()
    for session in (6, 7):
        assert of_type(trainer.report(session), Restore) == [], "at step 0 fresh parameters will do"
    trainer.report(6, FULL)
    assert "sim://6" in to(trainer.log, Prepare)


# -- rounds ------------------------------------------------------------------------------------------


def test_a_death_before_the_round_costs_what_was_counted(trainer):
    trainer.report(1, 0b0011)
    trainer.report(5, 0b1100)
    number = trainer.rounds()[1]
    commands = trainer.get(stop(1))
    abort, leave = sorted(written(commands), key=lambda record: record["event"])
    assert (abort["event"], abort["round"], leave["lost"]) == ("abort", number, 2)
    assert to(commands, Abort) == ["sim://5"]
    assert trainer.machine.committer.owned(0) == 0b1100
    trainer.report(5, FULL)
    assert trainer.rounds()[5] == number + 1


def test_a_death_in_the_round_makes_it_void(trainer):
    trainer.report(1, 0b0011)
    trainer.report(5, 0b1100)
    trainer.prepare(1, 0b0011, step=0)
    assert "abort" in records(trainer.get(stop(1)))
    trainer.report(2, FULL)
    assert records(trainer.prepare(2, step=0)) == [], "stage 0 lacks two microbatches"


def test_a_death_after_all_have_prepared_costs_nothing(trainer):
    trainer.report(1, 0b0011)
    trainer.report(5, 0b1100)
    trainer.prepare(1, 0b0011, step=0)
    trainer.prepare(5, 0b1100, step=0)
    (leave,) = written(trainer.get(stop(1)))
    assert leave["lost"] == 0
    trainer.report(2, FULL)
    commands = trainer.prepare(2, step=0)
    (commit,) = written(commands)
    assert commit["stages"][0]["contributions"] == {"1": [0, 1], "5": [2, 3]}
    assert sorted(to(commands, Commit)) == ["sim://2", "sim://5"]


def test_who_has_only_the_last_commit_to_apply_is_not_sent_for_its_state(trainer):
    """Its report is older than its Prepared."""
    trainer.report(5)
    trainer.count(0)
    for session, counted in ((1, FULL), (5, 0), (2, FULL)):
        trainer.prepare(session, counted, step=0)
    trainer.apply(1)
    trainer.says.pop(5)
    assert of_type(trainer.live(2.0), Restore) == []


# -- once more through the pipeline ------------------------------------------------------------------


def test_what_nobody_reports_is_voided_and_admitted_again(trainer):
    trainer.get(credit(3, 4 * 100))
    for microbatch in range(4):
        trainer.get(ack(3, microbatch, Direction.FORWARD))
    trainer.report(1, 0b0011)
    trainer.report(2, 0b0110)
    trainer.report(3, active=0b1000)
    commands = trainer.live(3.0)
    voids = of_type(commands, Void)
    assert {message.ledger for message in voids} == {b"\x05"}, "not 1, which is complete, nor 3, which is queued"
    assert {"sim://1", "sim://2", "sim://3", "sim://4", "sim://5"} <= set(to(commands, Void))
    commands = answers(trainer, voids[0])
    (replay,) = written(commands)
    assert replay == {"event": "replay", "step": 0, "attempt": 1, "microbatches": [0, 2]}
    assert [(sample.step, sample.microbatch) for sample in of_type(commands, Sample)] == [(0, 0), (0, 2)]
    sends = trainer.get(credit(3, 9 * 100))
    forwards = {m.microbatch: (m.attempt, m.mask) for m in of_type(commands + sends, Forward) if m.step == 0}
    assert forwards == {0: (1, b"\x02"), 2: (1, b"\x01")}
    assert of_type(trainer.live(1.0), Void) == []


def test_after_a_death_what_it_cost_is_voided_within_a_heartbeat(trainer):
    """A broker dies with what waits in it; the others know at once that it has left, and what they have."""
    trainer.get(credit(3, 4 * 100))
    for microbatch in range(4):
        trainer.get(ack(3, microbatch, Direction.FORWARD))
    trainer.report(1, FULL)
    trainer.report(2, 0b0011)
    trainer.report(4, active=0b1100)
    trainer.live(1.0)
    commands = trainer.get(stop(4))
    del trainer.says[4]
    assert of_type(commands, Void) == []
    commands = trainer.live(0.5)
    assert of_type(commands, Void)[0] == void(1, 0b1100)


def test_a_wave_waits_for_everybody_and_for_nobody_who_has_left(trainer):
    trainer.get(credit(3, 4 * 100))
    for microbatch in range(4):
        trainer.get(ack(3, microbatch, Direction.FORWARD))
    (wave, *_) = of_type(trainer.live(3.0), Void)
    said = trainer.says.pop(2)
    answers(trainer, wave)
    assert "replay" not in records(trainer.log)
    assert "sim://2" in to(trainer.live(1.0), Void)
    trainer.says[2] = said
    assert "replay" in records(trainer.get(stop(2)))


def test_what_goes_in_again_has_room_before_the_next_step(trainer):
    """The next step's microbatches waited for this one to end, which waited for the room that they had."""
    trainer.get(credit(3, 4 * 100))
    for microbatch in range(4):
        trainer.get(ack(3, microbatch, Direction.FORWARD))
    trainer.report(1, 0b0011)
    for _ in range(20):
        if (wave := trainer.machine.supply.replays.wave) is not None and wave.step == 0:
            answers(trainer, wave)
        trainer.live(0.5)
    again = [record["microbatches"] for record in written(trainer.log) if record["event"] == "replay"]
    assert sorted(again) == [[0, 1], [2, 3]]
    assert {message.ledger for message in of_type(trainer.log, Void) if message.step == 1} == {b"\x03"}
    assert {key[1] for _, key in trainer.machine.outbox.pending()} == {0}


def test_what_the_trainer_has_itself_of_a_voided_attempt_is_dropped(trainer):
    """What goes in again has another attempt; of the earlier one a broker would make a job that nobody may do."""
    trainer.report(1, 0b0010)
    assert {key[3] for _, key in trainer.machine.outbox.pending() if key[1] == 0} == {0, 1, 2, 3}
    trainer.report(5, 0b0010)
    assert {key[3] for _, key in trainer.machine.outbox.pending() if key[1] == 0} == {0, 2, 3}


# -- a conflict --------------------------------------------------------------------------------------


def test_of_two_that_have_counted_the_same_the_one_that_says_so_last_is_given_up(trainer):
    """The rules make it impossible. If it happens all the same nothing of it is committed, and the run goes on."""
    trainer.report(1, 0b0011)
    commands = trainer.report(5, 0b0110)
    (leave,) = written(commands)
    assert (leave["session"], leave["reason"]) == (5, "it has counted what another worker has counted")
    assert to(commands, Fence) == ["sim://5"]
    assert of_type(commands, Void)[0] == void(1, 0b0110), "whoever reports it"
    assert trainer.machine.committer.owned(0) == 0b0011


def test_replicas_that_differ_end_the_run(trainer):
    commands = trainer.report(5, parameter_digest=9)
    assert records(commands) == ["finish"]
    assert "hold different parameters" in trainer.machine._exit.text


# -- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (failure(1, "no such model"), "w0 (stage 0): no such model"),
        (failure(1, "out of memory", layer="layer 3 (Norm)"), "w0 (stage 0, layer 3 (Norm)): out of memory"),
    ],
)
def test_a_stage_that_cannot_be_built_ends_the_run(trainer, message, text):
    commands = trainer.get(message)
    (finish,) = written(commands)
    assert (finish["event"], finish["code"], finish["reason"]) == ("finish", 1, text)
    assert len(of_type(commands, Stop)) == 5
    assert trainer.machine._exit == Exit(code=1, text=text)


def test_a_microbatch_that_all_workers_of_its_stage_fail_at_ends_the_run(trainer):
    """The run has two workers at stage 0; one fails once in a new life: it is counted by its node."""
    assert trainer.get(failure(1, "division by zero", microbatch=2)) == []
    trainer.join("w0", nonce=2, stage=0)
    assert trainer.get(failure(6, "division by zero", microbatch=2)) == []
    assert trainer.get(failure(5, "division by zero", microbatch=3)) == []
    commands = trainer.get(failure(5, "division by zero", layer="layer 0", microbatch=2))
    assert records(commands) == ["finish"]
    assert trainer.machine._exit.text == "w2 (stage 0, layer 0): division by zero"


def test_three_workers_are_enough(trainer):
    for index in range(3, 9):
        trainer.join(f"w{index}", stage=0)
    for session in (1, 5):
        assert trainer.get(failure(session, "no", microbatch=2)) == []
    assert records(trainer.get(failure(6, "no", microbatch=2))) == ["finish"]


def test_one_worker_may_fail_at_one_microbatch_only_so_often(trainer):
    """Each life fails once: a copy of what it said does not count again, which used to end runs early."""
    for life in range(limits.MAX_FAILURES):
        (session,) = (record.session for record in trainer.machine.roster.workers() if record.node == "w0")
        commands = trainer.get(failure(session, "no", microbatch=2))
        if life < limits.MAX_FAILURES - 1:
            assert commands == []
            assert trainer.get(failure(session, "no", microbatch=2)) == []
            trainer.join("w0", nonce=10 + life, stage=0)
    assert records(commands) == ["finish"]


def test_failures_of_a_step_that_is_over_do_not_count(trainer):
    trainer.get(failure(1, "no", microbatch=2))
    trainer.count(0)
    for session, counted in ((1, FULL), (5, 0), (2, FULL)):
        trainer.prepare(session, counted, step=0)
    assert trainer.get(failure(5, "no", microbatch=2)) == []


# -- and otherwise -----------------------------------------------------------------------------------


def test_brokers_of_stage_0_that_have_left_get_no_more(trainer):
    trainer.get(credit(3, 100))
    assert {key[3] for _, key in trainer.machine.outbox.pending()} == {0, 1, 2, 3}
    trainer.get(stop(3))
    assert {key[3] for _, key in trainer.machine.outbox.pending()} == {1, 2, 3}, "what it had was on its way to it"
    trainer.join("b9", Role.BROKER)
    assert [m.route for m in of_type(trainer.get(credit(6, 100)), Forward)] == [(6,)]


def test_a_register_in_the_name_of_a_live_node_costs_its_present_life_and_no_more(trainer):
    trainer.do(Received(peer=Address("sim://x"), message=register("w0", nonce=7)))
    assert [record["session"] for record in written(trainer.log) if record["event"] == "leave"] == [1]
    trainer.do(Tick())
    assert trainer.machine.phase is Phase.TRAINING
