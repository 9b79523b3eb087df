"""What the user sees of a run: one live line on a terminal, one JSON object per step otherwise."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TextIO

from zswarm.json_lines import encode

if TYPE_CHECKING:
    from rich.progress import Progress as LiveLine

WORKER_COUNTS_SHOWN = 8
"""Stages whose workers are counted one by one on the line; of more, the least and the most are shown."""
REDRAW_S = 0.1
"""The line is drawn no more often than this: a process that trains has better things to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """A step has been committed."""

    step: int
    """Counted from 0, as everywhere."""
    loss: float
    """Mean over the step's predictions."""
    lr: float
    grad_norm: float
    """Of the whole model, before clipping."""
    tokens_per_s: float | None
    """None as long as it is not known, as `time_left_s`."""
    num_in_flight: int
    """Microbatches in the pipeline."""
    workers: tuple[int, ...]
    """Of each stage."""
    time_left_s: float | None

    def record(self) -> dict[str, Any]:
        """Return the fields, for a line of JSON."""
        return asdict(self)


class Progress:
    """Shows a run's steps; a context manager that leaves the terminal as it was.

    Losing the reader of the output (`zswarm local ... | head`) ends the output, not the run.
    """

    def __init__(self, name: str, *, steps: int, stream: TextIO | None = None) -> None:
        """Show a run of so many steps on `stream`, or stdout, under its name."""
        self._name = name
        self._steps = steps
        self._stream = stream or sys.stdout
        self._live: LiveLine | None = None
        self._redraw_at_s = 0.0

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._live = self._make_live_line()
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, report: StepReport) -> None:
        """Show a committed step."""
        if self._live is None:
            write_line(self._stream, encode(report.record()).decode())
            return
        self._live.update(
            self._live.task_ids[0],
            completed=report.step + 1,
            text=_describe(report),
        )
        if monotonic() >= self._redraw_at_s:
            self._live.refresh()
            self._redraw_at_s = monotonic() + REDRAW_S

    def say(self, text: str) -> None:
        """Tell something else: above the line on a terminal, on stderr otherwise."""
        if self._live is None:
            write_line(sys.stderr, text)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def _make_live_line(self) -> LiveLine:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
        )
        live.add_task(self._name, total=self._steps, text="waiting for the first step")
        return live


def write_line(stream: TextIO, text: str) -> None:
    """Write a line at once; from a stream whose reader has gone, everything is dropped from then on."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        # What is still in the buffer must not raise again when the interpreter closes the stream.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _describe(report: StepReport) -> str:
    parts = [
        f"loss {report.loss:.4f}",
        "" if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f} tokens/s",
        f"{report.num_in_flight} in flight",
        f"workers {_counts(report.workers)}",
        "" if report.time_left_s is None else f"{_clock(report.time_left_s)} left",
    ]
    return "  ".join(part for part in parts if part)


def _counts(workers: tuple[int, ...]) -> str:
    if len(workers) > WORKER_COUNTS_SHOWN:
        return f"{min(workers)}..{max(workers)} in {len(workers)} stages"
    return "/".join(map(str, workers))


def _clock(duration_s: float) -> str:
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
