"""The tables that `zswarm chaos` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from zswarm.chaos.figures import Figures, Outcome, percentile


def fault_table(found: Figures) -> Table:
    """Return one line for each role and kind of fault."""
    table = Table("role", "fault", "count", "noticed", "median s", "p95 s", "steps lost each", title="faults")
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in found.outcomes:
        groups.setdefault((outcome.fault.role, outcome.fault.kind.value), []).append(outcome)
    for (role, kind), outcomes in sorted(groups.items()):
        table.add_row(role, kind, *_row(outcomes))
    table.add_section()
    table.add_row("all", "", *_row(found.outcomes))
    return table


def _row(outcomes: Sequence[Outcome]) -> list[str]:
    noticed = [outcome.detection_s for outcome in outcomes if outcome.detection_s is not None]
    lost = [outcome.lost_steps for outcome in outcomes if outcome.lost_steps is not None]
    return [
        str(len(outcomes)),
        str(len(noticed)),
        _short(percentile(noticed, 50)),
        _short(percentile(noticed, 95)),
        _short(statistics.fmean(lost) if lost else None),
    ]


def cost_table(found: Figures) -> Table:
    """Return what the run as a whole had to bear."""
    table = Table("run", "", title="the run")
    table.add_row("steps", str(found.num_steps))
    table.add_row("steps done again", str(found.num_voided))
    for event, text in (
        ("rollback", "rollbacks"),
        ("start", "starts of the trainer"),
        ("leave", "leaves"),
        ("abort", "rounds aborted"),
        ("replay", "replays"),
        ("checkpoint", "checkpoints"),
    ):
        table.add_row(text, str(found.counts.get(event, 0)))
    table.add_row("steps lost per fault", _short(found.lost_steps_per_fault))
    quiet, disturbed = found.quiet_step_s, found.disturbed_steps_per_s
    table.add_row("steps per second, quiet", _short(None if quiet is None else 1 / quiet))
    table.add_row("steps per second, disturbed", _short(disturbed))
    table.add_row(
        "disturbed beside quiet", "unknown" if quiet is None or disturbed is None else f"{quiet * disturbed:.0%}"
    )
    return table


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
