"""What a planner decides from, and what it answers.

A view is what the coordinator knows at the end of a step. It fills one from its roster: `session`, `stage`, `job_s` and
`is_ready` are those of a worker's Record, `num_pending` is the number of bits of its `pending`, and `num_queued` that
of the `pending` of a stage's brokers, which counts leased jobs, too. Who has been told to move counts at the stage that
it moves to, and is not ready until it holds that stage's parameters.

    speed of a worker    cost of a microbatch in its stage / (its seconds per job * jobs per microbatch)
    rate of a stage      sum of its workers' speeds / cost of a microbatch
    throughput           the least rate of all stages, in microbatches/s

So what a worker would do in another stage follows from what it does in its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

from zswarm.ids import Session, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker."""

    session: Session
    stage: Stage
    """Where it works, or will as soon as it is ready."""
    is_ready: bool
    """It holds the stage's parameters; otherwise it is getting them, having joined or moved."""
    job_s: float = 0.0
    """Moving average of the seconds that a job takes it; 0 as long as nobody knows."""
    measured_in: Stage | None = None
    """The stage of those jobs, if not the one where it is."""
    num_pending: int = 0
    """Jobs that it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage."""

    cost: float
    """Of one microbatch, relative to the other stages; positive."""
    state_bytes: int
    """Parameters and optimizer state: what somebody who comes here downloads."""
    jobs_per_microbatch: int = 2
    """Forward and backward; the last stage does both in one."""
    num_queued: int = 0
    """Jobs that wait in it, wherever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmView:
    """The whole swarm; `workers` are sorted by session."""

    workers: tuple[WorkerView, ...]
    stages: tuple[StageView, ...]
    bandwidth_bytes_per_s: float
    """At which one worker gets state, and at which one gives it, beside the run's own traffic; positive."""
    residence_s: float
    """How long a worker is expected to stay, see `Churn`."""
    join_every_s: float = inf
    """Expected time between two newcomers; infinite if nobody joins."""
    least_ready: int = 1
    """How many who are ready a move has to leave in a stage; the paper's planner does not ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """This worker is to leave its stage for another one before the next step begins."""

    session: Session
    source: Stage
    target: Stage


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nobody is to move."""

    text: str
    is_early: bool = False
    """It is not time for a plan yet."""


class Planner(Protocol):
    """Decides who moves."""

    @property
    def next_plan_s(self) -> float:
        """The time before which it will only say that it is too early, so that nobody needs to fill a view."""
        ...  # pragma: no cover

    def plan(self, view: SwarmView, now: float) -> list[Move] | Reason:
        """Return who moves, at least one and each worker once, or why nobody does.

        It is asked at the end of each step and carried out before the next one begins, so that no gradient is lost.
        `now` is in seconds, of any clock that does not go back.
        """
        ...  # pragma: no cover


class Period:
    """Says when the next plan is due: `period_s` after the last one, the first at once or after a period."""

    def __init__(self, period_s: float, *, sleeps_first: bool = False) -> None:
        self._period_s = period_s
        self._sleeps_first = sleeps_first
        self.next_s = -inf
        """When; it is not known before somebody has asked for the first time."""

    def not_yet(self, now: float) -> Reason | None:
        """Return why there is no plan now; None if it is due, and the next one is a period later."""
        if self._sleeps_first:
            self._sleeps_first, self.next_s = False, now + self._period_s
        if now < self.next_s:
            return Reason(f"the next plan is due in {self.next_s - now:.0f} s", is_early=True)
        self.next_s = now + self._period_s
        return None
