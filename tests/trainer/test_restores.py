"""Who is told to get its stage's state from whom, and when a stage's state is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.letters import commit, header, heartbeat, of_type, register, restore
from tests.trainer.settings import recovered_member, settings
from zswarm import limits
from zswarm.ids import TRAINER, Address, Leaving, Role
from zswarm.machine import Send
from zswarm.messages import Restore, Source
from zswarm.trainer.commit import Committer
from zswarm.trainer.restores import Restorer
from zswarm.trainer.roster import Roster

A, B, C, D = 1, 2, 3, 4
"""Workers of stage 0, 1, 0, 0."""
STEP = 5
HEARTBEAT_S = 2.0
EMPTY_S = limits.EMPTY_STAGE_HEARTBEATS * HEARTBEAT_S
TINY_S = 1e-6
ROUND = 77


class Fixture:
    """A swarm at step 5, the last commit of which was that of step 4; everybody is ready."""

    def __init__(self, *, step: int = STEP) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for node, stage in (("a", 0), ("b", 1), ("c", 0), ("d", 0)):
            self.roster.register(register(node, stage=stage), Address(f"sim://{node}"), 0.0)
        self.committer = Committer(settings(), self.roster, header())
        self.committer.step = step
        if step:
            self.committer._commits = {stage: commit(ROUND + stage, step=step - 1) for stage in range(2)}
        self.restorer = Restorer(self.roster, self.committer, header(), heartbeat_s=HEARTBEAT_S)
        self.num_reports = 0
        for session in (A, B, C, D):
            self.report(session)

    def report(self, session, *, step=None, **of):
        self.num_reports += 1
        step = self.committer.step if step is None else step
        self.roster.records[session].note(heartbeat(session, self.num_reports, step=step, **of), 0.0)

    def orders(self, now=0.0, *, checkpoint_step=None) -> list[tuple[str, Restore]]:
        sends = self.restorer.orders(now, checkpoint_step=checkpoint_step)
        assert all(isinstance(send, Send) for send in sends)
        return [(send.peer, send.message) for send in sends]

    def donors(self, now=0.0, **of) -> dict[str, int]:
        return {peer: message.donor for peer, message in self.orders(now, **of)}

    def lost(self, now, *, checkpoint_step=None):
        return self.restorer.lost_stage(now, checkpoint_step=checkpoint_step)


@pytest.fixture
def swarm():
    return Fixture()


# -- who needs state ---------------------------------------------------------------------------------


def test_nobody_is_told_anything_while_all_are_ready(swarm):
    assert swarm.orders() == []


@pytest.mark.parametrize(
    "report",
    [
        {"step": 0, "ready": False},
        {"ready": False},
        {"step": STEP - 1, "prepared": 0},
        {"step": STEP - 1, "prepared": ROUND - 1},
        {"step": STEP - 1, "prepared": ROUND, "ready": False},
        {"step": STEP - 2, "prepared": ROUND},
        {"step": STEP, "branch": 1},
    ],
    ids=[
        "a new one",
        "one that is loading",
        "one that has no result of the last round",
        "one that has another result",
        "one that has a result and not the parameters for it",
        "one that is further behind",
        "another branch",
    ],
)
def test_who_cannot_get_there_by_a_commit_is_told_who_has_the_state(swarm, report):
    swarm.report(C, **report)
    ((peer, order),) = swarm.orders()
    assert (peer, order) == ("sim://c", replace(restore(A, address="sim://a/a", step=STEP), others=order.others))
    assert order.others == (Source(donor=D, address="sim://d/a"),)


def test_who_only_lacks_the_last_commit_does_not(swarm):
    swarm.report(C, step=STEP - 1, prepared=ROUND)
    assert swarm.orders() == []


def test_who_has_not_reported_is_not_told(swarm):
    """It is being built, or it is from the log and may be ready for all that one knows."""
    swarm.roster.register(register("new", stage=0), Address("sim://new"), 0.0)
    swarm.roster.take_over(recovered_member(9, "old"), 0.0)
    assert swarm.orders() == []


# -- from whom ---------------------------------------------------------------------------------------


def test_the_donor_is_of_the_same_stage(swarm):
    swarm.report(B, ready=False)
    assert swarm.orders() == []


def sources(order: Restore) -> tuple[int, ...]:
    return (order.donor, *(source.donor for source in order.others))


def test_several_give_at_once_those_first_who_give_to_the_fewest(swarm):
    """More than MAX_DONORS would gain nothing: here six workers have the state."""
    sessions = [A, C, D]
    for node in ("e", "f", "g"):
        session = swarm.roster.register(register(node, stage=0), Address(f"sim://{node}"), 0.0)[0].session
        swarm.report(session)
        sessions.append(session)
    for node in ("x", "y"):
        session = swarm.roster.register(register(node, stage=0), Address(f"sim://{node}"), 0.0)[0].session
        swarm.report(session, ready=False)
    first, second = (sources(order) for _, order in swarm.orders())
    assert first == tuple(sessions[: limits.MAX_DONORS])
    assert second == (*sessions[limits.MAX_DONORS :], *sessions[:2])


def test_whoever_leaves_gives_only_if_nobody_else_does(swarm):
    swarm.report(C, ready=False)
    swarm.report(A, leaving=Leaving.DRAINING)
    ((_, order),) = swarm.orders()
    assert sources(order) == (D,)
    assert (swarm.restorer.gives(D), swarm.restorer.gives(A)) == (True, False)
    swarm.report(D, leaving=Leaving.DRAINING)
    ((_, order),) = swarm.orders()
    assert sources(order) == (D, A)
    assert swarm.restorer.gives(A)
    swarm.report(C)
    assert not swarm.restorer.gives(A)


def test_donors_are_kept_as_long_as_they_are_able(swarm):
    """What was begun with one would have to begin anew with another."""
    swarm.report(C, ready=False)
    swarm.report(D, ready=False)
    assert {peer: sources(order) for peer, order in swarm.orders()} == {"sim://c": (A,), "sim://d": (A,)}
    swarm.report(D)
    assert {peer: sources(order) for peer, order in swarm.orders()} == {"sim://c": (A, D)}, "at once, for it is news"
    assert swarm.orders() == []
    swarm.roster.remove(A, HEARTBEAT_S)
    assert {peer: sources(order) for peer, order in swarm.orders()} == {"sim://c": (D,)}


def test_a_donor_that_is_not_ready_any_more_is_none(swarm):
    swarm.report(C, ready=False)
    assert swarm.donors() == {"sim://c": A}
    swarm.report(A, step=STEP - 1)
    assert swarm.donors() == {"sim://a": D, "sim://c": D}


def test_where_no_worker_has_it_the_checkpoint_of_that_step_gives(swarm):
    swarm.report(B, ready=False)
    swarm.report(C, ready=False)
    orders = [(peer, of.donor, of.address, of.step) for peer, of in swarm.orders(checkpoint_step=STEP)]
    assert orders == [("sim://b", TRAINER, "", STEP), ("sim://c", A, "sim://a/a", STEP)]


def test_a_checkpoint_of_another_step_gives_nothing(swarm):
    swarm.report(B, ready=False)
    assert swarm.orders(checkpoint_step=STEP - 1) == []


def test_fresh_parameters_are_made_and_not_given():
    """After a rollback to the beginning the layers are made anew, though another worker has made them already."""
    swarm = Fixture(step=0)
    swarm.committer.branch = 1
    swarm.report(A, branch=1)
    swarm.report(B, step=3)
    swarm.report(C, branch=0, ready=False)
    assert [(peer, message.donor, message.address, message.step) for peer, message in swarm.orders()] == [
        ("sim://b", TRAINER, "", 0),
        ("sim://c", TRAINER, "", 0),
        ("sim://d", TRAINER, "", 0),
    ]


# -- how often ---------------------------------------------------------------------------------------


def test_news_is_told_at_once_and_the_rest_once_per_heartbeat(swarm):
    swarm.report(C, ready=False)
    assert swarm.donors(0.0) == {"sim://c": A}
    assert swarm.donors(HEARTBEAT_S - TINY_S) == {}
    assert swarm.donors(HEARTBEAT_S) == {"sim://c": A}
    swarm.committer.step = STEP + 1
    swarm.report(A)
    swarm.report(D)
    (send,) = swarm.orders(HEARTBEAT_S)
    assert send[1].step == STEP + 1, "the donor does not give the state of the step before any more"


def test_who_has_become_ready_and_falls_behind_again_is_told_at_once(swarm):
    swarm.report(C, ready=False)
    assert swarm.donors(0.0) == {"sim://c": A}
    swarm.report(C)
    assert swarm.donors(0.1) == {}
    swarm.report(C, ready=False)
    assert swarm.donors(0.2) == {"sim://c": A}


def test_who_has_left_is_no_load(swarm):
    swarm.report(C, ready=False)
    swarm.orders()
    swarm.roster.remove(C, 0.0)
    swarm.orders()
    swarm.report(D, ready=False)
    session = swarm.roster.register(register("e", stage=0), Address("sim://e"), 0.0)[0].session
    swarm.report(session)
    assert swarm.donors() == {"sim://d": A}, "of equals the oldest"


# -- stages without state ----------------------------------------------------------------------------


def test_a_stage_that_somebody_holds_is_not_lost(swarm):
    assert swarm.lost(1000.0) is None


@pytest.mark.parametrize("step", [0, STEP])
def test_a_stage_that_nobody_ever_held_is_lost_at_once(step):
    """Right after the trainer has started again, with a log and without its workers; not so at step 0."""
    swarm = Fixture(step=step)
    swarm.roster.remove(B, 0.0)
    assert swarm.lost(0.0) == (1 if step else None)


def test_a_stage_that_was_held_has_some_time(swarm):
    """One that was frozen or cut off may still come back with the parameters."""
    swarm.lost(0.0)
    swarm.report(B, ready=False)
    assert swarm.lost(10.0) is None
    assert swarm.lost(10.0 + EMPTY_S - TINY_S) is None
    assert swarm.lost(10.0 + EMPTY_S) == 1


def test_a_stage_that_is_held_again_is_not_lost(swarm):
    swarm.lost(0.0)
    swarm.report(B, ready=False)
    swarm.lost(10.0)
    swarm.report(B)
    assert swarm.lost(19.0) is None
    swarm.report(B, ready=False)
    assert swarm.lost(20.0) is None
    assert swarm.lost(20.0 + EMPTY_S - TINY_S) is None
    assert swarm.lost(20.0 + EMPTY_S) == 1


def test_who_lacks_only_the_last_commit_holds_the_stage(swarm):
    swarm.report(B, step=STEP - 1, prepared=ROUND + 1)
    assert swarm.lost(1000.0) is None


def test_who_holds_the_result_of_another_round_does_not_hold_the_stage(swarm):
    swarm.report(B, step=STEP - 1, prepared=ROUND)
    swarm.lost(1000.0)
    assert swarm.lost(1000.0 + EMPTY_S) == 1, "that round was another stage's"


def test_a_silent_worker_may_hold_the_stage(swarm):
    swarm.roster.remove(B, 0.0)
    swarm.roster.take_over(recovered_member(9, "old", stage=1), 0.0)
    assert swarm.lost(0.0) is None
    assert swarm.lost(1000.0) is None
    swarm.roster.records[9].is_silent = False
    swarm.lost(1000.0)
    assert swarm.lost(1000.0 + EMPTY_S) == 1


def test_a_broker_holds_nothing(swarm):
    swarm.roster.remove(B, 0.0)
    swarm.roster.register(register("broker", role=Role.BROKER, stage=1), Address("sim://broker"), 0.0)
    assert swarm.lost(0.0) == 1


def test_a_checkpoint_of_this_step_holds_every_stage(swarm):
    swarm.lost(0.0)
    swarm.report(B, ready=False)
    swarm.lost(0.0)
    assert swarm.lost(1000.0, checkpoint_step=STEP) is None
    assert swarm.lost(1000.0, checkpoint_step=STEP - 1) is None, "the patience begins anew"
    assert swarm.lost(1000.0 + EMPTY_S, checkpoint_step=STEP - 1) == 1


def test_an_own_stall_is_no_absence(swarm):
    swarm.lost(0.0)
    swarm.report(B, ready=False)
    swarm.lost(0.0)
    swarm.restorer.excuse(100.0)
    assert swarm.lost(100.0 + EMPTY_S - TINY_S) is None
    assert swarm.lost(100.0 + EMPTY_S) == 1


def test_after_a_rollback_everybody_is_told_anew(swarm):
    swarm.lost(0.0)
    swarm.report(C, ready=False)
    swarm.report(B, ready=False)
    assert swarm.donors(0.0) == {"sim://c": A}
    swarm.lost(0.0)
    swarm.restorer.begin()
    assert swarm.donors(0.1) == {"sim://c": A}
    assert swarm.lost(EMPTY_S) is None, "the patience begins anew"
    assert of_type(swarm.restorer.orders(0.1, checkpoint_step=None), Restore) == []
