"""A trace of preemptions: who was there from when to when.

    # comments
    0,arrive,w1
    37.5,arrive,w2
    4010,leave,w1

Time in seconds, not going back; a worker's name is any text without a comma, and may come back after it has left. Who
is there at 0 is there from the beginning, and the trace ends with its last line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path

from zswarm.errors import UserError

SHIPPED = "spot-t4.csv"
"""Made by `zswarm.simulation.churn.spot`."""
VERBS = {"arrive": True, "leave": False}


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody comes or goes."""

    time_s: float
    is_arrival: bool
    worker: str

    def __str__(self) -> str:
        return f"{self.time_s:g},{'arrive' if self.is_arrival else 'leave'},{self.worker}"


def shipped_trace() -> list[Change]:
    """Return the synthetic trace that comes with the package."""
    text = files("zswarm.simulation.churn").joinpath(SHIPPED).read_text(encoding="utf-8")
    return list(parsed(text.splitlines(), SHIPPED))


def load_trace(file: Path) -> list[Change]:
    """Read a trace.

    Raises:
        UserError: it cannot be read, or is not one; says where.

    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return list(parsed(text.splitlines(), str(file)))


def parsed(lines: Iterable[str], name: str) -> Iterator[Change]:
    """Yield the changes of a trace's lines.

    Raises:
        UserError: it is no trace; says in which line.

    """
    present: set[str] = set()
    time_s = 0.0
    is_empty = True
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            change = _parsed(line)
        except ValueError as error:
            raise UserError(f"{name}, line {number}: {error}; expected TIME_S,arrive|leave,WORKER") from None
        if change.time_s < time_s:
            raise UserError(f"{name}, line {number}: time goes back from {time_s:g} s to {change.time_s:g} s")
        if change.is_arrival == (change.worker in present):
            what = "arrives, but is there already" if change.is_arrival else "leaves, but is not there"
            raise UserError(f"{name}, line {number}: {change.worker} {what}")
        present ^= {change.worker}
        time_s, is_empty = change.time_s, False
        yield change
    if is_empty:
        raise UserError(f"{name}: nobody ever comes: no line TIME_S,arrive,WORKER")


def _parsed(line: str) -> Change:
    time, _, rest = line.partition(",")
    verb, _, worker = rest.partition(",")
    time_s = float(time)
    if not (isfinite(time_s) and time_s >= 0.0):
        raise ValueError(f"no time: {time!r}")
    if verb.strip() not in VERBS:
        raise ValueError(f"neither arrive nor leave: {verb!r}")
    if not worker.strip() or "," in worker:
        raise ValueError(f"no worker's name: {worker!r}")
    return Change(time_s, VERBS[verb.strip()], worker.strip())
