from __future__ import annotations

from tests.trainer.swarm import Trainer
from zswarm.machine import Health
from zswarm.trainer.settings import Interrupted
from zswarm.trainer.status import TELL_EVERY_S, Patience, health


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
