"""Do machines of unequal speed do together what each of them does alone?

    lab0  0.8 of a core    a worker of stage 0, one of stage 1        TINY, 2 stages, links of 1 Gb/s
    lab1  0.4              a worker of stage 0, one of stage 1
    lab2  0.2              a worker of stage 0, one of stage 1

Work follows speed where several workers are of one stage, so each machine has a worker of each: whatever it has of the
processor goes to either. Alone it trains the same run by itself: a rate of its own, not a share of a quota. The sum of
the three is what together is held against. Together costs what alone does not: activations cross links, gradients are
all-reduced, and the end of a step waits for whoever is last. All of that is paid once a step, so the figure depends on
the batch and is told with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.lab.machines import Machine
from tests.lab.reckoning import samples_per_s
from tests.lab.swarm import TRAINER, Run, RunShape, Site
from zswarm.benchmarks.figures import Figure
from zswarm.errors import RunFailed

RATE_MBIT = 1000.0
CORES, TRAINER_CORES = (0.8, 0.4, 0.2), 0.2
STAGES, MICROBATCH = 2, 2
TOGETHER_BY_SUM, TOGETHER = "together / sum of each alone", "samples/s together"
AT_LEAST = 0.90
IN_S = 90.0
"""Longest that a machine may take until its workers are in; far more than it takes."""
STEP_S = 600.0
"""The same of one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOptions:
    """What is trained, and how long."""

    global_batch: int
    steps: int
    """Measured of all together, after the first; alone, where each step is that much longer, one is."""
    seed: int


def measure(site: Site, options: ShareOptions) -> list[Figure]:
    """Have each machine train alone, then all together; returns the figures.

    Raises:
        LabError: no such machines can be made here.
        RunFailed: a run did not go on, or workers are not where they should be.

    """
    machines = [site.lab.machine(f"lab{index}", cores=cores, rate_mbit=RATE_MBIT) for index, cores in enumerate(CORES)]
    trainer = site.lab.machine(TRAINER, cores=TRAINER_CORES, rate_mbit=RATE_MBIT)
    alone = [_rate(site, trainer, [machine], replace(options, steps=1)) for machine in machines]
    together = _rate(site, trainer, machines, options)
    return [
        *(
            Figure(name=f"samples/s of {machine.name} alone, {cores:g} cores", values=[rate])
            for machine, cores, rate in zip(machines, CORES, alone, strict=True)
        ),
        Figure(name=TOGETHER, values=[together]),
        Figure(name=TOGETHER_BY_SUM, values=[together / sum(alone)], at_least=AT_LEAST),
    ]


def _rate(site: Site, trainer: Machine, machines: Sequence[Machine], options: ShareOptions) -> float:
    """Train on these machines; returns samples per second."""
    shape = RunShape(stages=STAGES, global_batch=options.global_batch, microbatch=MICROBATCH, seed=options.seed)
    name = "-".join(machine.name for machine in machines)
    run = site.train(trainer, name, shape, workers=len(machines))
    joined = []
    for number, machine in enumerate(machines, start=1):
        # One after the other: who comes goes where the fewest are.
        joined.append(site.join(machine, workers=STAGES))
        run.wait(
            lambda n=number: len(_workers(run)) == n * STAGES, what=f"the workers of {machine.name}", within_s=IN_S
        )
    _check_places(run, machines)
    run.wait_for_steps(1 + options.steps, within_s=STEP_S * (1 + options.steps))
    rate = samples_per_s(run.commits()[: 1 + options.steps], options.global_batch)
    run.end()
    for command in joined:
        command.interrupt()
    return rate


def _workers(run: Run) -> list[tuple[str, int]]:
    """Return machine and stage of every worker that has come in."""
    return [
        (content["node"].split("-")[0], content["stage"])
        for _, content in run.records()
        if content["event"] == "join" and content["role"] == "worker"
    ]


def _check_places(run: Run, machines: Sequence[Machine]) -> None:
    """Raise RunFailed unless each machine has one worker of each stage."""
    wanted = Counter((machine.name, stage) for machine in machines for stage in range(STAGES))
    if Counter(_workers(run)) != wanted:
        raise RunFailed(f"workers are not one of each stage on each machine: {sorted(_workers(run))}")
