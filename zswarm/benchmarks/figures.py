"""A figure of a benchmark: its value in each round, their median, and the target that it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from zswarm.chaos.figures import percentile
from zswarm.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value per round, and a target if there is one."""

    name: str
    values: list[float]
    at_least: float | None = None
    below: float | None = None

    @property
    def median(self) -> float:
        """The figure itself."""
        return statistics.median(self.values)

    @property
    def decisive(self) -> float:
        """What is held against the target."""
        return self.median

    @property
    def is_met(self) -> bool | None:
        """Does the decisive value reach the target? None without one."""
        if self.at_least is not None:
            return self.decisive >= self.at_least
        return self.decisive < self.below if self.below is not None else None

    @property
    def target(self) -> str:
        """The target for people."""
        if self.at_least is not None:
            return f">= {_short(self.at_least)}"
        return f"< {_short(self.below)}" if self.below is not None else ""

    def as_json(self) -> dict[str, Any]:
        """Return everything of it for a file."""
        return asdict(self) | {"median": self.median, "is_met": self.is_met}


class Tail(Figure):
    """A figure whose target the bad cases have to reach, too: all but one in twenty."""

    __slots__ = ()

    @property
    def p95(self) -> float:
        """The least value that 95 % of them do not exceed."""
        found = percentile(self.values, 95.0)
        assert found is not None
        return found

    @property
    def decisive(self) -> float:
        """What is held against the target."""
        return self.p95

    def as_json(self) -> dict[str, Any]:
        """Return everything of it for a file."""
        return super().as_json() | {"p95": self.p95, "max": max(self.values)}


def table_of(figures: Sequence[Figure], title: str) -> Table:
    """Return a table of figures, each beside its target."""
    table = Table("figure", "median", "target", "", "each round", title=title)
    for figure in figures:
        rounds = " ".join(_short(value) for value in figure.values)
        table.add_row(figure.name, _short(figure.median), figure.target, _verdict(figure), rounds)
    return table


def table_of_tails(tails: Sequence[Tail], title: str) -> Table:
    """Return a table of figures whose bad cases count, each beside its target."""
    table = Table("figure", "median", "p95", "max", "target", "", title=title)
    for tail in tails:
        found = (_short(value) for value in (tail.median, tail.p95, max(tail.values)))
        table.add_row(tail.name, *found, tail.target, _verdict(tail))
    return table


def _verdict(figure: Figure) -> str:
    return {None: "", True: "met", False: "MISSED"}[figure.is_met]


def claim(file: Path | None) -> None:
    """Make sure before a long measurement that its result can be written.

    Raises:
        UserError: it cannot.

    """
    if file is None:
        return
    try:
        file.touch()
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written: {error.strerror}") from None


def _short(value: float) -> str:
    """Show a small number with two decimals, a large one without any."""
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
