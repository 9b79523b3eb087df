"""What the trainer says of itself to whoever looks after its process."""

from __future__ import annotations

from zswarm.ids import Role
from zswarm.machine import Health
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import CoordinatorSettings

TELL_EVERY_S = 10.0
"""Between two words to the user on whom the run waits for."""


def health(coordinator: Coordinator, settings: CoordinatorSettings) -> Health:
    """Say how the run is going; a trainer whose loop turns is well, whatever it waits for."""
    members = coordinator.roster.records.values()
    num_workers = sum(record.role is Role.WORKER for record in members)
    num_brokers = len(members) - num_workers
    there = f"{num_workers} workers and {num_brokers} brokers"
    step = f"step {coordinator.committer.step} of {settings.steps}"
    match coordinator.phase:
        case Phase.GATHERING:
            workers = f"{num_workers} of {settings.num_stages * settings.workers_per_stage} workers"
            brokers = f"{num_brokers} of {settings.num_stages * settings.brokers_per_stage} brokers"
            return Health(text=f"gathering: {workers} and {brokers} are here")
        case Phase.TRAINING:
            return Health(text=f"{step}, {there}")
        case Phase.COLLECTING:
            return Health(text=f"{step}, fetching the model")
        case Phase.CLOSING:
            return Health(text=f"{step}, closing")


class Patience:
    """Tells the user now and then whom a run waits for before its first step."""

    def __init__(self, settings: CoordinatorSettings, now: float) -> None:
        self._settings = settings
        self._next_at_s = now + TELL_EVERY_S

    def word(self, coordinator: Coordinator, now: float) -> str:
        """Return what is to be said, or nothing."""
        if coordinator.phase is not Phase.GATHERING or now < self._next_at_s:
            return ""
        self._next_at_s = now + TELL_EVERY_S
        return f"not begun yet, {health(coordinator, self._settings).text}"
