"""On the coordinator socket: who is in the swarm, what it reports, and what it is told to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from zswarm import limits
from zswarm.ids import TRAINER, Address, Attempt, Leaving, NodeId, RejectCode, Role, Round
from zswarm.messages.base import (
    FINITE,
    TEXT,
    U64,
    Accused,
    Bytes,
    Ledger,
    Length,
    Message,
    MicrobatchField,
    Range,
    Seconds,
    SessionField,
    StageField,
    StepMessage,
    Text,
)


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
    first_layer: Annotated[int, Range(0, limits.MAX_LAYERS - 1)]
    num_layers: Annotated[int, Range(1, limits.MAX_LAYERS)]
    """The stage's layers are this one and those that follow it."""
    heartbeat_s: Seconds
    unit_bytes: Annotated[int, Range(1, limits.MAX_PAYLOAD_BYTES)]
    """What one microbatch costs a broker of this stage, and credits are counted in: the larger of its input and of the gradient of
    its output."""
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

    Sent once per interval and at news. `report` grows with each one, so
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
    passed: Ledger
    """What else was among them at any moment since the report before, and is not any more."""
    voided: Annotated[Attempt, U64]
    """The newest Void that it has carried out, of whichever step; 0 for none in this life."""
    prepared: Annotated[Round, U64]
    """The round whose result this worker holds; 0 for none."""
    accused: Accused
    busy_s: Seconds
    """How long the compute thread has been at its present task; 0 if it is idle."""
    job_s: Seconds
    """Moving average of the time that a job takes; 0 before the first."""
    usual_s: Seconds
    """How long what it is at usually takes; 0 if nobody knows, or if it is idle."""
    parameter_digest: Annotated[int, U64]
    sent_bytes: Bytes = 0
    """Everything this process has put on the wire; filled in by its transport."""
    leaving: Leaving = Leaving.NO
    loss_sum: Annotated[float, FINITE] | None = 0.0
    """Over what is in `ledger`; None where it is not finite, 0 but for the last stage."""
    num_targets: Annotated[int, U64] = 0
    """Likewise."""
    inherits: SessionField = TRAINER
    """Of whose share of this step a copy is here, complete and not counted; 0 for nobody's."""
    inherited: Ledger = b""
    """What that consists of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHeartbeat(StepMessage):
    """Broker -> coordinator, once per interval and at news: what its queue holds.

    `step` is the newest that a worker of it or a view has told of; `active` are the microbatches to train on of that step,
    `ahead` those of the step after it, that this broker will do something about by itself: queued or leased. One
    that waits for its gradient, or is done and kept, is not among them.
    """

    stage: StageField
    view: Annotated[int, U64]
    report: Annotated[int, U64]
    active: Ledger
    passed: Ledger
    """What else was `active` at any moment since the report before, and is not any more."""
    ahead: Ledger
    """Held now, or at any moment since the report before."""
    voided: Annotated[Attempt, U64]
    """The newest Void that it has carried out, of whichever step; 0 for none in this life."""
    accused: Accused
    sent_bytes: Bytes = 0
    leaving: Leaving = Leaving.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck(Message):
    """Coordinator -> process, twice per interval, and broker -> worker of its stage, in answer to Ready, about once: I am
    here; `view` is the number of the newest view that the sender knows."""

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
class Bequest:
    """A worker has left, and of what it had counted in the step in work some is another one's from now on."""

    leaver: SessionField
    heir: SessionField


@dataclass(frozen=True, slots=True, kw_only=True)
class View(StepMessage):
    """Coordinator -> process: who is in the swarm, and which step is in work. Payload: the members, packed by the wire codec."""

    view: Annotated[int, U64]
    size_bytes: Bytes
    bequests: Annotated[tuple[Bequest, ...], Length(limits.MAX_BEQUESTS)] = ()
    """All of that step: an heir may have left, too."""
    left: Annotated[bytes, Length(limits.MAX_BEQUEST_BYTES)] = b""
    """What is left with each of them: ledgers of one length, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence(Message):
    """Coordinator -> process, whenever it speaks: your session `fenced` is void, and with it all that it has counted.

    Parameters stay: they were made by commits. The process registers again, as a new life. `is_spare`: enough others
    hold the state of its stage, so a worker whose device hangs need not keep it.
    """

    fenced: SessionField
    is_spare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A worker that has the state, too."""

    donor: SessionField
    address: Annotated[Address, TEXT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(StepMessage):
    """Coordinator -> worker, repeated until it reports that it is ready at (branch, step): get that state.

    From the worker `donor` and `others`, or from the trainer (session 0), which reads its checkpoint. Step 0 is nobody's
    to give: the parameters are made fresh.
    """

    donor: SessionField
    address: Annotated[Address, TEXT]
    others: Annotated[tuple[Source, ...], Length(limits.MAX_DONORS - 1)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherit(StepMessage):
    """Coordinator -> worker, repeated until its heartbeat says that it is here: get a copy of the share of another worker of your
    stage, if none is here that has all of this. It counts only when a view says that the owner is out and whose it is."""

    owner: SessionField
    address: Annotated[Address, TEXT]
    attempt: Annotated[Attempt, U64]
    """The newest that there was when this was sent: what a later one makes void is not to be inherited."""
    ledger: Ledger
    """What the owner has counted, as far as its reports say."""


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
class Move(Message):
    """Anybody -> coordinator, repeated until answered: let this worker be of that stage. `session` and `run` may be 0."""

    node: Annotated[NodeId, TEXT]
    stage: StageField


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Message):
    """Coordinator -> whoever wants a worker to be moved: it will be, after the next commit; or why not."""

    node: Annotated[NodeId, TEXT]
    stage: StageField
    is_accepted: bool
    text: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Message):
    """Coordinator -> process, repeated: the run is over, end yourself. Process -> coordinator: leaving."""
