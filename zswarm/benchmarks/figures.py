"""A figure of a benchmark: its value in each round, their median, and the target that it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

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
    def is_met(self) -> bool | None:
        """Does the median reach the target? None without one."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return self.median < self.below if self.below is not None else None

    @property
    def target(self) -> str:
        """The target for people."""
        if self.at_least is not None:
            return f">= {_short(self.at_least)}"
        return f"< {_short(self.below)}" if self.below is not None else ""

    def as_json(self) -> dict[str, Any]:
        """Return everything of it for a file."""
        return asdict(self) | {"median": self.median, "is_met": self.is_met}


def table_of(figures: Sequence[Figure], title: str) -> Table:
    """Return a table of figures, each beside its target."""
    table = Table("figure", "median", "target", "", "each round", title=title)
    for figure in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[figure.is_met]
        rounds = " ".join(_short(value) for value in figure.values)
        table.add_row(figure.name, _short(figure.median), figure.target, verdict, rounds)
    return table


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
