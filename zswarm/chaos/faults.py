"""Which process is killed or frozen when: drawn from a seed, without a look at any process."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

FREEZE_LEAST_S = 0.3
FREEZE_MOST_S = 6.0
"""Twice the silence after which a process is given up: some of the frozen come back in time and some do not."""


class Kind(StrEnum):
    """What is done to a process."""

    KILL = "kill"
    FREEZE = "freeze"
    """It is stopped, and goes on after a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault that is to come; whom it hits is decided among those who live then."""

    wait_s: float
    """After the fault before it."""
    kind: Kind
    freeze_s: float
    """How long a process is frozen."""
    chance: float
    """Picks the process: from 0 to 1, without 1."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault that was done."""

    at_s: float
    """On the clock of who did it, as `until_s`."""
    kind: Kind
    name: str
    session: int | None
    """That the process had; None if it had not joined, as a trainer never does."""
    until_s: float | None = None
    """When a frozen process went on."""

    @property
    def role(self) -> str:
        """Which part the process plays."""
        return role_of(self.name)


def draw(count: int, *, seed: int, mean_wait_s: float, kinds: Sequence[Kind] = tuple(Kind)) -> list[Planned]:
    """Return so many faults of some kinds; the waits between them are exponential: none of them follows from the last."""
    random = Random(seed)
    return [
        Planned(
            wait_s=random.expovariate(1 / mean_wait_s),
            kind=random.choice(kinds),
            freeze_s=random.uniform(FREEZE_LEAST_S, FREEZE_MOST_S),
            chance=random.random(),
        )
        for _ in range(count)
    ]


def choose(planned: Planned, names: Collection[str]) -> str | None:
    """Return the process that the fault hits, None if there is none; each of them is as likely."""
    ordered = sorted(names)
    return ordered[int(planned.chance * len(ordered))] if ordered else None


def role_of(name: str) -> str:
    """Return "worker" of "worker-3"."""
    return name.partition("-")[0]


def of_roles(names: Collection[str], roles: Sequence[str]) -> set[str]:
    """Return those that play one of the roles."""
    return {name for name in names if role_of(name) in roles}
