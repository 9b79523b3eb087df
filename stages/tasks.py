"""What the worker's machine asks of its compute thread, and what comes back.

Tasks are carried out one after the other, in their order. The simulator answers them symbolically.
Frames are opaque to the machine: read-only buffers in production.
"""

from __future__ import annotations

from dataclasses import dataclass

from zswarm import ledger
from zswarm.ids import JobKind, JobStatus, Lease, Round, Stage, StatePart, Step
from zswarm.messages import Key, Load, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Make the stage's layers and optimizer from the run's configuration (JSON). Answer: Built, Unfit or Failed."""

    stage: Stage
    num_stages: int
    configuration: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Do a job. Answers: Emitted where there is a dx, then Ran; or Failed.

    Another Run may be carried out between Emitted and Ran; no other task is, but for Reset, after which Ran does not come.

    FORWARD takes `x`, yields `y`, keeps the graph or the input until the backward or Apply.
    BACKWARD takes `dy` and, where the worker may not have kept it, `x`. FUSED and EVALUATE take `x`.
    With `accumulate` false nothing is added to the accumulator: only dx is wanted. With `emit` false nobody wants dx:
    there is no Emitted.
    """

    lease: Lease
    kind: JobKind
    key: Key
    accumulate: bool
    emit: bool
    x: Load | None
    dy: Load | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Copy the accumulator for a round of `num_shards` participants; one alone sends nothing. Answer: Snapshotted."""

    round: Round
    num_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Add the participants' contributions to one shard, in the order given. Answer: Summed.

    `contributions[i]` are the chunks of participant i's share of this shard, in order; the own one is
    among them as Snapshotted gave it.
    """

    round: Round
    shard: int
    contributions: tuple[tuple[Load, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assemble:
    """Put the summed shards together: the stage's reduced gradient. Answer: Assembled."""

    round: Round
    shards: tuple[tuple[Load, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Forget a round's snapshot and result; the accumulator stays. No answer."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Clear the accumulator and all that was kept of microbatches and rounds; parameters and the copy that `Apply`
    has kept for a checkpoint stay. Answer: WasReset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Take the optimizer step with a round's reduced gradient, clear the accumulator and all that was
    kept of this step's microbatches. With `apply` false only clear. With `snapshot` copy the state then, parameters and
    optimizer, in place of an earlier copy. Answer: Applied.

    `retained` names layers by the steps at whose beginning they were as they are to be kept: those of `step` as they are
    now, others as they are kept already. `gradients` are the steps whose gradient and learning rate are to be kept, likewise.
    What neither names is forgotten.
    """

    step: Step
    round: Round
    scale: float
    lr: float
    apply: bool
    snapshot: bool
    retained: tuple[tuple[int, Step], ...] = ()
    gradients: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Take a range of one layer's state, a safetensors file in memory. Answer: Exported.

    A SHARE is what has been counted in all layers, as it is when its first range is asked for. Anything else is of the present
    state; of the copy that Apply has kept; or, with `step`, of what Apply has retained or, if it is GRADIENT, kept of that step.
    """

    part: StatePart
    layer: int
    offset_bytes: int
    from_snapshot: bool = False
    step: Step | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Take a range of a file that somebody has exported; those of one file come in order, and one at offset 0 begins the
    file anew. A SHARE is of what is in `ledger`, and waits for TakeShare, or for whatever clears the accumulator; with another one's first
    range all that wait are forgotten but for that of `kept`. With both files of its state complete, the
    layer becomes that; with a GRADIENT complete, it takes that step. Answer: Imported; or Failed, if a file is not what its layer
    needs: the layer is as it was then."""

    part: StatePart
    layer: int
    offset_bytes: int
    total_bytes: int
    load: Load
    ledger: int = 0
    kept: int = 0


def import_of(message: State, load: Load, *, kept: int = 0) -> Import:
    """Return the task that takes what a State brings."""
    return Import(
        part=message.part,
        layer=message.layer,
        offset_bytes=message.offset_bytes,
        total_bytes=message.total_bytes,
        load=load,
        ledger=ledger.from_bytes(message.ledger),
        kept=kept,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """The layers are all of one version, imported or brought there: clear as Reset does. Answer: Adopted, or Failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeShare:
    """Add the SHARE of `ledger` that has been imported to what has been counted. Answer: ShareTaken."""

    ledger: int


Task = Build | Run | Snapshot | Sum | Assemble | Discard | Reset | Apply | Export | Import | Adopt | TakeShare


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The stage exists, and jobs and a round have been done with made-up numbers.

    They took `job_s` (those of a microbatch to train on and of one to evaluate with) and `round_s`; 0 where that is not known:
    layers may refuse such numbers.

    `parameter_digest` is of the trainable parameters, as everywhere. Tables that layers compute may differ in the last bit
    between kinds of processors; what they draw does not, see `build_layer`.
    """

    num_parameters: int
    parameter_digest: int
    job_s: float
    round_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """The gradient of the stage's input is there; the parameters' gradients may still be in work."""

    lease: Lease
    dx: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A job has ended. `y` is the output of a FORWARD; the losses are those of FUSED and EVALUATE."""

    lease: Lease
    status: JobStatus
    y: Load | None
    kept: bool
    loss_sum: float
    num_targets: int
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshotted:
    """The own contribution, `shards[i]` in chunks of at most `REDUCE_CHUNK_BYTES`; none where nobody else takes part."""

    round: Round
    shards: tuple[tuple[Load, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """One shard, summed."""

    round: Round
    shard: int
    chunks: tuple[Load, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """The reduced gradient is held for Apply. `digest` is equal wherever its bits are equal."""

    round: Round
    digest: int
    finite: bool
    square_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The parameters are those of `step` + 1."""

    step: Step
    parameter_digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A range of at most `STATE_RANGE_BYTES` from `offset_bytes` on, of a file of `total_bytes`."""

    part: StatePart
    layer: int
    offset_bytes: int
    total_bytes: int
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A range has been taken."""

    part: StatePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareTaken:
    """Another worker's share is in the accumulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WasReset:
    """The accumulator is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """The parameters are those that were imported."""

    parameter_digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A layer raised, or the stage could not be built: `layer` and `text` are for the user.

    `lease` is that of the Run that failed, None for any other task. The accumulator may hold part of a gradient then.
    """

    layer: str
    text: str
    lease: Lease | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """This machine cannot find the model's code, may not run it, or has too little memory for the stage: others may do it.

    `text` is for the user. It is an answer to Build.
    """

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The device does not work any more in this process, or has no memory left: another life may help.

    It may come in place of any task's answer, and nothing does after it.
    """

    text: str


Outcome = (
    Built
    | Emitted
    | Ran
    | Snapshotted
    | Summed
    | Assembled
    | WasReset
    | Applied
    | Exported
    | Imported
    | Adopted
    | ShareTaken
    | Failed
    | Unfit
    | Broken
)
