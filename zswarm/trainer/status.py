"""What the trainer says of itself to whoever looks after its process."""

from __future__ import annotations

from zswarm.ids import Role
from zswarm.machine import Health
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import CoordinatorSettings


def health(coordinator: Coordinator, settings: CoordinatorSettings) -> Health:
    """Say how the run is going; a trainer whose loop turns is well, whatever it waits for."""
    members = coordinator.roster.records.values()
    num_workers = sum(record.role is Role.WORKER for record in members)
    there = f"{num_workers} workers and {len(members) - num_workers} brokers"
    step = f"step {coordinator.committer.step} of {settings.steps}"
    match coordinator.phase:
        case Phase.GATHERING:
            needed = settings.num_stages * settings.workers_per_stage, settings.num_stages * settings.brokers_per_stage
            return Health(text=f"gathering: {there} of {needed[0]} and {needed[1]}")
        case Phase.TRAINING:
            return Health(text=f"{step}, {there}")
        case Phase.COLLECTING:
            return Health(text=f"{step}, fetching the model")
        case Phase.CLOSING:
            return Health(text=f"{step}, closing")
