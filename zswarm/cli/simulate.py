"""`zswarm simulate`: random schedules of the machines that train, under a virtual clock."""

from __future__ import annotations

import sys
from collections import Counter
from time import monotonic

from zswarm.errors import RunFailed
from zswarm.simulation.simulate import run_seed

TOLD_EVERY_S = 5.0


def simulate(num_schedules: int, seed: int) -> None:
    """Run the schedules of `num_schedules` seeds from `seed` on, and say what they were made of.

    Raises:
        RunFailed: a schedule broke a promise; the text names its seed, which brings it back, and the story.

    """
    counters: Counter[str] = Counter()
    num_events, virtual_s = 0, 0.0
    begun_s = told_s = monotonic()
    for done in range(num_schedules):
        report = run_seed(seed + done)
        counters.update(report.counters)
        num_events += report.num_events
        virtual_s += report.virtual_s
        if report.violation is not None:
            story = "\n".join(report.story)
            raise RunFailed(
                f"schedule {seed + done} breaks a promise: {report.violation}\n{story}\n"
                f"zswarm simulate --schedules 1 --seed {seed + done} runs it again"
            )
        if monotonic() - told_s >= TOLD_EVERY_S:
            told_s = monotonic()
            print(f"{done + 1} of {num_schedules} schedules kept every promise", file=sys.stderr)
    print(
        f"{num_schedules} schedules from seed {seed} kept every promise: {num_events} events, "
        f"{virtual_s / 3600:.1f} hours of virtual time in {monotonic() - begun_s:.1f} s"
    )
    for name, count in sorted(counters.items()):
        print(f"  {count:>10} {name}")
