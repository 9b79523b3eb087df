"""What is copied, in case that somebody is lost: of whom, at whom, and whose it is then."""

from __future__ import annotations

from typing import Any

import pytest

from tests.letters import of_type, stop
from tests.trainer.swarm import FULL, Trainer, to, written
from zswarm.ids import Leaving
from zswarm.machine import Send
from zswarm.messages import Inherit, View


@pytest.fixture
def copied() -> Trainer:
    """Two workers at stage 0, sessions 1 and 5; the second holds a copy of what the first had counted a while ago."""
    trainer = Trainer.of_three(backup_every_s=2.0)
    trainer.report(1, 0b0011)
    assert to(trainer.live(1.0), Inherit) == []
    assert "sim://5" in to(trainer.live(2.0), Inherit)
    trainer.report(5, inherits=(1, 0b0011))
    return trainer


def lose(trainer: Trainer, session: int = 1) -> dict[str, Any]:
    (record,) = leaves(trainer.get(stop(session)))
    return record


def leaves(commands: list[Any]) -> list[dict[str, Any]]:
    return [record for record in written(commands) if record["event"] == "leave"]


def orders(commands: list[Any]) -> list[Send]:
    return [command for command in commands if isinstance(command, Send) and isinstance(command.message, Inherit)]


def test_what_a_copy_has_of_a_lost_worker_is_the_heirs(copied):
    copied.report(1, 0b0111)
    record = lose(copied)
    assert (record["heir"], record["left"], record["lost"]) == (5, [0, 1], 1)
    assert copied.machine.roster.bequests == {1: (5, 0b0011)}
    (told,) = {view.left for view in of_type(copied.log, View) if view.bequests}
    assert told == b"\x03"
    after = copied.again()
    assert after.machine.roster.bequests == {1: (5, 0b0011)}


def test_a_copy_is_made_again_when_there_is_more(copied):
    copied.live(1.0)
    copied.report(5, inherits=(1, 0b0011))
    assert of_type(copied.live(3.0), Inherit) == [], "there is nothing new"
    copied.report(1, 0b0111)
    assert {send.message.ledger for send in orders(copied.live(3.0))} == {b"\x07"}


def test_what_a_void_has_made_worthless_is_copied_again(copied):
    copied.report(5)
    assert of_type(copied.live(3.0), Inherit)


def test_nothing_is_left_while_something_is_voided(copied):
    """The heir may have answered, and given its copy up."""
    replays = copied.machine.supply.replays
    replays.wave = None
    replays.demand(0b1000)
    replays.look(admitted=FULL, own=FULL, now=copied.now_s)
    assert replays.is_voiding
    assert "heir" not in lose(copied)


def test_what_is_in_a_round_that_goes_on_is_left_to_nobody(copied):
    """All of it have prepared: the commit counts what the lost one has given to the others."""
    copied.report(5, 0b1100, inherits=(1, 0b0011))
    copied.prepare(1, 0b0011, step=0)
    copied.prepare(5, 0b1100, step=0)
    assert "heir" not in lose(copied)
    assert copied.machine.committer.is_open(0)


def test_what_is_in_a_round_that_cannot_go_on_is_left(copied):
    copied.report(5, 0b1100, inherits=(1, 0b0011))
    copied.prepare(1, 0b0011, step=0)
    assert lose(copied)["heir"] == 5


def test_who_has_counted_what_another_one_has_leaves_nothing(copied):
    """What is in its copy is just what nobody may count."""
    commands = copied.report(5, 0b0001, inherits=(1, 0b0011))
    assert [(record["session"], "heir" in record) for record in leaves(commands)] == [(5, False)]
    copied.join("w3", stage=0)
    copied.report(6, 0b1000, inherits=(1, 0b0011))
    commands = copied.report(1, 0b1011)
    assert [(record["session"], "heir" in record) for record in leaves(commands)] == [(1, False)]


@pytest.fixture
def three() -> Trainer:
    """Three workers at stage 0, sessions 1, 5 and 6; 5 holds a copy of what 1 had counted a while ago."""
    trainer = Trainer(backup_every_s=2.0)
    trainer.gather()
    for name in ("w2", "w3"):
        trainer.join(name, stage=0)
    trainer.report(6)
    trainer.report(1, 0b0001)
    trainer.report(5, inherits=(1, 0b0001))
    return trainer


def test_of_several_copies_the_best_is_left(three):
    three.report(1, 0b0111)
    three.report(6, inherits=(1, 0b0011))
    record = lose(three)
    assert (record["heir"], record["left"], record["lost"]) == (6, [0, 1], 1)


def test_an_older_copy_keeps_no_leaver_back(three):
    """Its heir is another one than who has the copy: the leaver stayed until its time was up."""
    three.report(1, 0b0011, leaving=Leaving.IDLE)
    commands = three.report(6, inherits=(1, 0b0011))
    assert [(record["session"], record["reason"], record["heir"]) for record in leaves(commands)] == [(1, "drained", 6)]


def test_who_is_silent_is_nobodys_heir(three):
    """Both may have been on one machine."""
    three.says.pop(5)
    three.live(2.0)
    assert "heir" not in lose(three)


def test_one_heir_is_asked_for_one_share_at_a_time(three):
    """Two owners' orders took turns, and each had the heir give up what it was getting for the other."""
    three.report(5, 0b0100, inherits=(1, 0b0001))
    asked = {send.message.owner for send in orders(three.live(3.0)) if send.peer == "sim://6"}
    assert asked == {5}
    three.report(1, 0b0011, leaving=Leaving.IDLE)
    asked = {send.message.owner for send in orders(three.live(3.0)) if send.peer == "sim://6"}
    assert len(asked) <= 1


def test_each_holds_a_copy_of_one_share_and_none_of_its_own():
    trainer = Trainer(backup_every_s=0.0)
    trainer.gather()
    for name in ("w2", "w3"):
        trainer.join(name, stage=0)
    for session, counted in ((1, 0b0001), (5, 0b0010), (6, 0b0100)):
        trainer.report(session, counted)
    trainer.live(2.0)
    assert {(send.message.owner, send.peer) for send in orders(trainer.log)} == {
        (1, "sim://5"),
        (5, "sim://6"),
        (6, "sim://1"),
    }


def test_a_copy_is_on_another_machine_if_there_is_one():
    trainer = Trainer(backup_every_s=0.0)
    trainer.gather()
    for session, node in enumerate(("lab1:a", "lab1:b", "lab2:c"), 5):
        trainer.join(node, stage=0)
        trainer.report(session)
    trainer.report(5, 0b0001)
    assert {send.peer for send in orders(trainer.live(1.0))} == {"sim://7"}


def test_copies_are_made_once_workers_get_lost():
    trainer = Trainer()
    trainer.gather()
    for name in ("w2", "w3"):
        trainer.join(name, stage=0)
    for session in (1, 5, 6):
        trainer.report(session, 0b0001 if session == 1 else 0, job_s=1.0)
    trainer.report(2, job_s=0.1)
    trainer.live(30.0)
    lose(trainer, 6)
    assert orders(trainer.live(5.0)) == [], "one loss says nothing of the next"
    trainer.join("w3", stage=0)
    lose(trainer, 7)
    assert orders(trainer.live(10.0))


def test_a_stage_that_waits_for_a_slower_one_copies_after_the_first_loss():
    trainer = Trainer()
    trainer.gather()
    for session, name in ((5, "w2"), (6, "w3")):
        trainer.join(name, stage=0)
        trainer.report(session)
    trainer.report(1, 0b0001)
    assert orders(trainer.live(30.0)) == []
    lose(trainer, 6)
    assert orders(trainer.live(5.0))


def test_without_losses_nothing_is_copied():
    trainer = Trainer.of_three()
    trainer.report(1, 0b0011)
    assert of_type(trainer.live(500.0), Inherit) == []
