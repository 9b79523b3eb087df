"""A schedule: everything that one simulated run depends on, drawn from its seed.

Each seed switches on a random subset of the kinds of faults (swarm testing): a run with all of them at
once hides what a run with two of them finds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

from zswarm.ids import Generation, RunId, Session
from zswarm.limits import MAX_FAILED_WORKERS, STUCK_FIRST_S
from zswarm.planning.planners import Rebalancing
from zswarm.planning.priced import PERIOD_S
from zswarm.simulation.faults import LASTS_S, ON_PURPOSE, Fault, Strike, by_time, draw_strikes
from zswarm.simulation.network import Weather
from zswarm.simulation.poison import Poison
from zswarm.simulation.symbolic import Pace
from zswarm.trainer.settings import CoordinatorSettings
from zswarm.wiring import POLICIES

UNIT_BYTES = 1000
HEARTBEAT_S = 1.0
"""Of a schedule that does not say otherwise."""
CALM_FROM_S = 14.0
RECOVERY_HEARTBEATS = 120.0
"""Silence, an empty stage, a restore and unseen microbatches one after the other are a dozen; the longest wait before
something is sent again, 31, may lie in front of each of the two last; the evaluation's is longer still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One run. `pace` is that of the fastest worker."""

    seed: int
    faults: frozenset[Fault] = frozenset()
    num_stages: int
    brokers_per_stage: int
    workers_per_stage: int
    late_brokers: int = 0
    """Processes beyond those that the run waits for: they come any time."""
    late_workers: int = 0
    num_microbatches: int
    steps: int
    num_held_out: int = 0
    grad_clip: float = 1.0
    wiring: str = "queue"
    window: int = 0
    capacity_bytes: int = 100_000
    weather: Weather = Weather()
    pace: Pace = Pace()
    slowness: float = 1.0
    """A worker takes up to this many times as long as the fastest."""
    drains: bool = False
    """The goodbye of the trainer is lost, so that one can see that nothing is left in the swarm."""
    interrupted_at_s: float | None = None
    """When the user asks for the end, if ever."""
    codec_one_in: int = 50
    """Of so many messages one goes through the wire codec."""
    heartbeat_s: float = HEARTBEAT_S
    layers_per_stage: tuple[int, ...] = ()
    """Empty for one each."""
    checkpoint_every: int = 0
    sync_s: float = 0.0
    """A durable record takes the trainer up to so long."""
    poisons: tuple[Poison, ...] = ()
    strikes: tuple[Strike, ...] = ()
    rebalancing: Rebalancing = "priced"
    rebalance_every_s: float = PERIOD_S
    backup_every_s: float | None = None
    calm_from_s: float = 0.0
    """From this time on no strike begins, and the effects of all of them are over."""

    @property
    def split(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return self.layers_per_stage or (1,) * self.num_stages

    def settings(self) -> CoordinatorSettings:
        """Return what the coordinator is told."""
        return CoordinatorSettings(
            run=RunId(self.seed + 1),
            generation=Generation(1),
            first_session=Session(1),
            layers_per_stage=self.split,
            steps=self.steps,
            num_microbatches=self.num_microbatches,
            num_targets=self.num_microbatches,
            num_held_out=self.num_held_out,
            learning_rate=_learning_rate,
            grad_clip=self.grad_clip,
            wiring=self.wiring,
            window=self.window,
            unit_bytes=(UNIT_BYTES,) * self.num_stages,
            stage_costs=(1.0,) * self.num_stages,
            state_bytes=(UNIT_BYTES,) * self.num_stages,
            rebalancing=self.rebalancing,
            rebalance_every_s=self.rebalance_every_s,
            backup_every_s=self.backup_every_s,
            configuration=json.dumps(self.split).encode(),
            basis="",
            workers_per_stage=self.workers_per_stage,
            brokers_per_stage=self.brokers_per_stage,
            heartbeat_s=self.heartbeat_s,
            checkpoint_every=self.checkpoint_every,
        )

    def time_limit_s(self) -> float:
        """Return how long the run may take at most, however unlucky: liveness is measured against it.

        Once the network is fair and everything is up again: every job of the run one after the other at the slowest
        worker, twice the slowest hop for every hop of every microbatch in a row, and ten heartbeats for every commit.
        Faults cost their recovery on top of that: `RECOVERY_HEARTBEATS` after the last strike, and, since the run may
        have to begin again from its first step then, nothing that was done before it counts.
        """
        job_s = 2.0 * self.pace.forward_s * self.slowness * (1.0 + self.pace.jitter)
        hop_s = 2.0 * self.weather.latency_high_s * self.weather.payload_factor * (1.0 + 2.0 * self.weather.jitter)
        hop_s += 2.0 * self.weather.transmit_s
        microbatches = self.steps * self.num_microbatches + 2 * self.num_held_out
        passes = 2 * self.num_stages * microbatches
        work_s = passes * (job_s + hop_s) + 10.0 * (self.heartbeat_s + self.sync_s) * (self.steps + 4)
        recovery_s = RECOVERY_HEARTBEATS * self.heartbeat_s * min(1, len(self.strikes) + len(self.poisons))
        # A device is given long, by the trainer and then by its own process.
        recovery_s += 2 * STUCK_FIRST_S * sum(strike.fault is Fault.HANG for strike in self.strikes)
        return max(self.weather.fair_from_s, self.calm_from_s) + work_s + recovery_s

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes: numbers and texts."""
        return json.loads(json.dumps(asdict(self) | {"faults": sorted(self.faults)}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Schedule:
        """Return the schedule that `as_json` has written down."""
        return cls(
            **fields
            | {
                "faults": frozenset(map(Fault, fields["faults"])),
                "weather": Weather(**fields["weather"]),
                "pace": Pace(**fields["pace"]),
                "layers_per_stage": tuple(fields.get("layers_per_stage", ())),
                "poisons": tuple(Poison(**each) for each in fields.get("poisons", ())),
                "strikes": tuple(
                    Strike(**each | {"fault": Fault(each["fault"])}) for each in fields.get("strikes", ())
                ),
            }
        )


def _learning_rate(step: int) -> float:
    return 1.0 / (1 + step)


def make_schedule(seed: int) -> Schedule:
    """Draw a schedule; in some of them processes come and go on purpose, besides everything else."""
    schedule = _with_purpose(_accident(seed), Random(f"purpose {seed}"))
    schedule = _with_machine_leaving(schedule, Random(f"machine {seed}"))
    schedule = _with_corruption(schedule, Random(f"corruption {seed}"))
    schedule = _with_slow_log(schedule, Random(f"log {seed}"))
    schedule = _with_plans(schedule, Random(f"plans {seed}"))
    return _with_backups(schedule, Random(f"backups {seed}"))


def _with_corruption(schedule: Schedule, random: Random) -> Schedule:
    """Draw whether messages are changed on the way; each costs a connection, too."""
    if random.random() < 0.85:
        return schedule
    weather = replace(schedule.weather, corruption=random.choice((0.005, 0.02)))
    return replace(schedule, faults=schedule.faults | {Fault.CORRUPTION}, weather=weather)


def _with_slow_log(schedule: Schedule, random: Random) -> Schedule:
    """Draw how long the trainer's disk takes for what is to be durable."""
    if random.random() < 0.8:
        return schedule
    return replace(schedule, faults=schedule.faults | {Fault.SLOW_LOG}, sync_s=random.choice((0.005, 0.02, 0.1)))


def _with_plans(schedule: Schedule, random: Random) -> Schedule:
    """Draw who plans and how often; runs are short, so that plans of every minute would be rare."""
    planner: Rebalancing = random.choice(("priced", "published"))
    return replace(schedule, rebalancing=planner, rebalance_every_s=random.choice((1.0, 3.0, PERIOD_S)))


def _with_backups(schedule: Schedule, random: Random) -> Schedule:
    """Draw how often what has been counted is copied; steps are short, so that what pays would be rare."""
    return replace(schedule, backup_every_s=random.choice((0.0, 0.0, 1.5, None)))


def _with_purpose(schedule: Schedule, random: Random) -> Schedule:
    """Draw what somebody asks of one process at a time."""
    asked = random.choice((0.0, 0.0, 0.5))
    sorts = ON_PURPOSE - {Fault.LEAVE_HOST}
    faults = frozenset(fault for fault in Fault if fault in sorts and random.random() < asked)
    return _with_strikes(schedule, draw_strikes(faults, random), random)


def _with_machine_leaving(schedule: Schedule, random: Random) -> Schedule:
    """Draw whether all processes of a machine are asked to leave at once."""
    if random.random() < 0.9:
        return schedule
    return _with_strikes(schedule, draw_strikes(frozenset({Fault.LEAVE_HOST}), random), random)


def _with_strikes(schedule: Schedule, strikes: list[Strike], random: Random) -> Schedule:
    """Add what somebody asks for; where nothing strikes otherwise jobs take longer, or it would all be over before."""
    if not strikes:
        return schedule
    faults = frozenset(strike.fault for strike in strikes)
    forward_s = schedule.pace.forward_s if schedule.strikes else random.choice((0.02, 0.05, 0.1))
    return replace(
        schedule,
        faults=schedule.faults | faults,
        strikes=by_time((*schedule.strikes, *strikes)),
        pace=replace(schedule.pace, forward_s=forward_s),
        drains=False,
        calm_from_s=CALM_FROM_S,
    )


def _accident(seed: int) -> Schedule:
    """Draw a schedule in which everything that happens is an accident."""
    random = Random(f"schedule {seed}")
    faults = _faults(random)
    strikes = by_time(draw_strikes(faults, random))
    microbatches = random.choice((1, 2, 3, 3, 4, 4, 5, 6, 8, 16))
    tight, late = Fault.TIGHT_BROKERS in faults, Fault.LATE_PROCESSES in faults
    stages = random.choice((1, 2, 2, 2, 3) if strikes else (1, 2, 2, 2, 3, 4))
    workers = random.choice((1, 2, 2, 2, 3, 4) if stages < 3 else (1, 1, 2, 2, 3))
    steps = random.choice((2, 2, 2, 3, 3, 5)) if microbatches < 8 else 2
    return Schedule(
        seed=seed,
        faults=faults,
        num_stages=stages,
        brokers_per_stage=random.choice((1, 1, 1, 2, 2, 3) if stages < 3 else (1, 1, 2)),
        workers_per_stage=workers,
        late_brokers=random.randint(0, 2) if late else 0,
        late_workers=random.randint(0, 2) if late else 0,
        num_microbatches=microbatches,
        steps=steps,
        num_held_out=random.choice((0, 0, 1, 3)),
        grad_clip=random.choice((0.0, 1.0, 1e9)),
        wiring=random.choice(sorted(POLICIES)),
        window=random.choice((0, 0, 1, 2, 8)),
        capacity_bytes=UNIT_BYTES * (random.randint(2, 8) if tight else 1000),
        weather=_weather(faults, random),
        pace=_pace(faults, random, is_struck=bool(strikes)),
        slowness=random.choice((2.0, 5.0, 10.0)) if Fault.UNEVEN_WORKERS in faults else 1.0,
        drains=random.random() < 0.3 and not strikes,
        interrupted_at_s=random.uniform(0.0, 10.0) if Fault.INTERRUPTION in faults and random.random() < 0.3 else None,
        codec_one_in=50,
        layers_per_stage=tuple(random.choice((1, 1, 2)) for _ in range(stages)),
        checkpoint_every=random.choice((0, 1, 1, 2)),
        poisons=_poisons(faults, random, stages=stages, workers=workers, microbatches=microbatches, steps=steps),
        strikes=strikes,
        calm_from_s=CALM_FROM_S if strikes or Fault.DISK in faults else 0.0,
    )


def _faults(random: Random) -> frozenset[Fault]:
    """Draw a subset: of the weather and of the strikes each as many as it happens, now and then none of one sort."""
    some, struck = random.choice((0.0, 0.15, 0.35, 0.6)), random.choice((0.0, 0.1, 0.1, 0.2, 0.4))
    accidents = [fault for fault in Fault if fault not in ON_PURPOSE | {Fault.CORRUPTION, Fault.SLOW_LOG}]
    return frozenset(fault for fault in accidents if random.random() < (struck if fault in LASTS_S else some))


def _poisons(
    faults: frozenset[Fault], random: Random, *, stages: int, workers: int, microbatches: int, steps: int
) -> tuple[Poison, ...]:
    """Draw microbatches at which so few workers fail that the others can go on."""
    if Fault.POISON not in faults or workers < 2:
        return ()
    return tuple(
        Poison(
            step=random.randrange(steps),
            microbatch=random.randrange(microbatches),
            stage=random.randrange(stages),
            num_workers=random.randint(1, min(workers, MAX_FAILED_WORKERS) - 1),
        )
        for _ in range(random.choice((1, 1, 2)))
    )


def _weather(faults: frozenset[Fault], random: Random) -> Weather:
    slow = Fault.SLOW_LINKS in faults
    return Weather(
        latency_low_s=0.002,
        latency_high_s=random.choice((0.05, 0.15)) if slow else 0.01,
        jitter=random.choice((0.1, 1.0)),
        loss=random.choice((0.02, 0.1, 0.5)) if Fault.LOSS in faults else 0.0,
        duplication=random.choice((0.05, 0.3)) if Fault.DUPLICATION in faults else 0.0,
        straggling=random.choice((0.01, 0.05)) if Fault.STRAGGLING in faults else 0.0,
        straggle_s=random.choice((0.3, 1.0, 6.0)),
        in_order=Fault.REORDERING not in faults,
        payload_factor=random.choice((2.0, 5.0)) if Fault.SLOW_PAYLOADS in faults else 1.0,
        fair_from_s=random.choice((5.0, 10.0, 10.0, 30.0)),
    )


def _pace(faults: frozenset[Fault], random: Random, *, is_struck: bool) -> Pace:
    """Where something strikes jobs take longer, or it would all be over before."""
    forgetful = Fault.FORGETFUL_WORKERS in faults
    return Pace(
        forward_s=random.choice((0.02, 0.05, 0.1) if is_struck else (0.005, 0.02)),
        jitter=random.choice((0.1, 1.0)),
        keep=random.choice((0.0, 0.5, 1.0)) if forgetful else 1.0,
        evict=random.choice((0.1, 0.5, 1.0)) if forgetful else 0.0,
        unit_bytes=UNIT_BYTES,
    )
