"""A schedule: everything that one simulated run depends on, drawn from its seed.

Each seed switches on a random subset of the kinds of faults (swarm testing): a run with all of them at
once hides what a run with two of them finds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from random import Random
from typing import Any

from zswarm.ids import Generation, RunId, Session
from zswarm.simulation.network import Weather
from zswarm.simulation.symbolic import Pace
from zswarm.trainer.settings import CoordinatorSettings
from zswarm.wiring import POLICIES

UNIT_BYTES = 1000
HEARTBEAT_S = 1.0


class Fault(StrEnum):
    """What may go wrong in a schedule."""

    LOSS = "loss"
    DUPLICATION = "duplication"
    REORDERING = "reordering"
    STRAGGLING = "straggling"
    SLOW_LINKS = "slow links"
    SLOW_PAYLOADS = "slow payloads"
    CROOKED_CLOCKS = "crooked clocks"
    UNEVEN_WORKERS = "uneven workers"
    FORGETFUL_WORKERS = "forgetful workers"
    TIGHT_BROKERS = "tight brokers"
    LATE_PROCESSES = "late processes"
    INTERRUPTION = "interruption"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One run. `pace` is that of the fastest worker."""

    seed: int
    faults: frozenset[Fault]
    num_stages: int
    brokers_per_stage: int
    workers_per_stage: int
    late_brokers: int
    """Processes beyond those that the run waits for: they come any time."""
    late_workers: int
    num_microbatches: int
    steps: int
    num_held_out: int
    grad_clip: float
    wiring: str
    window: int
    capacity_bytes: int
    weather: Weather
    pace: Pace
    slowness: float
    """A worker takes up to this many times as long as the fastest."""
    drains: bool
    """The goodbye of the trainer is lost, so that one can see that nothing is left in the swarm."""
    interrupted_at_s: float | None
    """When the user asks for the end, if ever."""
    codec_one_in: int
    """Of so many messages one goes through the wire codec."""

    def settings(self) -> CoordinatorSettings:
        """Return what the coordinator is told."""
        return CoordinatorSettings(
            run=RunId(self.seed + 1),
            generation=Generation(1),
            first_session=Session(1),
            layers_per_stage=(1,) * self.num_stages,
            steps=self.steps,
            num_microbatches=self.num_microbatches,
            num_targets=self.num_microbatches,
            num_held_out=self.num_held_out,
            learning_rate=_learning_rate,
            grad_clip=self.grad_clip,
            wiring=self.wiring,
            window=self.window,
            unit_bytes=(UNIT_BYTES,) * self.num_stages,
            configuration=b"{}",
            workers_per_stage=self.workers_per_stage,
            brokers_per_stage=self.brokers_per_stage,
            heartbeat_s=HEARTBEAT_S,
            silence_heartbeats=120,
        )

    def time_limit_s(self) -> float:
        """Return how long the run may take at most, however unlucky: liveness is measured against it.

        Once the network is fair: every job of the run one after the other at the slowest worker, twice
        the slowest hop for every hop of every microbatch in a row, and ten heartbeats for every commit.
        """
        job_s = 2.0 * self.pace.forward_s * self.slowness * (1.0 + self.pace.jitter)
        hop_s = 2.0 * self.weather.latency_high_s * self.weather.payload_factor * (1.0 + 2.0 * self.weather.jitter)
        hop_s += 2.0 * self.weather.transmit_s
        microbatches = self.steps * self.num_microbatches + 2 * self.num_held_out
        passes = 2 * self.num_stages * microbatches
        return self.weather.fair_from_s + passes * (job_s + hop_s) + 10.0 * HEARTBEAT_S * (self.steps + 4)

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes: numbers and texts."""
        return asdict(self) | {"faults": sorted(self.faults)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Schedule:
        """Return the schedule that `as_json` has written down."""
        return cls(
            **fields
            | {
                "faults": frozenset(map(Fault, fields["faults"])),
                "weather": Weather(**fields["weather"]),
                "pace": Pace(**fields["pace"]),
            }
        )


def _learning_rate(step: int) -> float:
    return 1.0 / (1 + step)


def make_schedule(seed: int) -> Schedule:
    """Draw a schedule."""
    random = Random(f"schedule {seed}")
    some = random.choice((0.15, 0.35, 0.6))
    faults = frozenset(fault for fault in Fault if random.random() < some)
    microbatches = random.choice((1, 2, 3, 3, 4, 4, 5, 6, 8, 16))
    tight = Fault.TIGHT_BROKERS in faults
    late = Fault.LATE_PROCESSES in faults
    stages = random.choice((1, 2, 2, 2, 3, 4))
    return Schedule(
        seed=seed,
        faults=faults,
        num_stages=stages,
        brokers_per_stage=random.choice((1, 1, 1, 2, 2, 3) if stages < 4 else (1, 1, 2)),
        workers_per_stage=random.choice((1, 2, 2, 2, 3, 4) if stages < 3 else (1, 1, 2, 2, 3)),
        late_brokers=random.randint(0, 3) if late else 0,
        late_workers=random.randint(0, 3) if late else 0,
        num_microbatches=microbatches,
        steps=random.choice((2, 2, 2, 3, 3, 5)) if microbatches < 8 else 2,
        num_held_out=random.choice((0, 0, 1, 3)),
        grad_clip=random.choice((0.0, 1.0, 1e9)),
        wiring=random.choice(sorted(POLICIES)),
        window=random.choice((0, 0, 1, 2, 8)),
        capacity_bytes=UNIT_BYTES * (random.randint(2, 8) if tight else 1000),
        weather=_weather(faults, random),
        pace=_pace(faults, random),
        slowness=random.choice((2.0, 5.0, 20.0)) if Fault.UNEVEN_WORKERS in faults else 1.0,
        drains=random.random() < 0.3,
        interrupted_at_s=random.uniform(0.0, 10.0) if Fault.INTERRUPTION in faults and random.random() < 0.3 else None,
        codec_one_in=50,
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
        fair_from_s=random.choice((5.0, 20.0, 40.0)),
    )


def _pace(faults: frozenset[Fault], random: Random) -> Pace:
    forgetful = Fault.FORGETFUL_WORKERS in faults
    return Pace(
        forward_s=random.choice((0.005, 0.02)),
        jitter=random.choice((0.1, 1.0)),
        keep=random.choice((0.0, 0.5, 1.0)) if forgetful else 1.0,
        evict=random.choice((0.1, 0.5, 1.0)) if forgetful else 0.0,
        unit_bytes=UNIT_BYTES,
    )
