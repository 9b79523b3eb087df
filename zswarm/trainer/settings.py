"""What the coordinator is told when it is made, and what it says to its own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zswarm.ids import Branch, Generation, Microbatch, Peer, Purpose, RunId, Session, StatePart, Step, Version
from zswarm.messages import Load, Pull
from zswarm.planning.planners import Rebalancing
from zswarm.planning.priced import PERIOD_S
from zswarm.trainer.recovery import Recovered


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
    """Of one microbatch at each stage the larger of its input and of the gradient of its output."""
    configuration: bytes
    """The run file as JSON, for the workers."""
    basis: str
    """Tells configuration and data from others: what has been counted in a step is of use on the same basis only."""
    workers_per_stage: int
    """The run begins when every stage has this many workers and `brokers_per_stage` brokers."""
    brokers_per_stage: int
    heartbeat_s: float
    stage_costs: tuple[float, ...]
    """Of one microbatch at each stage, relative to the others."""
    state_bytes: tuple[int, ...]
    """Parameters and optimizer state of each stage."""
    rebalancing: Rebalancing = "priced"
    rebalance_every_s: float = PERIOD_S
    backup_every_s: float | None = None
    """For how long what a worker has counted may be in no copy; None for as long as a copy costs more."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 for one at the end only."""
    recovered: Recovered | None = None
    """What the log of an earlier generation says; None for a new run."""
    checkpoint: Version | None = None
    """The newest complete checkpoint on the disk."""

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
class Unreachable:
    """The connection behind a link is gone: what is sent to it reaches nobody."""

    peer: Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A range of a layer's state for the checkpoint of (branch, step); those of one file come in order, and one at
    offset 0 begins the file anew."""

    branch: Branch
    step: Step
    part: StatePart
    layer: int
    offset_bytes: int
    total_bytes: int
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Every range of this checkpoint has been given to Store: make it durable. Answered by Sealed, later."""

    branch: Branch
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A checkpoint is complete and durable, or with a `problem` it is not, and an earlier one stays the newest."""

    branch: Branch
    step: Step
    problem: str = ""
    lacks_room: bool = False
    """The problem is a disk that is full, and passes when somebody makes room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """The disk takes what is stored of a checkpoint more slowly than it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """It was behind, and is not any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forsake:
    """Drop what was stored of a checkpoint that will not be completed."""

    branch: Branch
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read a range of the checkpoint of `step` (of whichever branch made it). Answered by WasRead, at once or later."""

    peer: Peer
    pull: Pull
    checkpoint: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class WasRead:
    """A range of a checkpoint, at most `STATE_RANGE_BYTES`; None if it cannot be read, with the `problem`."""

    peer: Peer
    pull: Pull
    total_bytes: int
    load: Load | None
    problem: str = ""
    is_damaged: bool = False
    """Nobody will ever read it: otherwise the problem is one of the question, or may pass."""
    left: tuple[Version, ...] = ()
    """With `is_damaged`, the other checkpoints that are on the disk, of whatever history."""


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
