"""What it takes a machine to join a run that goes on, and what that costs the run.

    lab0 (stage 0)   lab1 (stage 1)   trainer        TINY, 2 stages; links of 200 Mb/s, 1 ms at each crossing
                                                     (a round trip of 4 ms); `CORES` of a core for each machine
    lab2             `zswarm join` ----> sees another machine ----> its worker is in the log
                                   ----> a commit is made of its gradients, too

Every machine has a quota, so that what the newcomer computes while it starts is not taken from the others. Its files are
in the host's cache, as if it had run before. Rates are of whole steps: *before* has those of the last `before_s`,
*during* begins with the last commit before the command and ends with the first one that the newcomer takes part in. After
each round it leaves by Ctrl-C.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.lab.reckoning import Joined, join_of
from tests.lab.swarm import TRAINER, Run, RunShape, Site, Spoken
from zswarm.benchmarks.figures import Figure
from zswarm.errors import RunFailed

RATE_MBIT, LATENCY_MS = 200.0, 1.0
CORES, TRAINER_CORES = 0.5, 0.2
LEAST_COMMITS = 5
"""Fewer before a join would be no median."""
START_S, JOIN_S = 120.0, 120.0
"""Far more than it takes; they only turn a hang into a failure."""
SEEN, IN, COUNTED = "s until it sees another machine", "s until its worker is in", "s until it has counted a microbatch"
LOWER, DELAY = "% by which samples/s are lower meanwhile", "s by which a commit is delayed at most"
DELAY_BEFORE, BEFORE = "the same, of the steps before", "samples/s before"
BELOW = {SEEN: 2.0, COUNTED: 15.0, LOWER: 10.0, DELAY: 0.5}
SHAPE = RunShape(stages=2, global_batch=32, microbatch=4, seed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """How long to measure."""

    rounds: int
    before_s: float
    seed: int


def measure(site: Site, options: JoinOptions) -> list[Figure]:
    """Join `rounds` times; returns the figures.

    Raises:
        LabError: no such machines can be made here.
        RunFailed: the run did not go on, or nobody came in.

    """
    link = {"rate_mbit": RATE_MBIT, "latency_ms": LATENCY_MS}
    machines = [site.lab.machine(f"lab{index}", cores=CORES, **link) for index in range(3)]
    trainer = site.lab.machine(TRAINER, cores=TRAINER_CORES, **link)
    shape = RunShape(
        stages=SHAPE.stages, global_batch=SHAPE.global_batch, microbatch=SHAPE.microbatch, seed=options.seed
    )
    for machine in machines[:-1]:
        site.join(machine)
    run = site.train(trainer, "run", shape, workers=1)
    run.wait(lambda: run.history.of("commit"), what="the first step", within_s=START_S)
    values: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        _settle(run, options.before_s)
        newcomer = site.join(machines[-1])
        for name, value in _observe(run, newcomer, options.before_s).items():
            values.setdefault(name, []).append(value)
        newcomer.interrupt()
    run.end()
    return [Figure(name=name, values=found, below=BELOW.get(name)) for name, found in values.items()]


def _settle(run: Run, before_s: float) -> None:
    """Let the run go on undisturbed for `before_s`, the step that goes on now left out, and for LEAST_COMMITS."""
    run.wait_for_steps(1, within_s=START_S)
    begun_s, num_before = time.monotonic(), len(run.history.of("commit"))

    def is_settled() -> bool:
        is_long = time.monotonic() >= begun_s + before_s
        return is_long and len(run.history.of("commit")) >= num_before + LEAST_COMMITS

    run.wait(is_settled, what="undisturbed steps", within_s=before_s + START_S)


def _observe(run: Run, newcomer: Spoken, before_s: float) -> dict[str, float]:
    """Wait until a newcomer has counted something; returns the values of one round."""
    sessions: dict[int, float] = {}

    def has_counted() -> bool:
        if newcomer.has_ended:
            raise RunFailed(f"{newcomer.machine.name} has ended:\n{newcomer.last_words()}")
        sessions.update(run.sessions_of(newcomer.machine, since_s=newcomer.begun_s))
        return any(commit.sessions & sessions.keys() for commit in run.commits()[-2:])

    run.wait(has_counted, what=f"a microbatch counted by {newcomer.machine.name}", within_s=JOIN_S)
    seen_s = newcomer.said_after_s(": sees ")
    if seen_s is None:
        raise RunFailed(f"{newcomer.machine.name} has counted a microbatch, and has not said whom it sees")
    if len(sessions) > 1:
        raise RunFailed(f"{newcomer.machine.name} came in {len(sessions)} times:\n{newcomer.last_words()}")
    ((session, in_at_s),) = sessions.items()
    joined = join_of(
        run.commits(), session, begun_s=newcomer.begun_s, before_s=before_s, global_batch=SHAPE.global_batch
    )
    return _named(joined, seen_s=seen_s, in_s=in_at_s - newcomer.begun_s)


def _named(joined: Joined, *, seen_s: float, in_s: float) -> dict[str, float]:
    return {
        SEEN: seen_s,
        IN: in_s,
        COUNTED: joined.counted_after_s,
        LOWER: joined.lower_percent,
        DELAY: joined.delay_s,
        DELAY_BEFORE: joined.delay_before_s,
        BEFORE: joined.samples_per_s_before,
    }
