"""What is left of a swarm's throughput when every few seconds a machine is killed, frozen, cut off, or returns.

    lab0 ... lab5    a worker and a broker each, so two workers for each of 3 stages; 200 Mb/s, `CORES` of a core each
    trainer          a machine of its own, which nothing befalls

    calm ---------------> churn: every `every_s` one change -------------------------------> end, audit
    (measures what all    kill: SIGKILL to all its processes; comes back with a new `zswarm join`
     six do)              freeze: all stop; comes back by going on      cut: its link loses all; comes back by its link

Fault or return is a toss of a coin where both are possible. The last machine that holds the parameters of a stage is
spared, as by `zswarm chaos --spare-last`: what its loss costs is how old the last checkpoint is, not how the swarm deals
with churn.

The model of what the live machines allow: their throughput without faults, as measured in the calm, times the mean over
the time of churn of floor(live / 3) / 2. A worker computes one stage, so the slowest stage of the best possible placement
has floor(live / 3) of its two workers. A machine is live from the moment at which it returns, so what it takes to start,
to import torch, to be noticed and to get the parameters is the swarm's loss, not the model's. Beside it, without a
target, the same with the placement as it was: the share of the stage with the fewest live workers that are in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.lab.machines import Machine
from tests.lab.reckoning import Change, allowed_share, mean_of, placed_changes, samples_per_s
from tests.lab.swarm import TRAINER, Run, RunShape, Site, Spoken
from zswarm.benchmarks.figures import Figure
from zswarm.errors import RunFailed

RATE_MBIT = 200.0
CORES, TRAINER_CORES = 0.25, 0.2
NUM_MACHINES, STAGES = 6, 3
FULL = NUM_MACHINES // STAGES
GLOBAL_BATCH, MICROBATCH, CHECKPOINT_EVERY = 32, 4, 50
START_S = 240.0
"""Longest until all are in and the first step is done; far more than it takes."""
LAST_STEP_S = 120.0
"""Longest that the commit after the last change may take."""
CALM_STEPS = 5
BY_ALLOWED, BY_PLACED = "samples/s / what live machines allow", "samples/s / what their placement allowed"
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

    def __init__(self, site: Site, machines: Sequence[Machine]) -> None:
        """Have all of them join."""
        self._site = site
        self._machines = {machine.name: machine for machine in machines}
        self._commands: dict[str, Spoken] = {machine.name: site.join(machine) for machine in machines}
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
        match self.states[name]:
            case State.KILLED:
                self._commands[name] = self._site.join(machine)
            case State.FROZEN:
                machine.thaw()
            case State.CUT:
                machine.mend()
        self._note(name, State.LIVE)

    def check(self) -> None:
        """Raise RunFailed if a `zswarm join` has ended that nobody has killed."""
        for name, command in self._commands.items():
            if self.states[name] is not State.KILLED and command.has_ended:
                raise RunFailed(f"`zswarm join` has ended on {name}:\n{command.last_words()}")

    def liveness(self) -> list[tuple[float, str, bool]]:
        """Return when who became live, or ceased to be."""
        return [(event.at_s, event.machine, event.state is State.LIVE) for event in self.events]

    def _note(self, name: str, state: State) -> None:
        self.states[name] = state
        self.events.append(Event(at_s=time.monotonic(), machine=name, state=state))


def choose(random: Random, *, live: Sequence[str], down: Sequence[str], spared: set[str]) -> tuple[str, State] | None:
    """Draw what happens next: to whom, and what he is then; None if nothing can."""
    victims = [name for name in live if name not in spared]
    if down and (not victims or random.random() < 0.5):
        return random.choice(down), State.LIVE
    if not victims:
        return None
    return random.choice(victims), random.choice([State.KILLED, State.FROZEN, State.CUT])


def measure(site: Site, options: ChurnOptions) -> list[Figure]:
    """Run in calm and in churn; returns the figures.

    Raises:
        LabError: no such machines can be made here.
        RunFailed: the run did not go on, or its audit found something.

    """
    machines = [site.lab.machine(f"lab{index}", cores=CORES, rate_mbit=RATE_MBIT) for index in range(NUM_MACHINES)]
    trainer = site.lab.machine(TRAINER, cores=TRAINER_CORES, rate_mbit=RATE_MBIT)
    shape = RunShape(
        stages=STAGES,
        global_batch=GLOBAL_BATCH,
        microbatch=MICROBATCH,
        seed=options.seed,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    run = site.train(trainer, "run", shape, workers=FULL)
    fleet = Fleet(site, machines)
    run.wait(lambda: run.history.of("commit"), what="the first step", within_s=START_S)
    calm = _calm(run, options.calm_s)
    begun_s = time.monotonic()
    _churn(run, fleet, options)
    run.wait_for_steps(1, within_s=LAST_STEP_S)
    run.end()
    return _figures(run, fleet, calm_rate=calm, begun_s=begun_s, end_s=begun_s + options.duration_s)


def _calm(run: Run, calm_s: float) -> float:
    """Return the rate without faults, after the first step."""
    first, begun_s = len(run.commits()), time.monotonic()

    def is_over() -> bool:
        return time.monotonic() >= begun_s + calm_s and len(run.history.of("commit")) >= first + CALM_STEPS

    run.wait(is_over, what="steps without faults", within_s=calm_s + START_S)
    return samples_per_s(run.commits()[first - 1 :], GLOBAL_BATCH)


def _churn(run: Run, fleet: Fleet, options: ChurnOptions) -> None:
    """Change something every `every_s`, for `duration_s`."""
    random = Random(options.seed)
    next_s = begun_s = time.monotonic()
    while next_s < begun_s + options.duration_s:
        run.wait(
            lambda until_s=next_s: time.monotonic() >= until_s, what="the next change", within_s=options.every_s + 1
        )
        fleet.check()
        down = fleet.of(live=False)
        drawn = choose(random, live=fleet.of(live=True), down=down, spared=_spared(run, down))
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


def _figures(run: Run, fleet: Fleet, *, calm_rate: float, begun_s: float, end_s: float) -> list[Figure]:
    """Hold what was done in the time of churn, in whole steps, against what was possible in it."""
    commits = run.commits()
    begin = max(commit.at_s for commit in commits if commit.at_s <= begun_s)
    end = min(commit.at_s for commit in commits if commit.at_s >= end_s)
    rate = samples_per_s([commit for commit in commits if begin <= commit.at_s <= end], GLOBAL_BATCH)
    liveness = fleet.liveness()
    allowed = mean_of(_allowed(liveness, begin), begin_s=begin, end_s=end)
    placed = placed_changes(run.records(), liveness, num_stages=STAGES, full=FULL)
    as_placed = mean_of(placed, begin_s=begin, end_s=end)
    states = [event.state for event in fleet.events]
    kinds = {state: float(states.count(state)) for state in State}
    return [
        Figure(name="samples/s without faults", values=[calm_rate]),
        Figure(name="samples/s in churn", values=[rate]),
        Figure(name="share that live machines allow", values=[allowed]),
        Figure(name="share that their placement allowed", values=[as_placed]),
        Figure(name=BY_ALLOWED, values=[rate / (calm_rate * allowed)], at_least=AT_LEAST),
        Figure(name=BY_PLACED, values=[rate / (calm_rate * as_placed)]),
        *(Figure(name=f"machines {'returned' if s is State.LIVE else s}", values=[n]) for s, n in kinds.items()),
        Figure(name="steps voided by rollbacks", values=[float(len(run.history.of("commit")) - len(commits))]),
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
