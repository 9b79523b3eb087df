"""A microbatch is lost when nobody reports it; it goes in again once nobody can count it any more."""

from __future__ import annotations

import pytest

from tests.letters import broker_heartbeat, header, heartbeat, register, void
from zswarm import limits
from zswarm.ids import Address, Role
from zswarm.machine import Send
from zswarm.trainer.replays import Replay, Replays, Wave, first_attempt
from zswarm.trainer.roster import Roster

W0, W1, B0, B1 = 1, 2, 3, 4
"""A worker and a broker of each of two stages."""
EVERYBODY = (W0, W1, B0, B1)
HEARTBEAT_S = 2.0
UNSEEN_S = limits.UNSEEN_HEARTBEATS * HEARTBEAT_S
AFTER_LOSS_S = limits.UNSEEN_AFTER_LOSS_HEARTBEATS * HEARTBEAT_S
TINY_S = 1e-6
FULL = 0b1111


class Fixture:
    """Four microbatches of step 3 on branch 1; `counted` is what each stage has counted, as the committer would say."""

    def __init__(self, *, generation: int = 1) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for node, role in (("w0", Role.WORKER), ("w1", Role.WORKER), ("b0", Role.BROKER), ("b1", Role.BROKER)):
            self.roster.register(register(node, role=role), Address(f"sim://{node}"), 0.0)
        self.counted = [0, 0]
        self.replays = Replays(
            self.roster,
            header(generation=generation),
            num_stages=2,
            heartbeat_s=HEARTBEAT_S,
            covered=lambda stage: self.counted[stage],
        )
        self.replays.begin((1, 3))
        self.num_reports = 0

    def report(self, session, now=0.0, *, step=3, view=None, **of):
        self.num_reports += 1
        record = self.roster.records[session]
        make = heartbeat if record.role is Role.WORKER else broker_heartbeat
        view = self.roster.view if view is None else view
        record.note(make(session, self.num_reports, step=step, branch=1, view=view, **of), now)

    def report_all(self, now, **of):
        for session in list(self.roster.records):
            self.report(session, now, **of)

    def look(self, now, *, admitted=FULL, own=0):
        return self.replays.look(admitted=admitted, own=own, now=now)

    def lose(self, *, admitted=FULL) -> list[Send]:
        """Nobody reports what is admitted and not complete, for long enough."""
        self.look(0.0, admitted=admitted)
        self.report_all(UNSEEN_S)
        return self.look(UNSEEN_S, admitted=admitted)


@pytest.fixture
def swarm():
    return Fixture()


def lost(swarm) -> int:
    return swarm.replays.wave.bitmap if swarm.replays.wave else 0


# -- what is lost ------------------------------------------------------------------------------------


def test_what_nobody_reports_for_two_heartbeats_is_lost(swarm):
    swarm.look(0.0)
    swarm.report_all(1.0)
    assert swarm.look(UNSEEN_S - TINY_S) == []
    assert swarm.look(UNSEEN_S) != []
    assert lost(swarm) == FULL


def test_only_what_was_admitted_can_be_lost(swarm):
    swarm.lose(admitted=0b0101)
    assert lost(swarm) == 0b0101


def test_the_clock_of_a_microbatch_begins_when_it_is_admitted(swarm):
    swarm.look(0.0, admitted=0b0001)
    swarm.look(3.0, admitted=0b0011)
    swarm.report_all(4.0)
    swarm.look(UNSEEN_S, admitted=0b0011)
    assert lost(swarm) == 0b0001


@pytest.mark.parametrize(
    ("session", "report"),
    [
        (W1, {"pending": 0b0010}),
        (B1, {"active": 0b0010}),
        (B0, {"step": 2, "ahead": 0b0010}),
    ],
    ids=["a worker's jobs and outputs", "a broker's queue", "a broker of the step before"],
)
def test_what_somebody_reports_is_not_lost(swarm, session, report):
    swarm.report(session, **report)
    swarm.look(0.0)
    for other in EVERYBODY:
        if other != session:
            swarm.report(other, UNSEEN_S)
    swarm.report(session, UNSEEN_S, **report)
    swarm.look(UNSEEN_S)
    assert lost(swarm) == FULL & ~0b0010


@pytest.mark.parametrize(
    ("session", "report"),
    [
        (W1, {"step": 2, "pending": 0b0010}),
        (B1, {"step": 2, "active": 0b0010}),
        (B1, {"step": 3, "ahead": 0b0010}),
        (B1, {"step": 1, "ahead": 0b0010}),
    ],
    ids=["jobs of another step", "a queue of another step", "of the next step", "of the step before that"],
)
def test_what_is_reported_of_another_step_is_not_seen(swarm, session, report):
    swarm.look(0.0)
    swarm.report_all(UNSEEN_S)
    swarm.report(session, UNSEEN_S, **report)
    swarm.look(UNSEEN_S)
    assert lost(swarm) == FULL


def test_what_the_trainer_itself_has_on_its_way_is_seen(swarm):
    swarm.look(0.0)
    swarm.report_all(UNSEEN_S)
    swarm.look(UNSEEN_S, own=0b1000)
    assert lost(swarm) == 0b0111


def test_a_stage_that_newly_counts_a_microbatch_shows_that_it_is_on_its_way(swarm):
    """Between a worker's count and the report of whoever gets its output there is nobody who reports it."""
    swarm.look(0.0)
    swarm.report_all(UNSEEN_S)
    swarm.counted[1] = 0b0011
    swarm.look(UNSEEN_S)
    assert lost(swarm) == 0b1100


def test_what_was_counted_before_shows_nothing(swarm):
    swarm.counted[1] = 0b0011
    swarm.lose()
    assert lost(swarm) == FULL


def test_what_every_stage_has_counted_is_not_lost(swarm):
    swarm.counted[:] = [0b0011, 0b0110]
    swarm.lose()
    assert lost(swarm) == FULL & ~0b0010


def test_seen_again_in_time_the_clock_begins_anew(swarm):
    swarm.look(0.0)
    swarm.report(B0, 3.0, active=FULL)
    swarm.look(3.0)
    swarm.report_all(5.0)
    assert swarm.look(3.0 + UNSEEN_S - TINY_S) == []
    assert swarm.look(3.0 + UNSEEN_S) != []


@pytest.mark.parametrize("owing", EVERYBODY)
def test_nothing_is_lost_before_everybody_has_reported(swarm, owing):
    """A report from before, or from right after it was last seen, may have been made while it was on its way."""
    swarm.look(0.0)
    for session in EVERYBODY:
        swarm.report(session, 0.5 * HEARTBEAT_S - (TINY_S if session == owing else 0.0))
    assert swarm.look(100.0) == []
    swarm.report(owing, 100.0)
    assert swarm.look(100.0) != []


@pytest.mark.parametrize("session", EVERYBODY)
def test_what_comes_and_goes_between_two_reports_is_seen_in_the_second(swarm, session):
    swarm.report_all(0.0)
    swarm.look(0.0)
    swarm.report_all(3.0)
    swarm.report(session, 3.0, passed=b"\x02")
    swarm.look(3.0)
    swarm.report_all(3.0 + UNSEEN_S - TINY_S)
    swarm.look(3.0 + UNSEEN_S - TINY_S)
    assert lost(swarm) == FULL & ~0b0010


def test_what_has_passed_was_seen_once(swarm):
    """Unlike what is held, which is seen until the next report."""
    swarm.look(0.0)
    swarm.report_all(2.0, passed=b"\x0f")
    swarm.look(2.0)
    swarm.look(3.9)
    swarm.report_all(2.0 + UNSEEN_S)
    swarm.look(2.0 + UNSEEN_S)
    assert lost(swarm) == FULL


def test_what_has_passed_in_several_reports_is_seen_when_somebody_looks(swarm):
    swarm.look(0.0)
    swarm.report(B0, 1.0, passed=b"\x01")
    swarm.report(B0, 2.0, passed=b"\x02")
    swarm.report(B1, 2.0, passed=b"\x04")
    swarm.report(B1, 2.0, step=4)
    swarm.report_all(3.0)
    swarm.look(3.0)
    swarm.report_all(UNSEEN_S)
    swarm.look(UNSEEN_S)
    assert lost(swarm) == FULL & ~0b0011


def test_after_a_loss_what_passed_before_it_is_not_seen(swarm):
    """It may have gone to whoever was lost."""
    swarm.report_all(1.0)
    swarm.look(1.0)
    swarm.roster.remove(B1, 2.0)
    for session in (W0, W1):
        swarm.report(session, 2.5)
    swarm.report(B0, 2.5, passed=b"\x03")
    swarm.look(2.5)
    swarm.look(2.0 + AFTER_LOSS_S)
    assert lost(swarm) == FULL


def test_after_a_loss_what_passed_since_is_seen(swarm):
    swarm.report_all(1.0)
    swarm.look(1.0)
    swarm.roster.remove(B1, 2.0)
    swarm.report_all(2.2)
    swarm.report(B0, 2.8, passed=b"\x03")
    swarm.look(2.8)
    swarm.look(2.0 + AFTER_LOSS_S)
    assert lost(swarm) == FULL & ~0b0011


def test_who_leaves_without_a_loss_hurries_nobody(swarm):
    swarm.look(0.0)
    swarm.report_all(1.0)
    swarm.roster.remove(B1, 2.0, is_loss=False)
    swarm.report_all(2.5)
    assert swarm.look(UNSEEN_S - TINY_S) == []
    assert swarm.look(UNSEEN_S) != []


def test_after_a_loss_half_a_heartbeat_is_enough(swarm):
    swarm.look(0.0)
    swarm.report_all(1.0)
    swarm.roster.remove(B1, 2.0)
    swarm.report_all(2.5)
    assert swarm.look(2.0 + AFTER_LOSS_S - TINY_S) == []
    assert swarm.look(2.0 + AFTER_LOSS_S) != []


def test_after_a_loss_everybody_has_to_know_of_it(swarm):
    """Until a process has seen the view it may still send to whoever has left."""
    swarm.look(0.0)
    swarm.roster.remove(B1, 2.0)
    for session in (W0, W1):
        swarm.report(session, 2.5)
    swarm.report(B0, 2.5, view=swarm.roster.view - 1)
    assert swarm.look(100.0) == []
    swarm.report(B0, 100.0)
    assert swarm.look(100.0) != []


def test_what_was_seen_after_the_loss_has_its_two_heartbeats(swarm):
    swarm.look(0.0)
    swarm.roster.remove(B1, 2.0)
    swarm.report_all(2.5)
    swarm.report(B0, 2.5, active=0b0001)
    swarm.look(2.5)
    swarm.report_all(4.4)
    swarm.look(4.4)
    assert lost(swarm) == 0b1110


def test_a_recovered_process_that_has_not_spoken_blocks(swarm):
    """A trainer that has started again does not know what it has; it is silent, and given up as such."""
    swarm.roster.records[W1].is_silent = True
    swarm.roster.note_loss(0.0)
    swarm.look(0.0)
    for session in (W0, B0, B1):
        swarm.report(session, 1.0)
    assert swarm.look(100.0) == []
    swarm.roster.remove(W1, 100.0)
    swarm.report_all(101.0)
    assert swarm.look(101.0) != []


def test_an_own_stall_is_no_absence(swarm):
    swarm.look(0.0)
    swarm.report_all(UNSEEN_S + 100.0)
    swarm.replays.excuse(100.0)
    assert swarm.look(UNSEEN_S + 100.0 - TINY_S) == []
    assert swarm.look(UNSEEN_S + 100.0) != []


# -- the wave ----------------------------------------------------------------------------------------


def test_everybody_is_told_of_what_is_void(swarm):
    sends = swarm.lose(admitted=0b0110)
    assert [send.peer for send in sends] == ["sim://w0", "sim://w1", "sim://b0", "sim://b1"]
    attempt = first_attempt(1) + 1
    assert {send.message for send in sends} == {void(attempt, 0b0110, step=3, branch=1)}
    assert swarm.replays.wave == Wave(step=3, attempt=attempt, bitmap=0b0110)


def test_it_is_repeated_to_whoever_has_not_answered(swarm):
    swarm.lose()
    assert swarm.replays.wave is not None
    attempt = swarm.replays.wave.attempt
    swarm.report(W0, voided=attempt)
    swarm.report(B0, voided=attempt - 1)
    swarm.report(B1, step=2, voided=attempt)
    assert [send.peer for send in swarm.replays.repeat()] == ["sim://w1", "sim://b0"]


@pytest.mark.parametrize("owing", EVERYBODY)
def test_nothing_is_admitted_before_everybody_has_answered(swarm, owing):
    swarm.lose()
    attempt = swarm.replays.wave.attempt
    for session in EVERYBODY:
        swarm.report(session, voided=attempt - (session == owing))
    assert swarm.replays.take() == []
    swarm.report(owing, voided=attempt)
    assert [replay.microbatch for replay in swarm.replays.take()] == [0, 1, 2, 3]
    assert swarm.replays.take() == [], "once"
    assert swarm.replays.repeat() == []


@pytest.mark.parametrize("step", [2, 3, 4])
def test_who_is_of_another_step_has_to_answer_too(swarm, step):
    """By the time that the Void is carried out it may have come to this one, with a job of an earlier attempt."""
    swarm.lose()
    attempt = swarm.replays.wave.attempt
    for session in (W0, W1, B0):
        swarm.report(session, voided=attempt)
    swarm.report(B1, step=step)
    assert swarm.replays.take() == []
    assert [send.peer for send in swarm.replays.repeat()] == ["sim://b1"]


def test_who_leaves_need_not_answer_and_who_joins_must(swarm):
    swarm.lose()
    attempt = swarm.replays.wave.attempt
    for session in (W0, W1, B0):
        swarm.report(session, voided=attempt)
    swarm.roster.register(register("late"), Address("sim://late"), 0.0)
    swarm.roster.remove(B1, 0.0)
    assert swarm.replays.take() == []
    swarm.report(5, step=0, voided=attempt)
    assert len(swarm.replays.take()) == 4


def test_the_mask_is_what_the_stages_lack_when_all_have_answered(swarm):
    """A job that was in the middle of being counted when the wave began is in a ledger when it is over."""
    swarm.lose()
    attempt = swarm.replays.wave.attempt
    swarm.counted[:] = [0b0011, 0b0101]
    swarm.report_all(0.0, voided=attempt)
    assert swarm.replays.take() == [
        Replay(step=3, microbatch=1, attempt=attempt, mask=0b10),
        Replay(step=3, microbatch=2, attempt=attempt, mask=0b01),
        Replay(step=3, microbatch=3, attempt=attempt, mask=0b11),
    ]


def test_nothing_is_lost_while_a_wave_is_open(swarm):
    swarm.lose(admitted=0b0001)
    wave = swarm.replays.wave
    swarm.report_all(1000.0)
    assert swarm.look(1000.0) == []
    assert swarm.replays.wave is wave


def test_what_is_seen_while_a_wave_is_open_has_its_two_heartbeats_from_there(swarm):
    swarm.look(0.0)
    swarm.report_all(0.0)
    swarm.replays.demand(0b0001)
    swarm.look(0.0)
    swarm.report(B0, 100.0, active=0b0010)
    swarm.look(100.0)
    swarm.report_all(101.0, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    swarm.look(101.0)
    assert lost(swarm) == 0b1100


def test_after_the_wave_the_others_have_their_turn_with_a_higher_attempt(swarm):
    swarm.lose(admitted=0b0001)
    first = swarm.replays.wave.attempt
    swarm.report_all(0.0, voided=first)
    swarm.replays.take()
    swarm.look(10.0)
    swarm.report_all(10.0 + UNSEEN_S)
    swarm.look(10.0 + UNSEEN_S)
    assert (swarm.replays.wave.attempt, lost(swarm)) == (first + 1, FULL)


def test_what_was_admitted_again_has_its_two_heartbeats(swarm):
    swarm.lose()
    swarm.report_all(UNSEEN_S, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    swarm.report_all(10.0)
    assert swarm.look(10.0) == []
    swarm.report_all(10.0 + UNSEEN_S)
    assert swarm.look(10.0 + UNSEEN_S - TINY_S) == []


def test_what_is_demanded_is_void_whoever_reports_it(swarm):
    swarm.report(B0, active=FULL)
    swarm.replays.demand(0b0100)
    swarm.replays.demand(0b0001)
    assert swarm.look(0.0) != []
    assert lost(swarm) == 0b0101
    swarm.report_all(0.0, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    assert swarm.look(0.0) == [], "once"


def test_a_demand_waits_for_the_wave_before(swarm):
    swarm.lose(admitted=0b0001)
    swarm.replays.demand(0b1000)
    assert swarm.look(UNSEEN_S) == []
    swarm.report_all(UNSEEN_S, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    swarm.look(UNSEEN_S)
    assert lost(swarm) == 0b1000


def test_a_new_step_forgets(swarm):
    swarm.counted[:] = [FULL, 0]
    swarm.lose()
    swarm.replays.demand(0b0001)
    first = swarm.replays.wave.attempt
    swarm.replays.begin((1, 4))
    swarm.report_all(0.0, voided=first)
    assert (swarm.replays.wave, swarm.replays.take(), swarm.replays.repeat()) == (None, [], [])
    assert swarm.look(2 * UNSEEN_S) == [], "neither what was demanded nor when anything was seen"
    swarm.report_all(3 * UNSEEN_S, step=4)
    sends = swarm.look(3 * UNSEEN_S)
    assert (sends[0].message.step, sends[0].message.attempt) == (4, first + 1)


# -- making room -------------------------------------------------------------------------------------


def test_what_waits_of_the_next_step_can_be_recalled(swarm):
    """It fills the brokers of stage 0, where something of this step finds no room."""
    swarm.counted[:] = [0b0001, 0b0001]
    sends = swarm.replays.recall(0b0011)
    attempt = first_attempt(1) + 1
    assert {send.message for send in sends} == {void(attempt, 0b0011, step=4, branch=1)}
    assert len(sends) == len(swarm.replays.repeat()) == len(EVERYBODY)
    swarm.report_all(0.0, voided=attempt)
    assert swarm.replays.take() == [
        Replay(step=4, microbatch=0, attempt=attempt, mask=0b11),
        Replay(step=4, microbatch=1, attempt=attempt, mask=0b11),
    ]


def test_nothing_is_recalled_while_a_wave_is_open_and_nothing_lost_while_something_is_recalled(swarm):
    assert swarm.replays.recall(0) == []
    swarm.lose(admitted=0b0001)
    assert swarm.replays.recall(0b0011) == []
    swarm.report_all(UNSEEN_S, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    assert swarm.replays.recall(0b0011) != []
    swarm.report_all(100.0)
    assert swarm.look(100.0) == []


def test_what_was_recalled_says_nothing_of_the_present_step(swarm):
    """The clocks of its microbatches of the same number go on."""
    swarm.look(0.0)
    swarm.replays.recall(FULL)
    swarm.report_all(UNSEEN_S, voided=swarm.replays.wave.attempt)
    swarm.replays.take()
    swarm.look(UNSEEN_S)
    assert (swarm.replays.wave.step, lost(swarm)) == (3, FULL)


def test_what_is_being_recalled_when_its_step_comes_is_what_that_step_lacks(swarm):
    """The wave goes on: nothing of it has to be noticed first, and what is counted meanwhile is not done again."""
    swarm.replays.recall(0b0111)
    swarm.replays.begin((1, 4))
    attempt = swarm.replays.wave.attempt
    swarm.counted[:] = [0b0011, 0b0001]
    swarm.report_all(0.0, step=4, voided=attempt)
    assert swarm.replays.take() == [
        Replay(step=4, microbatch=1, attempt=attempt, mask=0b10),
        Replay(step=4, microbatch=2, attempt=attempt, mask=0b11),
    ]


def test_what_is_suspect_is_lost_if_nobody_reports_it_by_now(swarm):
    """An earlier generation of the trainer may have admitted it, and this one has waited for a whole step."""
    swarm.replays.begin((1, 3), is_suspect=True)
    swarm.report(B0, active=0b0001)
    swarm.counted[:] = [0b0010, 0b0000]
    swarm.look(0.0, own=0b0100)
    assert lost(swarm) == 0b1000


def test_attempts_of_a_later_generation_are_above_all_of_an_earlier_one():
    """Nobody but the earlier generation knew how many waves there had been."""
    swarm = Fixture(generation=3)
    swarm.lose()
    assert first_attempt(1) == 0
    assert swarm.replays.wave.attempt == first_attempt(3) + 1 == (2 << 32) + 1


def test_what_was_admitted_again_is_suspect_no_more(swarm):
    """It may be on its way for as long as anything else: voiding it at once, again and again, would never end."""
    swarm.replays.begin((1, 3), is_suspect=True)
    swarm.report_all(1.0)
    assert lost_at(swarm, 1.0) == FULL
    attempt = swarm.replays.wave.attempt
    swarm.report_all(1.1, voided=attempt)
    assert len(swarm.replays.take()) == 4
    assert lost_at(swarm, 1.0 + 0.5 * HEARTBEAT_S) == 0
    now = 1.0 + 0.5 * HEARTBEAT_S + UNSEEN_S
    swarm.report_all(now, voided=attempt)
    assert lost_at(swarm, now) == FULL


def lost_at(swarm, now) -> int:
    swarm.look(now)
    return lost(swarm)
