"""What is recalled of the next step is held back while something of the present one waits for room."""

from __future__ import annotations

import pytest

from tests.letters import broker_heartbeat, credit, header, heartbeat, load, of_type, register
from tests.trainer.settings import settings
from zswarm.ids import Address, Role
from zswarm.messages import Void
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Append, Sample, Sampled
from zswarm.trainer.supply import Supply

WORKER, BROKER = 1, 2
FULL = 0b1111


class Fixture:
    """A run of two steps of four microbatches with one stage; all but the first two of step 1 are let in."""

    def __init__(self, **of: int) -> None:
        run = settings(layers_per_stage=(1,), steps=2, **({"window": 6} | of))
        self.roster = Roster(num_stages=1, first_session=1)
        self.roster.register(register("w"), Address("sim://w"), 0.0)
        self.roster.register(register("b", role=Role.BROKER), Address("sim://b"), 0.0)
        self.committer = Committer(run, self.roster, header())
        self.supply = Supply(run, self.roster, self.committer, header(), random=lambda: 0.0)
        self.supply.adopt_brokers(0.0)
        self.num_reports = 0
        self.draw(self.supply.admit(0.0))

    def draw(self, commands):
        for sample in of_type(commands, Sample):
            of = {"purpose": sample.purpose, "step": sample.step, "microbatch": sample.microbatch}
            self.supply.sampled(Sampled(**of, load=load("x")), 0.0)
        return commands

    def report(self, now, *, step=0, voided=0):
        self.num_reports += 1
        of = {"step": step, "voided": voided, "view": self.roster.view}
        self.roster.records[WORKER].note(heartbeat(WORKER, self.num_reports, **of), now)
        self.roster.records[BROKER].note(broker_heartbeat(BROKER, self.num_reports, **of), now)

    def recall(self):
        """Nobody takes anything of step 0 for a whole heartbeat; returns what is asked of the others then."""
        self.supply.beat(0.0)
        return self.supply.beat(1.0)

    def waiting(self) -> set[tuple[int, int]]:
        return {(key[1], key[3]) for _, key in self.supply.outbox.pending()}


@pytest.fixture
def trainer():
    return Fixture()


def replays(commands) -> list[tuple[int, list[int]]]:
    records = [command.record for command in commands if isinstance(command, Append)]
    return [(record["step"], record["microbatches"]) for record in records]


def test_what_waits_for_a_heartbeat_has_the_next_step_recalled(trainer):
    assert of_type(trainer.supply.beat(0.0), Void) == [], "it may be on its way"
    voids = of_type(trainer.supply.beat(1.0), Void)
    assert {(message.step, message.ledger) for message in voids} == {(1, b"\x03")}
    assert trainer.waiting() == {(0, 0), (0, 1), (0, 2), (0, 3)}


def test_what_was_recalled_is_let_in_when_nothing_waits_any_more(trainer):
    trainer.recall()
    trainer.report(1.0, voided=1)
    assert replays(trainer.supply.replay()) == []
    assert of_type(trainer.supply.beat(2.0), Void) == [], "it has been recalled"
    assert of_type(trainer.supply.beat(3.0), Void) == []
    trainer.supply.outbox.update_room(BROKER, credit(BROKER, 400).room, 3.0)
    assert replays(trainer.supply.replay()) == [(1, [0, 1])]
    assert replays(trainer.supply.replay()) == [], "once"


def test_what_is_held_back_goes_in_when_its_step_has_come_and_is_not_lost(trainer):
    """It was let in again as another attempt, and then once more: two brokers could have had the same attempt."""
    trainer.recall()
    trainer.report(1.0, voided=1)
    trainer.supply.replay()
    trainer.committer.step = 1
    trainer.supply.committed(0)
    trainer.draw(trainer.supply.admit(1.0))
    assert trainer.waiting() == {(1, 2), (1, 3)}
    trainer.supply.look(1.0)
    trainer.report(9.0, step=1, voided=1)
    assert trainer.supply.look(9.0) == []
    assert replays(trainer.draw(trainer.supply.replay())) == [(1, [0, 1])]
    assert trainer.waiting() == {(1, 0), (1, 1), (1, 2), (1, 3)}


def test_after_going_back_nothing_is_held_back(trainer):
    trainer.recall()
    trainer.report(1.0, voided=1)
    trainer.supply.replay()
    trainer.committer.roll_back(0)
    trainer.supply.roll_back(1, 0)
    assert trainer.waiting() == set()
    assert replays(trainer.supply.replay()) == []


def test_what_is_with_somebody_who_is_silent_keeps_no_others_out():
    """Half the window was with a machine that was frozen, until it was given up."""
    trainer = Fixture(window=0, num_microbatches=8)
    assert len(trainer.waiting()) == 2
    trainer.report(1.0)
    trainer.roster.records[BROKER].pending = 0b01
    for record in trainer.roster.records.values():
        record.heard_at_s = 1.0
    trainer.draw(trainer.supply.admit(2.0))
    assert len(trainer.waiting()) == 2, "a heartbeat may be late"
    trainer.roster.records[WORKER].heard_at_s = 2.0
    trainer.draw(trainer.supply.admit(2.6))
    assert len(trainer.waiting()) == 3


def test_a_window_that_is_set_is_kept():
    trainer = Fixture(window=2, num_microbatches=8)
    trainer.report(1.0)
    trainer.roster.records[BROKER].pending = 0b11
    trainer.draw(trainer.supply.admit(9.0))
    assert len(trainer.waiting()) == 2
