"""What one fault costs, in steps: runs of the simulator with exactly one, each beside the same run without it.

    without  |---- step 0 ----|---- step 1 ----|---- step 2 ----|
    with     |---- step 0 ----|------ * - step 1 -----|---- step 2 ----|
                                    fault       <----->          <----->
                                                struck          in all

A fault strikes at a uniformly random moment of step 1. Until then both runs of a seed are the same, event by event. Its
cost is by how much later a step ends than without it, over how long step 1 takes without it: *struck* is that of
step 1, *in all* that of step 2, which a recovery from a late strike reaches into. Both are held against the target, and
nothing is subtracted: what a killed worker costs, who does not come back, includes that its stage goes on with one
worker less until the end of step 2. The target of a killed trainer is raised by the time until it is up again. Two runs
differ after the strike in all that is random, too, and end a step some hundredths apart for that alone: a fault may
seem to cost less than nothing.

The time is the simulator's, so that every machine finds the same figures. Its promises are checked meanwhile, as in
`zswarm simulate`. A process that is killed takes its connections with it, as the kernel sees to it, and others learn of
that at once; one that is frozen is given up for its silence, goes on after that, is fenced, and begins a new life. Who is cut
off stays so, one way or both, and his connections are not seen to break; a device that hangs never ends what it is at. How
soon each is out of the swarm is held against a target of its own, in heartbeats.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from stages.tasks import Run
from zswarm import limits
from zswarm.benchmarks.figures import Tail, claim, table_of_tails
from zswarm.errors import RunFailed
from zswarm.ids import Step
from zswarm.simulation.faults import Fault, Strike
from zswarm.simulation.network import Weather
from zswarm.simulation.schedule import UNIT_BYTES, Schedule
from zswarm.simulation.strikes import IMPATIENT_ONE_IN
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.symbolic import Pace
from zswarm.simulation.trace import Trace
from zswarm.simulation.violation import Violation
from zswarm.trainer.settings import Append, StepDone

HEARTBEAT_S = 0.5
NEVER_S = 1000.0
"""After every run."""
START_S = 2.0
"""How long a trainer that was killed takes to be up again."""
FROZEN_S = 5 * HEARTBEAT_S
"""Two heartbeats longer than it takes to be given up for silence."""
STRUCK, NEXT = Step(1), Step(2)

CALM = Schedule(
    seed=0,
    num_stages=4,
    brokers_per_stage=2,
    workers_per_stage=4,
    num_microbatches=32,
    steps=NEXT + 1,
    capacity_bytes=1 << 20,
    weather=Weather(latency_low_s=0.0008, latency_high_s=0.0012),
    pace=Pace(forward_s=0.247, jitter=0.02, unit_bytes=UNIT_BYTES),
    codec_one_in=1000,
    calm_from_s=NEVER_S,
    heartbeat_s=HEARTBEAT_S,
)
"""A local network and workers of one speed: a step takes about 8.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of fault, the role that it hits, and the steps that it may cost besides `waits_s`.

    `noticed_below` is within how many heartbeats the process has to be out of the swarm; None for whom that is no aim.
    """

    name: str
    fault: Fault
    role: str
    below: float
    noticed_below: float | None = None
    lasts_s: float = NEVER_S
    waits_s: float = 0.0
    """What is whoever's affair who starts the process again: so much later a step may end for that alone."""

    def nodes(self, schedule: Schedule) -> list[str]:
        """Return the names of all processes that it may hit."""
        per_stage = {"worker": schedule.workers_per_stage, "broker": schedule.brokers_per_stage}
        if self.role not in per_stage:
            return [self.role]
        return [f"{self.role}-{index}" for index in range(schedule.num_stages * per_stage[self.role])]


KINDS = (
    Kind(name="worker killed", fault=Fault.KILL_WORKER, role="worker", below=0.6, noticed_below=1.0),
    Kind(name="broker killed", fault=Fault.KILL_BROKER, role="broker", below=0.7, noticed_below=1.0),
    Kind(
        name=f"trainer killed, back after {START_S:g} s",
        fault=Fault.KILL_TRAINER,
        role="trainer",
        below=0.3,
        lasts_s=START_S,
        waits_s=START_S,
    ),
    Kind(
        name=f"worker frozen for {FROZEN_S:g} s",
        fault=Fault.FREEZE,
        role="worker",
        below=0.5,
        noticed_below=4.0,
        lasts_s=FROZEN_S,
    ),
    Kind(
        name="worker's device hangs",
        fault=Fault.HANG,
        role="worker",
        below=0.6,
        # Five jobs, which are longer than 3.5 heartbeats here: four of the default heartbeat of 1 s.
        noticed_below=4.0 * limits.HEARTBEAT_S / HEARTBEAT_S,
    ),
    Kind(name="worker cut off", fault=Fault.PARTITION, role="worker", below=0.6, noticed_below=4.0),
    Kind(name="broker cut off", fault=Fault.PARTITION, role="broker", below=0.7, noticed_below=4.0),
    Kind(name="worker leaves", fault=Fault.LEAVE_WORKER, role="worker", below=0.6),
    Kind(name="broker leaves", fault=Fault.LEAVE_BROKER, role="broker", below=0.3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A fault and what it cost, in steps."""

    kind: str
    seed: int
    node: str
    at: float
    """When in the step, as a part of it."""
    struck: float
    in_all: float
    left_after_s: float | None
    """How long after the strike the log said that the process was out; None if it never did."""
    num_redone: int
    """Microbatches that were counted once more for that, at the stage of whoever left, or admitted again."""


class StepEnds(Trace):
    """Remembers when each step was committed, the last time where that was more than once, who left when, and what was
    done again."""

    def __init__(self) -> None:
        super().__init__()
        self.is_kept = True
        self.ends_s: dict[Step, float] = {}
        self.left_at_s: dict[str, float] = {}
        self.jobs_at_s: dict[str, float] = {}
        """When each worker last began a job, as long as it was in."""
        self.num_redone = 0
        """Microbatches that somebody who left had counted, at his stage, or that were admitted again."""

    def record_command(self, time_s: float, node: str, command: object) -> None:
        """Note the end of a step, a leave, and what is done again."""
        super().record_command(time_s, node, command)
        match command:
            case StepDone():
                self.ends_s[command.step] = time_s
            case Run() if node not in self.left_at_s:
                self.jobs_at_s[node] = time_s
            case Append(record={"event": "leave", "node": name, "lost": num_lost}):
                self.left_at_s.setdefault(name, time_s)
                self.num_redone += num_lost
            case Append(record={"event": "replay", "microbatches": microbatches}):
                self.num_redone += len(microbatches)


def main(*, trials: int = 40, json_file: Path | None = None) -> None:
    """Let every kind of fault strike `trials` times and print what it costs beside the target.

    With `json_file`, write every trial there too.

    Raises:
        UserError: the file cannot be written.
        RunFailed: a run did not do what it should.

    """
    claim(json_file)
    console = Console()
    found: list[Trial] = []
    steps_s: list[float] = []
    for seed in range(trials):
        step_s, struck = strike_all(replace(CALM, seed=seed))
        steps_s.append(step_s)
        found += struck
    step_s = statistics.median(steps_s)
    for line in leaves_of(found):
        console.print(line)
    tails = tails_of(found, step_s)
    console.print(table_of_tails(tails, f"steps of {step_s:.1f} s that one fault costs, {trials} trials each"))
    noticed = noticed_of(found)
    console.print(table_of_tails(noticed, f"heartbeats of {HEARTBEAT_S:g} s until the process is out of the swarm"))
    if json_file is not None:
        written = {
            "step_s": step_s,
            "figures": [tail.as_json() for tail in (*tails, *noticed)],
            "trials": [asdict(trial) for trial in found],
        }
        json_file.write_text(json.dumps(written, indent=1) + "\n")


def strike_all(schedule: Schedule, kinds: Sequence[Kind] = KINDS) -> tuple[float, list[Trial]]:
    """Return how many seconds the step takes without a fault, and one trial of each kind.

    Raises:
        RunFailed: a run broke a promise, or nobody noticed a fault.

    """
    random = Random(f"faults {schedule.seed}")
    without = ends_s(schedule)
    begin_s, step_s = without[Step(STRUCK - 1)], without[STRUCK] - without[Step(STRUCK - 1)]
    trials = []
    for kind in kinds:
        node, at = random.choice(kind.nodes(schedule)), random.random()
        salt = 1 + IMPATIENT_ONE_IN * random.getrandbits(16)  # nobody asks a second time
        strike = Strike(fault=kind.fault, at_s=begin_s + at * step_s, lasts_s=kind.lasts_s, salt=salt, node=node)
        trace = trace_of(replace(schedule, faults=frozenset({kind.fault}), strikes=(strike,)))
        struck, left_at_s = trace.ends_s, trace.left_at_s.get(node)
        # A device hangs once it has something to do.
        begun_at_s = trace.jobs_at_s.get(node, 0.0) if kind.fault is Fault.HANG else 0.0
        late = {step: (struck[step] - without[step]) / step_s for step in (STRUCK, NEXT)}
        trials.append(
            Trial(
                kind=kind.name,
                seed=schedule.seed,
                node=node,
                at=at,
                struck=late[STRUCK],
                in_all=late[NEXT],
                left_after_s=None if left_at_s is None else left_at_s - max(strike.at_s, begun_at_s),
                num_redone=trace.num_redone,
            )
        )
    return step_s, trials


def leaves_of(trials: Sequence[Trial]) -> list[str]:
    """Return for each kind how soon the process was out of the swarm, and how much was done again for that."""
    lines = []
    for kind in KINDS:
        of_kind = [trial for trial in trials if trial.kind == kind.name]
        after_s = sorted(trial.left_after_s for trial in of_kind if trial.left_after_s is not None)
        if not after_s:
            continue
        redone = [trial.num_redone for trial in of_kind]
        lines.append(
            f"{kind.name}: out after {statistics.median(after_s):.2f} s (at most {after_s[-1]:.2f}), "
            f"{statistics.mean(redone):.1f} microbatches done again (at most {max(redone)})"
        )
    return lines


def ends_s(schedule: Schedule) -> dict[Step, float]:
    """Return when each step of a run ends; errors as those of `trace_of`."""
    return trace_of(schedule).ends_s


def trace_of(schedule: Schedule) -> StepEnds:
    """Run a schedule and return what happened.

    Raises:
        RunFailed: it broke a promise, or nobody noticed its fault.

    """
    trace = StepEnds()
    swarm = Swarm(schedule, trace)
    try:
        swarm.run()
    except Violation as violation:
        raise RunFailed(f"seed {schedule.seed}, {schedule.strikes}: {violation}") from violation
    for strike in schedule.strikes:
        if not _was_noticed(strike, swarm.disk.records):
            raise RunFailed(f"seed {schedule.seed}: the run has not noticed {strike}")
    return trace


def _was_noticed(strike: Strike, records: Sequence[dict[str, Any]]) -> bool:
    """Does the log say that the process was given up, or that the trainer began again?"""
    if strike.fault is Fault.KILL_TRAINER:
        return len([record for record in records if record["event"] == "start"]) > 1
    return any(record["event"] == "leave" and record["node"] == strike.node for record in records)


def noticed_of(trials: Sequence[Trial]) -> list[Tail]:
    """Return within how many heartbeats each kind that has to be noticed was."""
    tails = []
    for kind in KINDS:
        after_s = [inf if t.left_after_s is None else t.left_after_s for t in trials if t.kind == kind.name]
        if kind.noticed_below is not None:
            values = [each / HEARTBEAT_S for each in after_s]
            tails.append(Tail(name=f"{kind.name}: noticed", values=values, below=kind.noticed_below))
    return tails


def tails_of(trials: Sequence[Trial], step_s: float) -> list[Tail]:
    """Return what is to be printed: of each kind the struck step, and in all."""
    tails = []
    for kind in KINDS:
        of_kind = [trial for trial in trials if trial.kind == kind.name]
        below = kind.below + kind.waits_s / step_s
        tails.append(Tail(name=f"{kind.name}, in all", values=[trial.in_all for trial in of_kind], below=below))
        tails.append(Tail(name="  the struck step alone", values=[trial.struck for trial in of_kind], below=below))
    return tails
