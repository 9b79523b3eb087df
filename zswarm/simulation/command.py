"""The body of `zswarm simulate`: run schedules, say what they were made of and which broke a promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zswarm.simulation.mutants import in_force
from zswarm.simulation.simulate import Report, run_seed, story_of

TOLD_EVERY_S = 5.0
MOST_STORIES = 3
NEVER_HAPPENED = "never: these schedules prove nothing about it"
SOMETIMES = (
    "Forward sent again",
    "Backward sent again",
    "Job sent again",
    "Result sent again",
    "Chunk sent again",
    "Prepare sent again",
    "Commit sent again",
    "Ack sent again",
    "lost",
    "duplicated",
    "reordered",
    "straggling",
    "needs input",
    "wrong step",
    "backwards with input",
    "backwards without input",
    "steps skipped",
    "leave records",
    "rejects",
)
"""What a good number of schedules has seen at least once."""


@dataclass(slots=True)
class Totals:
    """What many schedules came to."""

    counters: Counter[str] = field(default_factory=Counter)
    num_schedules: int = 0
    num_events: int = 0
    virtual_s: float = 0.0
    failed: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one more schedule."""
        self.num_schedules += 1
        self.counters.update(report.counters)
        self.num_events += report.num_events
        self.virtual_s += report.virtual_s
        if report.violation is not None:
            self.failed.append(report)


def simulate(schedules: int, seed: int, *, mutant: str | None = None, trace: bool = False) -> int:
    """Run the schedules of the seeds `seed`, `seed + 1`, ... and print what came of them.

    With `mutant` a rule of the protocol is broken meanwhile (`zswarm.simulation.mutants`). With `trace` every
    event and command is printed. Returns 0 if every schedule kept every promise, 1 otherwise.

    Raises:
        UserError: there is no such mutant.

    """
    console, progress = Console(highlight=False), Console(highlight=False, stderr=True)
    totals = Totals()
    begun_s = told_s = monotonic()
    with in_force(mutant):
        for each in range(seed, seed + schedules):
            report = run_seed(each, listener=console.out if trace else None)
            totals.add(report)
            if report.violation is not None and len(totals.failed) <= MOST_STORIES:
                _print_failure(console, report, mutant)
            if monotonic() - told_s >= TOLD_EVERY_S:
                told_s = monotonic()
                progress.print(f"{totals.num_schedules} of {schedules} schedules, {len(totals.failed)} failed")
    _print_totals(console, totals, monotonic() - begun_s)
    return 1 if totals.failed else 0


def _print_failure(console: Console, report: Report, mutant: str | None) -> None:
    seed = report.schedule.seed
    faults = ", ".join(sorted(report.schedule.faults)) or "none"
    option = f" --mutant {mutant}" if mutant is not None else ""
    console.print(Text(f"seed {seed} broke a promise: {report.violation}", style="bold red"))
    console.print(Text(f"faults: {faults}; the last that happened:"))
    for line in story_of(report):
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(f"again, with everything: zswarm simulate --schedules 1 --seed {seed}{option} --trace"))


def _print_totals(console: Console, totals: Totals, wall_s: float) -> None:
    table = Table("what happened", "how often", title=f"{totals.num_schedules} schedules")
    names = sorted(totals.counters.keys() | set(SOMETIMES))
    for name in names:
        count = totals.counters[name]
        table.add_row(name, f"{count:,}" if count else NEVER_HAPPENED)
    console.print(table)
    console.print(
        f"{totals.num_events:,} events in {totals.virtual_s / 3600:.1f} hours of virtual time took {wall_s:.1f} s: "
        f"{totals.num_schedules / wall_s:.0f} schedules per second"
    )
    if totals.failed:
        seeds = " ".join(str(report.schedule.seed) for report in totals.failed)
        console.print(
            Text(f"{len(totals.failed)} schedules broke a promise, those of the seeds {seeds}", style="bold red")
        )
    else:
        console.print("every schedule kept every promise")
