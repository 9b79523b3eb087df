from __future__ import annotations

import pytest

from tests.trainer.swarm import Trainer
from zswarm.ids import Role
from zswarm.machine import Health
from zswarm.trainer.settings import Interrupted
from zswarm.trainer.status import TELL_EVERY_S, VACANT_HEARTBEATS, Patience, Vacancies, health


def test_a_trainer_says_how_far_the_run_is():
    trainer = Trainer()

    def said() -> Health:
        return health(trainer.machine, trainer.settings)

    trainer.join("w0")
    assert said() == Health(text="gathering: 1 of 2 workers and 0 of 2 brokers are here")
    trainer.gather()
    assert said() == Health(text=f"step 0 of {trainer.settings.steps}, 2 workers and 2 brokers")
    trainer.do(Interrupted())
    assert said() == Health(text=f"step 0 of {trainer.settings.steps}, closing")


def test_the_user_hears_every_few_seconds_whom_the_run_waits_for():
    trainer = Trainer()
    patience = Patience(trainer.settings, now=5.0)
    trainer.join("w0")
    words = [patience.word(trainer.machine, 5.0 + TELL_EVERY_S * tenth / 10) for tenth in range(31)]
    assert [index for index, word in enumerate(words) if word] == [10, 20, 30]
    assert words[10] == "not begun yet, gathering: 1 of 2 workers and 0 of 2 brokers are here"
    trainer.gather()
    assert patience.word(trainer.machine, 100.0) == ""


class Hearing:
    """What a user hears of vacancies, with the time of each word, while the clock of a trainer goes on by half heartbeats."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.vacancies = Vacancies(trainer.settings)

    def live(self, duration_s: float) -> list[tuple[float, str]]:
        said: list[tuple[float, str]] = []
        for _ in range(round(2 * duration_s)):
            self.trainer.live(0.5)
            now = self.trainer.now_s
            said += [(now, text) for text in self.vacancies.words(self.trainer.machine, now)]
            assert self.vacancies.words(self.trainer.machine, now) == [], "it is said once"
        return said

    def loses(self, *sessions: int) -> float:
        """Processes whose connections are lost; returns when they are given up."""
        for session in sessions:
            del self.trainer.says[session]
        while any(session in self.trainer.machine.roster.records for session in sessions):
            assert self.live(0.5) == []
        return self.trainer.now_s


def test_a_stage_without_a_worker_is_told_once_and_that_it_has_one_again():
    """Nothing was said once the run had begun: it stood still without a word on what it waited for."""
    trainer = Trainer()
    hearing = Hearing(trainer)
    assert hearing.live(2 * VACANT_HEARTBEATS) == [], "it is gathering"
    trainer.gather()
    assert hearing.live(2 * VACANT_HEARTBEATS) == []
    gone_s = hearing.loses(2)
    ((told_s, text),) = hearing.live(20.0)
    assert text == "stage 1 has no worker: waiting for one"
    assert told_s - gone_s == VACANT_HEARTBEATS
    trainer.join("w1", nonce=2, stage=1)
    assert [text for _, text in hearing.live(5.0)] == ["stage 1 has a worker again"]


@pytest.fixture
def hearing():
    """The user of a run that has begun."""
    trainer = Trainer()
    trainer.gather()
    return Hearing(trainer)


def test_a_stage_that_soon_has_somebody_again_is_no_news(hearing):
    hearing.loses(2)
    assert hearing.live(VACANT_HEARTBEATS - 0.5) == []
    hearing.trainer.join("w1", nonce=2, stage=1)
    assert hearing.live(1.0) == []


def test_several_stages_are_told_in_one_sentence_for_workers_and_one_for_brokers(hearing):
    hearing.loses(1, 2, 3, 4)
    said = [text for _, text in hearing.live(5.0)]
    assert said == [
        "stages 0 and 1 have no worker: waiting for one each",
        "stages 0 and 1 have no broker: waiting for one each",
    ]
    hearing.trainer.join("b0", Role.BROKER, nonce=2, stage=0)
    assert [text for _, text in hearing.live(1.0)] == ["stage 0 has a broker again"]


def test_of_a_run_that_ends_nobody_is_missed(hearing):
    hearing.loses(2)
    hearing.trainer.do(Interrupted())
    assert hearing.live(10.0) == []
