"""What a mutant is made of, see `zswarm.simulation.mutants`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Method = Callable[..., Any]
Patches = dict[tuple[type, str], Any]
"""(class, name) -> what replaces the method."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken rule, in words, and the patches that break it."""

    breach: str
    patches: Callable[[], Patches]


def nothing(*_: Any, **__: Any) -> list[Any]:
    """Do nothing, whatever is asked."""
    return []


def never(*_: Any) -> None:
    """Want no tick."""
    return


def no(*_: Any, **__: Any) -> bool:
    """Say no."""
    return False


def yes(*_: Any, **__: Any) -> bool:
    """Say yes."""
    return True


class Forgetful(set[Any]):
    """A set that remembers nothing."""

    def add(self, _: object, /) -> None:
        """Forget it at once."""
