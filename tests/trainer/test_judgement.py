"""Verdicts at their bounds: a heartbeat is 2 s here, so that a bound in heartbeats is not one in seconds."""

from __future__ import annotations

import pytest

from tests.letters import header, heartbeat, register
from tests.trainer.settings import settings
from zswarm import limits
from zswarm.ids import TRAINER, Address, Role
from zswarm.trainer.commit import Committer
from zswarm.trainer.judgement import Judge
from zswarm.trainer.roster import Roster

HEARTBEAT_S = 2.0
SILENCE_S = limits.SILENCE_HEARTBEATS * HEARTBEAT_S
GONE_S = limits.GONE_HEARTBEATS * HEARTBEAT_S
LEAST_STUCK_S = limits.STUCK_HEARTBEATS * HEARTBEAT_S
AGAIN_S = limits.DEAF_AGAIN_HEARTBEATS * HEARTBEAT_S
EMPTY_S = limits.EMPTY_STAGE_HEARTBEATS * HEARTBEAT_S
NO_BROKER_S = limits.NO_BROKER_HEARTBEATS * HEARTBEAT_S
QUIET_S = limits.QUIET_HEARTBEATS * HEARTBEAT_S
TINY_S = 1e-6


class Fixture:
    """Workers 1, 3 of stage 0, worker 2 of stage 1, brokers 4, 5 of stage 0 and 1; all of them heard of at 0 s."""

    def __init__(self) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for node, role, stage in (
            ("w0", Role.WORKER, 0),
            ("w1", Role.WORKER, 1),
            ("w2", Role.WORKER, 0),
            ("b0", Role.BROKER, 0),
            ("b1", Role.BROKER, 1),
        ):
            self.roster.register(register(node, role=role, stage=stage), Address(f"sim://{node}"), 0.0)
        self.judge = Judge(
            self.roster, Committer(settings(), self.roster, header()), num_stages=2, heartbeat_s=HEARTBEAT_S
        )
        self.num_reports = 1
        for record in self.roster.records.values():
            record.report, record.is_ready = 1, record.role is Role.WORKER

    def report(self, session, now=0.0, **of):
        self.num_reports += 1
        self.roster.records[session].note(heartbeat(session, self.num_reports, **of), now)

    def accuse(self, now=0.0, **whom):
        """`w0=(4, 5)`: that process names sessions 4 and 5."""
        for node, accused in whom.items():
            record = self.roster.life_of(node)
            self.num_reports += 1
            record.report, record.reported_at_s, record.accused = self.num_reports, now, accused

    def hear_all(self, now):
        for record in self.roster.records.values():
            record.heard_at_s = now

    def verdicts(self, now):
        return dict(self.judge.verdicts(now))


@pytest.fixture
def swarm():
    return Fixture()


def test_nobody_is_given_up_who_speaks(swarm):
    assert swarm.verdicts(0.0) == {}
    assert swarm.judge.next_deadline_s() == float("inf")


def test_silence(swarm):
    for session in (1, 2, 3, 4, 5):
        swarm.report(session)
    swarm.roster.records[1].heard_at_s = 1.0
    assert swarm.verdicts(SILENCE_S) == {}
    assert set(swarm.verdicts(SILENCE_S + TINY_S)) == {2, 3, 4, 5}
    assert swarm.verdicts(SILENCE_S + 0.5)[4] == "silent for 6.5 s"
    assert 1 in swarm.verdicts(SILENCE_S + 1.0 + TINY_S)


def test_a_lost_connection(swarm):
    """Looked at when it is time, not only with the next heartbeat."""
    swarm.roster.records[2].gone_at_s = 3.0
    swarm.roster.records[5].gone_at_s = 3.5
    assert swarm.judge.next_deadline_s() == 3.0 + GONE_S
    assert swarm.verdicts(3.0 + GONE_S - TINY_S) == {}
    assert swarm.verdicts(3.0 + GONE_S) == {2: "its connection was lost"}
    swarm.roster.records[2].gone_at_s = None
    assert swarm.judge.next_deadline_s() == 3.5 + GONE_S


@pytest.mark.parametrize(
    ("usual_s", "most_s"),
    [(0.0, limits.STUCK_FIRST_S), (0.001, LEAST_STUCK_S), (10.0, limits.STUCK_TIMES * 10.0)],
    ids=["nobody knows", "short tasks", "long tasks"],
)
def test_a_worker_that_is_stuck(swarm, usual_s, most_s):
    """By what its own task usually takes: others have other devices and other tasks."""
    swarm.report(3, usual_s=1000.0)
    swarm.report(2, usual_s=1.0)
    swarm.report(1, busy_s=most_s - 0.01, usual_s=usual_s)
    assert swarm.verdicts(0.0) == {}
    swarm.report(1, busy_s=most_s - 1e-9, usual_s=usual_s)
    assert list(swarm.verdicts(0.0)) == [1]
    usual = f"which usually takes {usual_s:.2g} s" if usual_s else "and nobody knows how long it takes"
    assert swarm.verdicts(0.0)[1] == f"stuck: busy with one task for {most_s:.1f} s, {usual}"


def test_a_session_is_named_once_however_many_reasons_there_are(swarm):
    record = swarm.roster.records[1]
    record.gone_at_s = 0.0
    reasons = [reason for session, reason in swarm.judge.verdicts(SILENCE_S + 1.0) if session == 1]
    assert reasons == ["silent for 7.0 s"]


# -- accusations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accusations", "verdict"),
    [
        ({"w0": (4,)}, 1),
        ({"b0": (1,)}, 1),
        ({"w1": (5,)}, 5),
        ({"w0": (4,), "w1": (4,)}, 4),
        ({"w0": (4, 5)}, 1),
        ({"b0": (1,), "b1": (1,), "w0": (4,)}, 1),
        ({"b0": (1,), "b1": (3,)}, 3),
        ({"w0": (99,)}, None),
        ({"w0": ()}, None),
    ],
    ids=[
        "of equals one of a stage with several",
        "though it is the accused",
        "else the accused",
        "whom two accuse",
        "who accuses two",
        "part of the most pairs",
        "of equal pairs the youngest accused",
        "one that has left",
        "nobody",
    ],
)
def test_which_end_of_a_pair_goes(swarm, accusations, verdict):
    swarm.accuse(now=1.0, **accusations)
    assert list(swarm.verdicts(1.0)) == ([] if verdict is None else [verdict])


def test_of_two_ends_the_one_goes_that_the_trainer_has_not_heard_either(swarm):
    """The last broker of its stage was cut off, and one worker after the other that did not reach it was given up."""
    swarm.hear_all(QUIET_S)
    swarm.roster.records[4].heard_at_s = 0.0
    swarm.accuse(now=QUIET_S, w0=(4,))
    assert list(swarm.verdicts(QUIET_S)) == [1], "4 may have spoken just so lately"
    for heard_s in (10.0, 40.0):
        at_s = heard_s + QUIET_S + TINY_S
        swarm.hear_all(at_s)
        swarm.roster.records[4].heard_at_s = heard_s
        swarm.accuse(now=at_s, w0=(4,))
        assert list(swarm.verdicts(at_s)) == [4]
    swarm.roster.register(register("b2", role=Role.BROKER, stage=0), Address("sim://b2"), at_s)[0].report = 1
    swarm.roster.remove(4, at_s)
    assert swarm.judge.keeps_out(register("b0", role=Role.BROKER, nonce=2), at_s, is_gathering=False), "the second time"


def test_who_is_part_of_more_pairs_goes_though_another_one_is_quiet(swarm):
    """One heartbeat that comes late is less than two that accuse."""
    swarm.hear_all(QUIET_S)
    swarm.roster.records[4].heard_at_s = -TINY_S
    swarm.accuse(now=QUIET_S, w0=(4,), b1=(1,))
    assert list(swarm.verdicts(QUIET_S)) == [1]


def test_the_reason_names_the_other_end(swarm):
    swarm.accuse(now=1.0, w1=(4,))
    assert swarm.verdicts(1.0) == {4: "cut off: it and w1 (stage 1) do not reach each other"}


def test_after_a_verdict_only_fresh_reports_accuse(swarm):
    """What was said before blames others for whom has just been given up; who waits for a new one waits as long."""
    swarm.accuse(now=1.0, b0=(1,), b1=(3,))
    assert list(swarm.verdicts(1.0)) == [3]
    swarm.roster.remove(3, 1.0)
    swarm.hear_all(100.0)
    assert swarm.verdicts(1.0) == {}, "one at a time"
    swarm.accuse(now=1.0 + SILENCE_S, b0=(1,))
    assert swarm.verdicts(1.0 + SILENCE_S) == {}, "that much may be left over from before"
    swarm.accuse(now=1.0 + SILENCE_S + TINY_S, b0=(1,))
    assert list(swarm.verdicts(1.0 + SILENCE_S + TINY_S)) == [1]


def test_who_does_not_hear_the_trainer_is_cut_off_from_it(swarm):
    swarm.verdicts(0.0)
    swarm.hear_all(SILENCE_S)
    swarm.accuse(now=SILENCE_S - TINY_S, b0=(TRAINER,))
    assert swarm.verdicts(SILENCE_S) == {}, "the trainer has just begun, and was not there before"
    swarm.accuse(now=SILENCE_S, b0=(TRAINER,), w1=(TRAINER,), w0=(TRAINER,))
    assert swarm.verdicts(SILENCE_S) == {}, "it may have been late"
    swarm.accuse(now=SILENCE_S + AGAIN_S - TINY_S, b0=(TRAINER,), w1=(TRAINER,), w0=())
    assert swarm.verdicts(SILENCE_S + AGAIN_S) == {}
    swarm.accuse(now=SILENCE_S + AGAIN_S, b0=(TRAINER,), w1=(TRAINER,), w0=(TRAINER,))
    assert swarm.verdicts(SILENCE_S + AGAIN_S) == dict.fromkeys((2, 4), "cut off: it does not hear the trainer")


def test_a_trainer_that_stood_still_gives_nobody_up_for_that(swarm):
    swarm.verdicts(0.0)
    swarm.judge.excuse(100.0)
    swarm.hear_all(100.0)
    for now in (100.0, 100.0 + SILENCE_S - TINY_S):
        swarm.accuse(now=now, b0=(TRAINER,))
        assert swarm.verdicts(now) == {}
    for now in (100.0 + SILENCE_S, 100.0 + SILENCE_S + AGAIN_S):
        swarm.hear_all(now)
        swarm.accuse(now=now, b0=(TRAINER,))
        found = swarm.verdicts(now)
    assert list(found) == [4]


def cut_off(swarm, now: float) -> str:
    """Let worker 3 be given up for a broken link to broker 5; returns why."""
    swarm.accuse(now=now, b1=(3,))
    swarm.hear_all(now)
    return swarm.verdicts(now)[3]


def test_who_is_cut_off_again_and_again_is_let_in_ever_later(swarm):
    again = register("w2", nonce=2, stage=0)
    first, now = limits.FIRST_QUARANTINE_HEARTBEATS * HEARTBEAT_S, 10.0
    assert cut_off(swarm, now) == "cut off: it and b1 (stage 1) do not reach each other"
    assert not swarm.judge.keeps_out(again, now, is_gathering=False), "it may have been an accident"
    for factor in (1, 2, 4):
        now += 20.0
        assert cut_off(swarm, now).endswith(
            f"do not reach each other, again: let in after {factor * first:.0f} s, or where it is needed"
        )
        assert swarm.judge.keeps_out(again, now + factor * first - TINY_S, is_gathering=False)
        assert not swarm.judge.keeps_out(again, now + factor * first, is_gathering=False)
        now += factor * first
    now += limits.FORGIVEN_HEARTBEATS * HEARTBEAT_S + 1.0
    assert "again" not in cut_off(swarm, now)


def test_nobody_is_kept_out_whose_place_is_empty(swarm):
    for now in (10.0, 20.0):
        cut_off(swarm, now)
    again = register("w2", nonce=2, stage=0)
    assert swarm.judge.keeps_out(again, 20.0, is_gathering=False)
    assert not swarm.judge.keeps_out(register("w2", stage=0), 20.0, is_gathering=False), (
        "it is in, and asks what it has asked before"
    )
    assert not swarm.judge.keeps_out(register("w3", nonce=2, stage=0), 20.0, is_gathering=False)
    fresh = register("w2", nonce=2)
    assert swarm.judge.keeps_out(fresh, 20.0, is_gathering=False)
    swarm.roster.records[2].is_ready = False
    assert not swarm.judge.keeps_out(fresh, 20.0, is_gathering=False), "whoever is in stage 1 has no parameters"
    swarm.roster.records[2].is_ready = True
    swarm.roster.remove(1, 20.0)
    swarm.roster.remove(3, 20.0)
    assert not swarm.judge.keeps_out(again, 20.0, is_gathering=False)


def test_who_never_says_a_word_after_it_was_let_in_is_cut_off_too(swarm):
    """It reaches the trainer, and does not hear it: it would be let in and given up every few heartbeats."""
    swarm.roster.records[3].report = 0
    for now in (SILENCE_S + TINY_S, SILENCE_S + 1.0):
        found = swarm.verdicts(now)
    assert "again" not in found[1]
    assert found[3].endswith("let in after 8 s, or where it is needed")


def test_an_own_stall_is_excused(swarm):
    """The trainer had not been running: it would have given up everybody whose connection broke or who was silent."""
    swarm.roster.records[2].gone_at_s = 0.0
    swarm.roster.excuse(100.0)
    assert swarm.verdicts(100.0 + GONE_S - TINY_S) == {}
    assert list(swarm.verdicts(100.0 + GONE_S)) == [2]
    assert len(swarm.verdicts(100.0 + SILENCE_S + TINY_S)) == 5


# -- needed elsewhere --------------------------------------------------------------------------------


def test_a_stage_that_has_had_nobody_for_long_gets_somebody_of_the_stage_that_has_most(swarm):
    """Whoever is given up begins a new life, and goes where the fewest are: nobody moves otherwise."""
    swarm.roster.remove(2, 0.0)
    assert swarm.verdicts(1.0) == {}
    swarm.hear_all(1.0 + EMPTY_S)
    assert swarm.verdicts(1.0 + EMPTY_S - TINY_S) == {}
    assert swarm.verdicts(1.0 + EMPTY_S) == {3: "stage 1 has no worker left: it is needed there"}
    swarm.hear_all(1.0 + 2 * EMPTY_S)
    assert swarm.verdicts(1.0 + 2 * EMPTY_S - TINY_S) == {}, "one at a time"


def test_a_stage_without_any_broker_gets_one_sooner(swarm):
    """Nobody waits for what a broker that is out has kept; for one that has not spoken yet, everybody does."""
    swarm.roster.register(register("b2", role=Role.BROKER, stage=0), Address("sim://b2"), 0.0)[0].report = 1
    swarm.roster.records[5].report = 0
    swarm.verdicts(0.0)
    out_s = EMPTY_S - TINY_S
    swarm.hear_all(out_s)
    assert swarm.verdicts(out_s) == {}
    swarm.roster.remove(5, out_s)
    assert swarm.verdicts(out_s) == {}
    swarm.hear_all(out_s + NO_BROKER_S)
    assert swarm.verdicts(out_s + NO_BROKER_S - TINY_S) == {}
    assert swarm.verdicts(out_s + NO_BROKER_S) == {6: "stage 1 has no broker left: it is needed there"}
    swarm.hear_all(out_s + 2 * NO_BROKER_S)
    assert swarm.verdicts(out_s + 2 * NO_BROKER_S - TINY_S) == {}, "one at a time"


@pytest.mark.parametrize(("silent_s", "lent"), [(NO_BROKER_S, [6]), (NO_BROKER_S - TINY_S, [])])
def test_nobody_waits_once_more_for_a_broker_that_was_silent(swarm, silent_s, lent):
    """Of five seconds in which all stood still two were for one that had not spoken for three."""
    swarm.roster.register(register("b2", role=Role.BROKER, stage=0), Address("sim://b2"), 0.0)[0].report = 1
    swarm.verdicts(0.0)
    swarm.hear_all(silent_s)
    swarm.roster.records[5].heard_at_s = 0.0
    swarm.roster.remove(5, silent_s)
    assert list(swarm.verdicts(silent_s)) == lent


def test_a_stage_does_not_lend_the_only_broker_that_is_heard(swarm):
    """The other one was dead, and not given up yet."""
    swarm.roster.register(register("b2", role=Role.BROKER, stage=0), Address("sim://b2"), 0.0)[0].report = 1
    swarm.roster.remove(5, 0.0)
    swarm.verdicts(0.0)
    now = NO_BROKER_S + TINY_S
    swarm.hear_all(now)
    swarm.roster.records[4].heard_at_s = now - QUIET_S - TINY_S
    assert swarm.verdicts(now) == {}
    swarm.roster.records[4].heard_at_s = now - QUIET_S
    assert list(swarm.verdicts(now)) == [6]


def test_who_has_gone_where_it_is_needed_has_time_to_speak(swarm):
    swarm.roster.register(register("b2", role=Role.BROKER, stage=0), Address("sim://b2"), 0.0)[0].report = 1
    swarm.roster.register(register("b3", role=Role.BROKER), Address("sim://b3"), 0.0, place=0)[0].report = 1
    swarm.roster.records[5].report = 0
    swarm.verdicts(0.0)
    swarm.roster.remove(5, 1.0)
    swarm.verdicts(1.0)
    swarm.hear_all(1.0 + NO_BROKER_S)
    assert list(swarm.verdicts(1.0 + NO_BROKER_S)) == [7]
    swarm.roster.remove(7, 1.0 + NO_BROKER_S)
    swarm.roster.register(register("b3", role=Role.BROKER, nonce=2, stage=1), Address("sim://b3"), 1.0 + NO_BROKER_S)
    swarm.hear_all(1.0 + NO_BROKER_S + EMPTY_S)
    assert swarm.verdicts(1.0 + NO_BROKER_S + EMPTY_S - TINY_S) == {}


def test_the_last_one_of_a_stage_stays(swarm):
    """There would be as many stages without anybody as before. Workers are no brokers."""
    swarm.roster.remove(5, 0.0)
    swarm.verdicts(0.0)
    swarm.hear_all(10 * EMPTY_S)
    assert swarm.verdicts(10 * EMPTY_S) == {}


def test_a_stage_that_gets_somebody_in_time_needs_nobody(swarm):
    swarm.roster.remove(2, 0.0)
    swarm.verdicts(0.0)
    swarm.roster.register(register("w9", stage=1), Address("sim://w9"), 1.0)[0].report = 1
    swarm.verdicts(1.0)
    swarm.roster.remove(6, 2.0)
    swarm.verdicts(2.0)
    swarm.hear_all(EMPTY_S + 2.0)
    assert swarm.verdicts(EMPTY_S + 2.0 - TINY_S) == {}
    assert list(swarm.verdicts(EMPTY_S + 2.0)) == [3]


def test_an_own_stall_does_not_make_anybody_needed(swarm):
    swarm.roster.remove(2, 0.0)
    swarm.verdicts(0.0)
    swarm.judge.excuse(100.0)
    swarm.hear_all(100.0 + EMPTY_S)
    assert swarm.verdicts(100.0 + EMPTY_S - TINY_S) == {}
    assert list(swarm.verdicts(100.0 + EMPTY_S)) == [3]
