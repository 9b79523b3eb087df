"""What the coordinator is told when it is made, and what it says to its own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zswarm.ids import Generation, Microbatch, Purpose, RunId, Session, Step
from zswarm.messages import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """One run, as its coordinator sees it."""

    run: RunId
    generation: Generation
    first_session: Session
    """The first session number to issue; larger than any issued before."""
    layers_per_stage: tuple[int, ...]
    steps: int
    num_microbatches: int
    """Of one step."""
    num_targets: int
    """Predictions of one step: the fixed denominator of its loss and gradient."""
    num_held_out: int
    """Microbatches of one evaluation, before the first and after the last step; 0 for none."""
    learning_rate: Callable[[int], float]
    """Of each step."""
    grad_clip: float
    """Largest norm of the whole model's gradient; 0 for no limit."""
    wiring: str
    window: int
    """Microbatches in the pipeline at once; 0 for two per worker."""
    unit_bytes: tuple[int, ...]
    """Size of one microbatch at each stage's input."""
    configuration: bytes
    """The run file as JSON, for the workers."""
    workers_per_stage: int
    """The run begins when every stage has this many workers and `brokers_per_stage` brokers."""
    brokers_per_stage: int
    heartbeat_s: float
    silence_heartbeats: int = 30
    """A process silent for this many heartbeats ends the run."""

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.layers_per_stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draw the samples of a microbatch; answered by Sampled."""

    purpose: Purpose
    step: Step
    microbatch: Microbatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The samples of a microbatch: stage 0's input and the labels, ready to send."""

    purpose: Purpose
    step: Step
    microbatch: Microbatch
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The user asked for the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Write a record to the run's event log; with `durable`, before anything that follows it."""

    record: dict[str, Any]
    durable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A range of a layer's final parameters has come."""

    layer: int
    offset_bytes: int
    total_bytes: int
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step is committed: for the progress line and the metrics."""

    step: Step
    loss: float
    lr: float
    grad_norm: float
    num_in_flight: int
    workers: tuple[int, ...]
    """Per stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDone:
    """The held-out loss of the parameters of `step` is known."""

    step: Step
    loss: float
