"""What is left of a swarm's throughput when every few seconds a machine is killed, frozen, cut off, or returns.

    lab0 ... lab5    a worker each, so two for each of 3 stages; 200 Mb/s, `CORES` of a core each
    trainer          a machine of its own, which nothing befalls, with the brokers; as many Mb/s
    yardstick        another one, which takes part in nothing: it measures how fast the host's processors are meanwhile

    alone -> calm ---------------> churn: every `every_s` one change -------------------------> end, audit -> alone
             (measures what all    kill: SIGKILL to all its processes; comes back with a new `zswarm join`
              six do)              freeze: all stop; comes back by going on     cut: its link loses all; comes back by its link

Faults hit workers only, and what the trainer's machine does for the brokers is in no share: where machines come and go,
brokers belong on those that stay.

The host's processors differ by a tenth from minute to minute. So one machine alone is measured before and after, and
each rate is held against another one as it would have been at the same speed of the processors (yardstick.py); without
that, too, for comparison.

Fault or return is a toss of a coin where both are possible. The last machine that holds the parameters of a stage is
spared, as by `zswarm chaos --spare-last`: what its loss costs is how old the last checkpoint is, not how the swarm deals
with churn.

The model of what the live machines allow: what one machine does alone, as the only worker of the same model in one
stage, times six, times the mean over the time of churn of floor(live / 3) / 2. A worker computes one stage, so the
slowest stage of the best possible placement has floor(live / 3) of its two workers. A machine is live from the moment
at which it returns, so what it takes to start, to import torch, to be noticed and to get the parameters is the swarm's
loss, not the model's; so is what the pipeline costs without any fault.

To scale the rate without faults instead flatters: as far as that is bound by anything but processors (the end of a step,
the filling of the pipeline, links), to lose a worker costs less than its share, and the ratio may exceed 1. It is
printed without a target, as is the share that the placement as it was allowed: that of the stage with the fewest live
workers that are in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from statistics import fmean

from tests.lab.machines import Machine
from tests.lab.reckoning import (
    Change,
    Pass,
    Rated,
    Span,
    allowed_share,
    at_speed_of,
    mean_of,
    placed_changes,
    speed_in,
)
from tests.lab.swarm import TRAINER, Run, RunShape, Site, Spoken
from zswarm.benchmarks.figures import Figure
from zswarm.errors import RunFailed

RATE_MBIT = 200.0
CORES, TRAINER_CORES, YARDSTICK_CORES = 0.25, 0.2, 0.1
NUM_MACHINES, STAGES = 6, 3
FULL = NUM_MACHINES // STAGES
GLOBAL_BATCH, MICROBATCH, CHECKPOINT_EVERY = 1024, 4, 50
"""TINY's microbatch: of half of it, what processes do about each takes twice as much of a quarter of a core. Steps of 75 s in
calm, which would be lost as a whole if nothing of them were copied."""
WINDOW = 192
"""Microbatches in the pipeline: who has less to do than others for a while works ahead by so many."""
NUM_LAYERS = 9
"""Blocks, three for each stage: of TINY's eight the stages would get three, three and two, and the slowest sets the pace."""
ALONE_BATCH, ALONE_STEPS = 128, 2
"""A machine alone has no pipeline to fill; each of the steps after the first takes fifty seconds."""
START_S = 240.0
"""Longest until all are in and the first step is done; far more than it takes."""
LAST_STEP_S = 300.0
"""Longest that the commit after the last change may take."""
ALONE_S = 600.0
"""The same of a machine alone and all its steps."""
CALM_STEPS = 2
BY_ALLOWED, CALM_BY_ALL = "in churn / what live machines allow", "without faults / what all machines allow"
BY_CALM = "in churn / rate without faults, scaled"
AT_LEAST = 0.90


class State(StrEnum):
    """What has befallen a machine."""

    LIVE = "live"
    KILLED = "killed"
    FROZEN = "frozen"
    CUT = "cut off"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnOptions:
    """How long, and how often something happens."""

    duration_s: float
    every_s: float
    calm_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that befell a machine."""

    at_s: float
    machine: str
    state: State


class Fleet:
    """The machines that take part, and what has befallen each."""

    def __init__(self, site: Site, machines: Sequence[Machine], staying: Sequence[Spoken]) -> None:
        """Have all of them join; `staying` is what runs on other machines, which nothing befalls."""
        self._site = site
        self._staying = staying
        self._machines = {machine.name: machine for machine in machines}
        self._commands: dict[str, Spoken] = {}
        for machine in machines:
            self._join(machine)
        self.states = {machine.name: State.LIVE for machine in machines}
        self.events: list[Event] = []

    def of(self, *, live: bool) -> list[str]:
        """Return who is live, or is not."""
        return [name for name, state in self.states.items() if (state is State.LIVE) == live]

    def strike(self, name: str, state: State) -> None:
        """Let something befall a live machine."""
        assert self.states[name] is State.LIVE
        machine = self._machines[name]
        {State.KILLED: machine.kill, State.FROZEN: machine.freeze, State.CUT: machine.cut}[state]()
        self._note(name, state)

    def bring_back(self, name: str) -> None:
        """Make a machine live again."""
        machine = self._machines[name]
        if self.states[name] is State.KILLED:
            self._join(machine)
        else:
            self._release(machine)
        self._note(name, State.LIVE)

    def stop(self) -> None:
        """End everything on all machines, whatever has befallen them."""
        for machine in self._machines.values():
            self._release(machine)
            machine.kill()

    def _join(self, machine: Machine) -> None:
        self._commands[machine.name] = self._site.join(machine, brokers=0)

    def _release(self, machine: Machine) -> None:
        """Have a machine go on that is frozen or cut off."""
        match self.states[machine.name]:
            case State.FROZEN:
                machine.thaw()
            case State.CUT:
                machine.mend()

    def check(self) -> None:
        """Raise RunFailed if a command has ended that nobody has killed."""
        lively = [command for name, command in self._commands.items() if self.states[name] is not State.KILLED]
        for command in [*lively, *self._staying]:
            if command.has_ended:
                raise RunFailed(f"a command has ended on {command.machine.name}:\n{command.last_words()}")

    def liveness(self) -> list[tuple[float, str, bool]]:
        """Return when who became live, or ceased to be."""
        return [(event.at_s, event.machine, event.state is State.LIVE) for event in self.events]

    def _note(self, name: str, state: State) -> None:
        self.states[name] = state
        self.events.append(Event(at_s=time.monotonic(), machine=name, state=state))


class Fates:
    """Draws what happens next; the three faults come equally often, in a random order."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._faults: list[State] = []

    def draw(self, *, live: Sequence[str], down: Sequence[str], spared: set[str]) -> tuple[str, State] | None:
        """Return who is to be struck or to return, and what he is then; None if nothing can happen."""
        victims = [name for name in live if name not in spared]
        if down and (not victims or self._random.random() < 0.5):
            return self._random.choice(down), State.LIVE
        if not victims:
            return None
        if not self._faults:
            self._faults = [State.KILLED, State.FROZEN, State.CUT]
            self._random.shuffle(self._faults)
        return self._random.choice(victims), self._faults.pop()


def measure(site: Site, options: ChurnOptions) -> list[Figure]:
    """Run in calm and in churn; returns the figures.

    Raises:
        LabError: no such machines can be made here.
        RunFailed: the run did not go on, or its audit found something.

    """
    machines = [site.lab.machine(f"lab{index}", cores=CORES, rate_mbit=RATE_MBIT) for index in range(NUM_MACHINES)]
    trainer = site.lab.machine(TRAINER, cores=TRAINER_CORES, rate_mbit=RATE_MBIT)
    alone_shape = RunShape(
        stages=1,
        global_batch=ALONE_BATCH,
        microbatch=MICROBATCH,
        seed=options.seed,
        num_layers=NUM_LAYERS,
        window=WINDOW,
    )
    yardstick = site.measure_speed(
        site.lab.machine("yardstick", cores=YARDSTICK_CORES, rate_mbit=RATE_MBIT), alone_shape
    )
    staying = [yardstick, site.join(trainer, workers=0, brokers=STAGES)]
    alone = [_alone(site, trainer, machines[0], "alone before", alone_shape)]
    shape = replace(alone_shape, stages=STAGES, global_batch=GLOBAL_BATCH, checkpoint_every=CHECKPOINT_EVERY)
    run = site.train(trainer, "run", shape, workers=FULL, brokers=1)
    fleet = Fleet(site, machines, staying)
    run.wait(lambda: run.history.of("commit"), what="the first step", within_s=START_S)
    calm = _calm(run, options.calm_s)
    begun_s = time.monotonic()
    _churn(run, fleet, options)
    run.wait_for_steps(1, within_s=LAST_STEP_S)
    run.end()
    time_of_churn = Span(begun_s, begun_s + options.duration_s)
    fleet.stop()
    alone.append(_alone(site, trainer, machines[0], "alone after", alone_shape))
    passes = Pass.of(list(yardstick.lines))
    try:
        return _figures(run, fleet, time_of_churn, alone=alone, calm=calm, passes=passes)
    except ValueError as error:
        raise RunFailed(str(error)) from None


def _alone(site: Site, trainer: Machine, machine: Machine, name: str, shape: RunShape) -> Rated:
    """Return the rate of a machine that is the only one, with one worker as it has later."""
    run = site.train(trainer, name, shape, workers=1)
    joined = site.join(machine, brokers=0)
    run.wait_for_steps(1 + ALONE_STEPS, within_s=ALONE_S)
    rated = Rated.of(run.commits(), ALONE_BATCH)
    run.end()
    joined.interrupt()
    return rated


def _calm(run: Run, calm_s: float) -> Rated:
    """Return the rate without faults, after the first step."""
    first, begun_s = len(run.commits()), time.monotonic()

    def is_over() -> bool:
        return time.monotonic() >= begun_s + calm_s and len(run.history.of("commit")) >= first + CALM_STEPS

    run.wait(is_over, what="steps without faults", within_s=calm_s + START_S)
    return Rated.of(run.commits()[first - 1 :], GLOBAL_BATCH)


def _churn(run: Run, fleet: Fleet, options: ChurnOptions) -> None:
    """Change something every `every_s`, for `duration_s`."""
    fates = Fates(options.seed)
    next_s = begun_s = time.monotonic()
    while next_s < begun_s + options.duration_s:
        run.wait(
            lambda until_s=next_s: time.monotonic() >= until_s, what="the next change", within_s=options.every_s + 1
        )
        fleet.check()
        down = fleet.of(live=False)
        drawn = fates.draw(live=fleet.of(live=True), down=down, spared=_spared(run, down))
        if drawn is not None:
            name, state = drawn
            if state is State.LIVE:
                fleet.bring_back(name)
            else:
                fleet.strike(name, state)
        next_s += options.every_s
    run.wait(
        lambda: time.monotonic() >= begun_s + options.duration_s, what="the end of churn", within_s=options.every_s + 1
    )


def _spared(run: Run, down: Sequence[str]) -> set[str]:
    """Return the machines whose loss would leave nobody who holds the parameters of a stage."""
    workers = {content["node"] for _, content in run.records() if content["event"] == "join"}
    dead = {node for node in workers if node.split("-")[0] in down}
    return {node.split("-")[0] for node in run.history.last_of_their_stage(dead)}


def _figures(
    run: Run, fleet: Fleet, churn: Span, *, alone: Sequence[Rated], calm: Rated, passes: Sequence[Pass]
) -> list[Figure]:
    """Hold what was done in the time of churn, in whole steps, against what was possible in it."""
    commits = run.commits()
    before = [commit.at_s for commit in commits if commit.at_s <= churn.begin_s]
    if not before:
        raise RunFailed("the swarm went back to a step from before the faults: there is no rate of that time")
    begin = max(before)
    end = min(commit.at_s for commit in commits if commit.at_s >= churn.end_s)
    churned = Rated.of([commit for commit in commits if begin <= commit.at_s <= end], GLOBAL_BATCH)
    liveness = fleet.liveness()
    allowed = mean_of(_allowed(liveness, begin), begin_s=begin, end_s=end)
    placed = placed_changes(run.records(), liveness, num_stages=STAGES, full=FULL)
    as_placed = mean_of(placed, begin_s=begin, end_s=end)
    states = [event.state for event in fleet.events]

    def all_at(span: Span) -> float:
        return NUM_MACHINES * fmean(at_speed_of(span, each, passes) for each in alone)

    times = [alone[0].span, calm.span, churned.span, alone[1].span]
    speed = speed_in(passes, churned.span)
    lists = {
        "samples/s of one machine alone, before and after": [each.samples_per_s for each in alone],
        "the same at the processors' speed in churn": [at_speed_of(churned.span, each, passes) for each in alone],
        "processors' speed alone, without faults, in churn, alone": [speed_in(passes, span) / speed for span in times],
    }
    found = {
        "samples/s of all, without faults": calm.samples_per_s,
        "samples/s in churn": churned.samples_per_s,
        "share that live machines allow": allowed,
        "share that their placement allowed": as_placed,
        BY_ALLOWED: churned.samples_per_s / (all_at(churned.span) * allowed),
        "the same, by one machine alone as it was measured": churned.samples_per_s
        / (NUM_MACHINES * fmean(each.samples_per_s for each in alone) * allowed),
        CALM_BY_ALL: calm.samples_per_s / all_at(calm.span),
        BY_CALM: churned.samples_per_s / (at_speed_of(churned.span, calm, passes) * allowed),
        **{f"machines {'returned' if s is State.LIVE else s}": float(states.count(s)) for s in State},
        "steps voided by rollbacks": float(len(run.history.of("commit")) - len(commits)),
    }
    aims = {BY_ALLOWED: AT_LEAST}
    return [
        *(Figure(name=name, values=values) for name, values in lists.items()),
        *(Figure(name=name, values=[value], at_least=aims.get(name)) for name, value in found.items()),
    ]


def _allowed(liveness: Sequence[tuple[float, str, bool]], begin_s: float) -> list[Change]:
    """Return how the share changes that the live machines allow."""
    num_live = NUM_MACHINES
    changes = [Change(begin_s, 1.0)]
    for at_s, _, is_live in liveness:
        num_live += 1 if is_live else -1
        share = allowed_share(num_live, num_machines=NUM_MACHINES, num_stages=STAGES)
        changes.append(Change(at_s, share))
    return changes
