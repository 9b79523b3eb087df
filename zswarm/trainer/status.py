"""What the trainer says of itself to whoever looks after its process."""

from __future__ import annotations

from zswarm.ids import Role, Stage
from zswarm.machine import Health
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import CoordinatorSettings

TELL_EVERY_S = 10.0
"""Between two words to the user on whom the run waits for."""
VACANT_HEARTBEATS = 3.0
"""How long a stage that nobody is in is no news: who is started again, or given to it by another stage, takes less."""


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


class Vacancies:
    """Tells the user which stages have nobody of a role while the run trains: once, and once that they have somebody again."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        self._settings = settings
        self._look_at_s = float("-inf")
        self._empty_since_s: dict[tuple[Role, Stage], float] = {}
        self._told: set[tuple[Role, Stage]] = set()

    def words(self, coordinator: Coordinator, now: float) -> list[str]:
        """Return what is to be said."""
        if now < self._look_at_s:
            return []
        self._look_at_s = now + self._settings.heartbeat_s / 2
        if coordinator.phase not in {Phase.TRAINING, Phase.COLLECTING}:
            self._empty_since_s.clear()
            self._told.clear()
            return []
        return [text for role in Role for text in self._words(coordinator, role, now)]

    def _words(self, coordinator: Coordinator, role: Role, now: float) -> list[str]:
        empty, filled = [], []
        for stage in map(Stage, range(self._settings.num_stages)):
            place = (role, stage)
            if coordinator.roster.of(role, stage):
                self._empty_since_s.pop(place, None)
                filled += [stage] if place in self._told else []
                self._told.discard(place)
            elif now - self._empty_since_s.setdefault(place, now) >= VACANT_HEARTBEATS * self._settings.heartbeat_s:
                empty += [stage] if place not in self._told else []
                self._told.add(place)
        each = " each" if len(empty) > 1 else ""
        said = [f"{_stages(empty)} no {role.value}: waiting for one{each}"] if empty else []
        return said + ([f"{_stages(filled)} a {role.value} again"] if filled else [])


def _stages(stages: list[Stage]) -> str:
    """Begin a sentence about these stages, such as "stages 0, 1 and 2 have"."""
    *others, last = map(str, stages)
    return f"stages {', '.join(others)} and {last} have" if others else f"stage {last} has"
