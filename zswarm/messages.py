"""Every message of the protocol: one frozen dataclass per kind.

The fields' annotations are the contract: the wire codec (`zswarm.wire`) checks type and range of each
of them on arrival. Integers are bounded by `U32`, `U64` and friends, sequences by `Length`. A field
with a default may be missing on the wire (older peer); unknown fields are ignored (newer peer).

Sockets (see docs/protocol.md): `coordinator` (a ROUTER at the trainer, everybody dials), `control` and
`work` (two ROUTERs at each broker, so that small messages never wait behind payloads), `peer` (a
ROUTER at each worker, the workers of its own stage and the trainer dial).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

from zswarm import limits
from zswarm.ids import (
    Address,
    Attempt,
    Branch,
    Direction,
    Generation,
    JobKind,
    JobStatus,
    Lease,
    Microbatch,
    NackCode,
    NodeId,
    Purpose,
    ReducePhase,
    RejectCode,
    Role,
    Round,
    RunId,
    Session,
    Stage,
    StatePart,
    Step,
)


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    low: float
    high: float


class Length(NamedTuple):
    """Most elements of a sequence, characters of a text or bytes of a blob."""

    most: int


U32 = Range(0, 2**32 - 1)
U64 = Range(0, 2**64 - 1)
FINITE = Range(-1.8e308, 1.8e308)
SECONDS = Range(0.0, 1e9)
TEXT = Length(limits.MAX_TEXT_CHARS)

Bytes = Annotated[int, Range(0, 2**53)]
Seconds = Annotated[float, SECONDS]
Text = Annotated[str, TEXT]
Crc = Annotated[int, U32]
StepField = Annotated[Step, U64]
MicrobatchField = Annotated[Microbatch, Range(0, limits.MAX_MICROBATCHES - 1)]
StageField = Annotated[Stage, Range(0, limits.MAX_STAGES - 1)]
SessionField = Annotated[Session, U64]
Ledger = Annotated[bytes, Length(limits.MAX_LEDGER_BYTES)]
"""Set of microbatches as a little-endian bitmap: bit m is set when microbatch m is in it."""
Route = Annotated[tuple[SessionField, ...], Length(limits.MAX_STAGES)]
"""Sessions of the home brokers, stage 0 first."""
Mask = Annotated[bytes, Length(limits.MAX_STAGES // 8)]
"""Set of stages as a little-endian bitmap: the stages that count an attempt's gradient; set by the coordinator."""
Accused = Annotated[tuple[SessionField, ...], Length(limits.MAX_ACCUSED)]
"""Sessions that owe the sender an answer and have been silent towards it for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """How one tensor lies in a payload: `codec` names its encoding, `shape` and `dtype` what it decodes to."""

    codec: Annotated[str, Length(16)]
    dtype: Annotated[str, Length(16)]
    shape: Annotated[tuple[Annotated[int, Range(0, limits.MAX_DIMENSION)], ...], Length(limits.MAX_DIMENSIONS)]
    size_bytes: Annotated[int, Range(0, limits.MAX_PAYLOAD_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Description of a payload: its tensors in order, its size, and CRC-32 over all of its bytes."""

    tensors: Annotated[tuple[TensorSpec, ...], Length(limits.MAX_TENSORS)]
    size_bytes: Annotated[int, Range(1, limits.MAX_PAYLOAD_BYTES)]
    crc: Crc

    @property
    def num_frames(self) -> int:
        """Frames that carry this parcel: all of `MAX_FRAME_BYTES`, but for the last."""
        return -(-self.size_bytes // limits.MAX_FRAME_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A parcel together with the frames that hold it.

    The frames are opaque to every machine: buffers in production, symbols in the simulator.
    """

    parcel: Parcel
    frames: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every message says: whose run it is, and who speaks."""

    run: Annotated[RunId, U64]
    generation: Annotated[Generation, U32]
    session: SessionField


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage(Message):
    """A message about one optimizer step; a receiver drops what is older than its own (branch, step)."""

    branch: Annotated[Branch, U32]
    step: StepField


Key = tuple[Branch, Step, Purpose, Microbatch, Attempt]
"""What names one attempt of one microbatch everywhere."""


class KeyFields(TypedDict):
    """The fields that every message about a microbatch has."""

    branch: Branch
    step: Step
    purpose: Purpose
    microbatch: Microbatch
    attempt: Attempt


def key_fields(key: Key) -> KeyFields:
    """Return a key as the fields of a message."""
    branch, step, purpose, microbatch, attempt = key
    return {"branch": branch, "step": step, "purpose": purpose, "microbatch": microbatch, "attempt": attempt}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchMessage(StepMessage):
    """A message about one attempt of one microbatch."""

    microbatch: MicrobatchField
    attempt: Annotated[Attempt, U64]
    purpose: Purpose

    @property
    def key(self) -> Key:
        """Messages of one kind with equal keys are duplicates."""
        return (self.branch, self.step, self.purpose, self.microbatch, self.attempt)


# -- coordinator socket: membership ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Register(Message):
    """Process -> coordinator, repeated until answered: here I am. `session` and `run` are 0 or the last known."""

    node: Annotated[NodeId, TEXT]
    boot_nonce: Annotated[int, U64]
    """Random, one per life of the process: the same nonce gets the same session again."""
    role: Role
    addresses: Annotated[tuple[Annotated[Address, TEXT], ...], Length(2)]
    """Broker: control, work. Worker: peer."""
    stage: StageField | None = None
    """The stage that the process has been of and, if a worker, still holds parameters of; None for a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(StepMessage):
    """Coordinator -> process: the answer to Register. Payload: the run's configuration as JSON.

    `session` is the trainer's; `yours` the one that the process speaks with from now on, in the life of `boot_nonce`.
    """

    boot_nonce: Annotated[int, U64]
    yours: SessionField
    stage: StageField
    num_stages: Annotated[int, Range(1, limits.MAX_STAGES)]
    heartbeat_s: Seconds
    unit_bytes: Annotated[int, Range(1, limits.MAX_PAYLOAD_BYTES)]
    """Size of one microbatch at this stage's input: what a broker counts credits in."""
    wiring: Annotated[str, Length(32)]
    """How a producer picks brokers: a name from `zswarm.wiring`."""
    size_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Message):
    """Anybody -> peer: you cannot take part; `text` says why in words."""

    code: RejectCode
    text: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeartbeat(StepMessage):
    """Worker -> coordinator: everything that the coordinator decides from, all of it each time.

    Sent once per interval and whenever `ledger` or `step` changes. `report` grows with each one, so
    that a late one is told from a new one.
    """

    stage: StageField
    view: Annotated[int, U64]
    report: Annotated[int, U64]
    ready: bool
    """The stage's parameters exist and are those of `step`."""
    ledger: Ledger
    pending: Ledger
    """Microbatches to train on of `step` that this worker will do something about by itself: jobs that it holds,
    outputs that nobody has acknowledged."""
    voided: Annotated[Attempt, U64]
    """The newest Void that it has carried out, of whichever step; 0 for none in this life."""
    prepared: Annotated[Round, U64]
    """The round whose result this worker holds; 0 for none."""
    accused: Accused
    busy_s: Seconds
    """How long the compute thread has been at its present task; 0 if it is idle."""
    job_s: Seconds
    """Moving average of the time that a job takes; 0 before the first."""
    num_jobs: Annotated[int, U64]
    parameter_digest: Annotated[int, U64]
    sent_bytes: Bytes = 0
    """Everything this process has put on the wire; filled in by its transport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHeartbeat(StepMessage):
    """Broker -> coordinator, once per interval and at news: what its queue holds.

    `step` is the newest that a worker of it has told of; `active` are the microbatches to train on of that step,
    `ahead` those of the step after it, that this broker will do something about by itself: queued or leased. One
    that waits for its gradient, or is done and kept, is not among them.
    """

    stage: StageField
    view: Annotated[int, U64]
    report: Annotated[int, U64]
    active: Ledger
    ahead: Ledger
    voided: Annotated[Attempt, U64]
    """The newest Void that it has carried out, of whichever step; 0 for none in this life."""
    accused: Accused
    num_queued: Annotated[int, U32]
    num_leased: Annotated[int, U32]
    num_kept: Annotated[int, U32]
    """Microbatches that are done and kept, in case that whoever has counted them is lost."""
    held_bytes: Bytes
    free_bytes: Bytes
    sent_bytes: Bytes = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck(Message):
    """Coordinator -> process: heard you; `view` is the number of the newest view."""

    view: Annotated[int, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One live process of the swarm, in a view."""

    member: SessionField
    node: Annotated[NodeId, TEXT]
    role: Role
    stage: StageField
    addresses: Annotated[tuple[Annotated[Address, TEXT], ...], Length(2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class View(StepMessage):
    """Coordinator -> process: who is in the swarm. Payload: the members, packed by the wire codec."""

    view: Annotated[int, U64]
    size_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence(Message):
    """Coordinator -> process, whenever it speaks: your session `fenced` is void, and with it all that it has counted.

    Parameters stay: they were made by commits. The process registers again, as a new life.
    """

    fenced: SessionField


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(StepMessage):
    """Coordinator -> worker, repeated until it reports that it is ready at (branch, step): get that state.

    From the worker `donor`, or from the trainer (session 0), which reads its checkpoint. Step 0 is nobody's to
    give: the parameters are made fresh.
    """

    donor: SessionField
    address: Annotated[Address, TEXT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Void(StepMessage):
    """Coordinator -> broker and worker, repeated until its heartbeat says so: attempts below `attempt` of these
    microbatches are void.

    A worker drops their jobs and outputs; it answers when none of them is in the middle of being counted. A
    broker drops their entries, kept ones too. Neither takes any of them later in this step. With everybody's
    answer the coordinator knows who has counted what, for good, and may admit a microbatch again. Who is at a later
    step has nothing to do, and answers at once; who is at an earlier one keeps it for when it gets there.
    """

    attempt: Annotated[Attempt, U64]
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Message):
    """Worker -> coordinator: a layer raised or the stage could not be built.

    With `microbatch` it was a job: others may do it, the run ends when several have failed at the same one.
    Without, the run cannot go on.
    """

    stage: StageField
    layer: Text
    text: Text
    microbatch: MicrobatchField | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Message):
    """Coordinator -> process, repeated: the run is over, end yourself. Process -> coordinator: leaving."""


# -- coordinator socket: the commit ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(StepMessage):
    """Coordinator -> every worker of a stage: all-reduce what you have, if `ledger` is what you have."""

    round: Annotated[Round, U64]
    participants: Annotated[tuple[SessionField, ...], Length(limits.MAX_PARTICIPANTS)]
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(StepMessage):
    """Worker -> coordinator: I hold the stage's reduced gradient of this round."""

    round: Annotated[Round, U64]
    digest: Annotated[int, U64]
    finite: bool
    square_norm: Annotated[float, FINITE]
    """Of the reduced gradient of the whole stage, before clipping; 0 where it is not finite."""
    ledger: Ledger
    """Of this worker's own contribution."""
    loss_sum: Annotated[float, FINITE] | None
    """Over this worker's own contribution, None where it is not finite; 0 but for the last stage."""
    num_targets: Annotated[int, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(StepMessage):
    """Coordinator -> worker: forget this round; your accumulator is untouched."""

    round: Annotated[Round, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(StepMessage):
    """Coordinator -> worker, repeated until it reports step + 1: apply the optimizer step.

    Parameters change here and nowhere else: `gradient * scale`, learning rate `lr`; with `apply`
    false (a gradient that is not finite) only the step number advances.
    """

    round: Annotated[Round, U64]
    digest: Annotated[int, U64]
    scale: Annotated[float, FINITE]
    lr: Annotated[float, FINITE]
    apply: bool
    snapshot: bool = False
    """Keep a copy of the state of step + 1 for the checkpoint, until the next one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(MicrobatchMessage):
    """Last-stage worker -> coordinator: the loss of an evaluation microbatch; answered by Ack."""

    loss_sum: Annotated[float, FINITE] | None
    """None where it is not finite."""
    num_targets: Annotated[int, U64]


# -- work socket: producer and broker ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a broker tells one producer about itself.

    `granted_bytes` is what the producer may have sent in all, ever: a cumulative count, so that losing,
    repeating or reordering it does no harm and the largest one holds.
    """

    granted_bytes: Bytes
    free_bytes: Bytes
    depth: Annotated[int, U32]
    """Microbatches queued and leased."""
    response_s: Seconds
    """Moving average of the time from a microbatch's arrival to its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Message):
    """Producer or worker -> broker, once per interval: keep my return address, tell me my credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit(Message):
    """Broker -> producer: how much more you may send, and how busy I am."""

    room: Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward(MicrobatchMessage):
    """Producer -> broker of the next stage, with payload: the stage's input. Answered by Ack or Nack.

    The route ends with the broker that it is meant for: a later life at the same address refuses it.
    """

    route: Route
    mask: Mask
    parcel: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward(MicrobatchMessage):
    """Worker -> home broker of the previous stage, with payload: the gradient of that stage's output.

    Never refused for want of room: taking the Forward has reserved it. Answered by Ack or Nack.
    """

    route: Route
    parcel: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(MicrobatchMessage):
    """Receiver -> sender: it is in my memory. A broker's answer to a Forward carries the sender's credit."""

    direction: Direction
    room: Room | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack(MicrobatchMessage):
    """Broker -> sender: not taken. BUSY: try again later; STALE: forget it."""

    direction: Direction
    code: NackCode
    room: Room | None


# -- control and work sockets: broker and its workers ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(StepMessage):
    """Worker -> broker of its stage (control), once per interval and whenever `step` changes."""

    slots: Annotated[int, Range(0, limits.MAX_LEASES_PER_WORKER)]
    """How many leases of this broker the worker will hold at once."""
    held: Annotated[tuple[Annotated[Lease, U64], ...], Length(limits.MAX_LEASES_PER_WORKER)]
    """Leases of this broker that it has and has not finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(MicrobatchMessage):
    """Broker -> worker (work), payload x then dy: do this. Sent again when Ready lacks the lease.

    Meant for the session `worker`; a later life of the same process refuses it.
    """

    worker: SessionField
    lease: Annotated[Lease, U64]
    kind: JobKind
    accumulate: bool
    emit: bool
    """Somebody wants the gradient of the stage's input."""
    route: Route
    mask: Mask
    x: Parcel | None
    dy: Parcel | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke(Message):
    """Broker -> worker (work): leave a job that you have not begun to others. Answered by Result REVOKED, or by its
    own Result if it has begun."""

    worker: SessionField
    lease: Annotated[Lease, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(StepMessage):
    """Worker -> broker (control): how the job ended; sent again when the job comes again."""

    lease: Annotated[Lease, U64]
    status: JobStatus
    kept: bool
    """The worker still has the stage input: the backward need not bring it."""
    compute_s: Seconds
    slots: Annotated[int, Range(0, limits.MAX_LEASES_PER_WORKER)]


# -- peer socket: workers of one stage ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(StepMessage):
    """Worker -> worker, with payload: part of a shard of the gradient in an all-reduce."""

    round: Annotated[Round, U64]
    phase: ReducePhase
    shard: Annotated[int, Range(0, limits.MAX_PARTICIPANTS - 1)]
    chunk: Annotated[int, U32]
    num_chunks: Annotated[int, Range(1, limits.MAX_CHUNKS)]
    parcel: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAck(StepMessage):
    """Worker -> worker: the chunk is in my memory."""

    round: Annotated[Round, U64]
    phase: ReducePhase
    shard: Annotated[int, Range(0, limits.MAX_PARTICIPANTS - 1)]
    chunk: Annotated[int, U32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull(StepMessage):
    """Anybody with a session -> worker, or worker -> trainer: send me `layer`'s state from `offset_bytes` on."""

    part: StatePart
    layer: Annotated[int, U32]
    offset_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class State(StepMessage):
    """Worker or trainer -> asker, with payload: a range of the layer's state, a safetensors file of `total_bytes`."""

    part: StatePart
    layer: Annotated[int, U32]
    offset_bytes: Bytes
    total_bytes: Bytes
    parcel: Parcel
