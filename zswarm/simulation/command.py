"""The body of `zswarm simulate`: run schedules, say what they were made of and which broke a promise."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zswarm.simulation.faults import LASTS_S
from zswarm.simulation.minimise import as_seed, minimise
from zswarm.simulation.mutants import in_force
from zswarm.simulation.simulate import Report, run_seed, story_of

TOLD_EVERY_S = 5.0
MOST_STORIES = 3
CHUNK = 8
"""Schedules that a process is given at once."""
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
    "Register sent again",
    "Fence sent again",
    "Restore sent again",
    "Void sent again",
    "Pull sent again",
    "lost",
    "corrupted",
    "duplicated",
    "reordered",
    "straggling",
    "blocked",
    "unreachable",
    "needs input",
    "wrong step",
    "backwards with input",
    "backwards without input",
    "jobs done again for a count that was lost",
    "jobs that are not counted",
    "jobs left to others",
    "jobs hedged",
    "jobs that failed",
    "microbatches admitted again",
    "restores from a worker",
    "steps given to who came late",
    "shares handed over",
    "shares left in a copy",
    "plans with moves",
    "restores from the checkpoint",
    "restores by making parameters anew",
    "given up: silent",
    "given up: gone",
    "given up: stuck",
    "given up: cut off",
    "given up: started again",
    "given up: drained",
    "given up: asked to leave",
    "given up: moved",
    "move records",
    "trainers that took a run up",
    "checkpoints that failed",
    "unsynced records lost",
    "disk behind",
    "steps skipped",
    "checkpoint records",
    "leave records",
    "abort records",
    "replay records",
    "rollback records",
    *(fault.value for fault in LASTS_S),
)
"""What a good number of schedules has seen at least once.

Counts that are taken back are not among them: with a Void in front of each new attempt no two live workers ever
count the same microbatch, so that this protocol has nothing to retract.
"""


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


def simulate(schedules: int, seed: int, *, mutant: str | None = None, trace: bool = False, jobs: int = 1) -> int:
    """Run the schedules of the seeds `seed`, `seed + 1`, ... in so many processes and print what came of them.

    With `mutant` a rule of the protocol is broken meanwhile (`zswarm.simulation.mutants`). With `trace` every
    event and command is printed, and there is one process. The first few that fail are made smaller and printed as
    files for `tests/seeds/`. Returns 0 if every schedule kept every promise, 1 otherwise.

    Raises:
        UserError: there is no such mutant.

    """
    console, progress = Console(highlight=False), Console(highlight=False, stderr=True)
    totals = Totals()
    begun_s = told_s = monotonic()
    seeds = range(seed, seed + schedules)
    with in_force(mutant), _reports(seeds, mutant, jobs=1 if trace else jobs, to=console if trace else None) as reports:
        for report in reports:
            totals.add(report)
            if report.violation is not None and len(totals.failed) <= MOST_STORIES:
                _print_failure(console, report, mutant)
            if monotonic() - told_s >= TOLD_EVERY_S:
                told_s = monotonic()
                progress.print(f"{totals.num_schedules} of {schedules} schedules, {len(totals.failed)} failed")
    _print_totals(console, totals, monotonic() - begun_s)
    return 1 if totals.failed else 0


@contextmanager
def _reports(seeds: range, mutant: str | None, *, jobs: int, to: Console | None) -> Iterator[Iterator[Report]]:
    """Give the reports of all seeds, in their order."""
    if jobs == 1:
        yield (run_seed(each, listener=to.out if to is not None else None) for each in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield pool.imap(partial(_run_quietly, mutant=mutant), seeds, chunksize=CHUNK)


def _run_quietly(seed: int, *, mutant: str | None) -> Report:
    """Run one schedule in another process; its event log stays there."""
    with in_force(mutant):
        return replace(run_seed(seed), records=())


def _print_failure(console: Console, report: Report, mutant: str | None) -> None:
    seed = report.schedule.seed
    faults = ", ".join(sorted(report.schedule.faults)) or "none"
    option = f" --mutant {mutant}" if mutant is not None else ""
    console.print(Text(f"seed {seed} broke a promise: {report.violation}", style="bold red"))
    console.print(Text(f"faults: {faults}; the last that happened:"))
    for line in story_of(report):
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(f"again, with everything: zswarm simulate --schedules 1 --seed {seed}{option} --trace"))
    smaller = minimise(report)
    console.print(Text("made smaller, for tests/seeds/, with `what` to be filled in:"))
    console.print(Text(as_seed(smaller)), soft_wrap=True)


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
