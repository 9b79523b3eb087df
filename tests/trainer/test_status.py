from __future__ import annotations

from tests.trainer.swarm import Trainer
from zswarm.machine import Health
from zswarm.trainer.settings import Interrupted
from zswarm.trainer.status import health


def test_a_trainer_says_how_far_the_run_is():
    trainer = Trainer()

    def said() -> Health:
        return health(trainer.machine, trainer.settings)

    trainer.join("w0")
    assert said() == Health(text="gathering: 1 workers and 0 brokers of 2 and 2")
    trainer.gather()
    assert said() == Health(text=f"step 0 of {trainer.settings.steps}, 2 workers and 2 brokers")
    trainer.do(Interrupted())
    assert said() == Health(text=f"step 0 of {trainer.settings.steps}, closing")
