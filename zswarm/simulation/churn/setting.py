"""What a simulated swarm is like, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from zswarm.planning.view import Planner


class Placement(StrEnum):
    """Where newcomers go."""

    RANDOM = "random"
    SLOWEST = "slowest"
    """To the slowest stage, as `place` says."""


class Leavers(StrEnum):
    """Who leaves, when the trace says that somebody does."""

    NAMED = "named"
    """Whom it names."""
    OF_ANY_STAGE = "of any stage"
    """As in the paper's simulation: first a stage is drawn, each as likely as the others, then one of its workers. So a
    stage with many workers loses no more of them than one with few, and what is out of balance drifts further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A swarm. Defaults: T4s, four stages, and a model of 1 billion parameters, as in the paper's large run."""

    costs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """Of one microbatch in each stage."""
    speeds: tuple[float, ...] = (1.0,)
    """Of machines, in costs per `microbatch_s`; worker i of the trace has the i-th, over and over."""
    microbatch_s: float = 5.7
    """Forward and backward on a machine of speed 1 in a stage of cost 1: 400 T4 in 4 stages then do 17.5 per second."""
    state_bytes: float = 12 * 1.01e9 / 4
    """Of one stage: float32 parameters, and two moments of Adam."""
    bandwidth_bytes_per_s: float = 500e6 / 8
    num_microbatches: int = 512
    """Of one step."""
    window: int = 2
    """Microbatches in the pipeline per worker."""
    heartbeat_s: float = 1.0
    job_deviation: float = 0.2
    """Standard deviation of the time that a job takes, relative to the mean."""
    leavers: Leavers = Leavers.NAMED
    waits_for_steps: bool = True
    """Workers move at the end of a step; otherwise whenever the planner says so."""

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a swarm is kept in balance."""

    name: str
    planner: Callable[[], Planner]
    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulated run."""

    policy: str
    seed: int
    duration_s: float
    microbatches: float
    optimal_microbatches: float
    """With everybody always where it is best, and no downloads."""
    num_steps: int
    num_joins: int
    num_moves: int
    num_lost_moves: int
    """Of those who left before they had arrived."""
    downloaded_bytes: float
    stalled_s: float
    """With a stage in which nobody was ready."""

    @property
    def share(self) -> float:
        """Part of the optimum that was reached."""
        return self.microbatches / self.optimal_microbatches
