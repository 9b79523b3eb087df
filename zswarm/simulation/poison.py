"""Microbatches at which a layer raises, in the hands of so many workers and of nobody else."""

from __future__ import annotations

from dataclasses import dataclass

from zswarm.ids import Purpose, Stage
from zswarm.messages import Key

Place = tuple[int, int, int]
"""(step, microbatch, stage)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """The first `num_workers` of the stage that do something with this microbatch fail, each time that they try."""

    step: int
    microbatch: int
    stage: int
    num_workers: int


class Poisons:
    """See the module. One for the whole swarm, so that it knows who has failed."""

    def __init__(self, poisons: tuple[Poison, ...]) -> None:
        self._most: dict[Place, int] = {(p.step, p.microbatch, p.stage): p.num_workers for p in poisons}
        self.failed: dict[Place, list[str]] = {}
        """Who has failed, each time. A process that begins a new life fails again."""

    @property
    def num_failures(self) -> int:
        """How often a layer has raised."""
        return sum(map(len, self.failed.values()))

    def raises(self, name: str, stage: Stage, key: Key) -> bool:
        """Does a layer raise when this worker does something with this microbatch?"""
        _, step, purpose, microbatch, _ = key
        place = (step, microbatch, stage)
        most = self._most.get(place)
        if most is None or purpose is not Purpose.TRAIN:
            return False
        failed = self.failed.setdefault(place, [])
        if name not in failed and len(set(failed)) >= most:
            return False
        failed.append(name)
        return True
