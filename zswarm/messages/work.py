"""On the brokers' sockets: microbatches from producers to brokers, and jobs from brokers to workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from zswarm import limits
from zswarm.ids import Direction, Generation, JobKind, JobStatus, Lease, NackCode
from zswarm.messages.base import (
    U32,
    U64,
    Bytes,
    Length,
    Mask,
    Message,
    MicrobatchMessage,
    Parcel,
    Range,
    Route,
    Seconds,
    SessionField,
    StepMessage,
)

# -- work socket: producer and broker --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a broker tells one producer about itself.

    `granted_bytes` is what the producer may have sent in all, ever, `received_bytes` what has come of it: cumulative
    counts, so that losing, repeating or reordering them does no harm and the largest ones hold. Both are of what Forwards
    cost: their size, or a unit if that is more.
    """

    producer: SessionField
    trainer: Annotated[Generation, U32]
    """The trainer's generation that the counts began with, if the producer is the trainer; else 0."""
    granted_bytes: Bytes
    received_bytes: Bytes
    free_bytes: Bytes
    depth: Annotated[int, U32]
    """Microbatches queued and leased."""
    response_s: Seconds
    """Moving average of the time from a microbatch's arrival to its result."""
    unit_bytes: Bytes = 0
    """What a Forward costs at the least: the gradient that comes back may be larger than it is."""
    closes: bool = False
    """The broker leaves: it grants nothing any more, and wants to be sent no more; once said, it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Message):
    """Producer or worker -> broker, once per interval: keep my return address, tell me my credit."""

    is_done: bool = False
    """The producer knows that this broker closes, and has nothing out to it that is not answered: it will send nothing
    more, ever."""


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


# -- control and work sockets: broker and its workers ----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(StepMessage):
    """Worker -> broker of its stage (control), once per interval, whenever `step` changes and when there are more slots."""

    slots: Annotated[int, Range(0, limits.MAX_LEASES_PER_WORKER)]
    """How many leases of this broker the worker will hold at once."""
    held: Annotated[tuple[Annotated[Lease, U64], ...], Length(limits.MAX_LEASES_PER_WORKER)]
    """Leases of this broker that it has and has not finished."""
    leaves: bool = False
    """It takes no more jobs in this session: what it has kept is of no use. Answered by Drained."""


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
class Drained(Message):
    """Broker -> worker (work): I know that you leave; you have no lease of mine, and get none any more."""

    worker: SessionField


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(StepMessage):
    """Worker -> broker (control): how the job ended; sent again when the job comes again."""

    lease: Annotated[Lease, U64]
    status: JobStatus
    kept: bool
    """The worker still has the stage input: the backward need not bring it."""
    compute_s: Seconds
    slots: Annotated[int, Range(0, limits.MAX_LEASES_PER_WORKER)]
