"""What a broker holds: one entry per attempt of a microbatch, and the worker pool as the broker sees it.

Life of an entry at a middle stage (at the last stage, for evaluation, and where no stage from here down counts
the attempt, it ends with its first job):

          Forward                    Job F                  Result F
    (new) -------> FORWARD_QUEUED ---------> FORWARD_LEASED ---------> WAITING
                                                   |                      |
                                                   |  Backward            | Backward
                                                   v                      v
             DONE <---------------- BACKWARD_LEASED <--------- BACKWARD_QUEUED
                         Result B                     Job B

A Backward that overtakes the Result of its forward proves that the forward was done. A worker that
leaves, or that answers anything but DONE, puts the entry back at the head of the line it came from.

An entry whose last job counted is DONE: it is kept (`brokers.retention`) in case that whoever has counted it is
lost, and then its last job is done again, without sending a gradient on. One that counted nothing is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from math import inf
from typing import Any

from zswarm.ids import JobKind, Lease, Link, Microbatch, NodeId, Purpose, Session, Stage, Version
from zswarm.ledger import from_bytes
from zswarm.messages import Forward, Key, Load, Mask, Route
from zswarm.slots import maker

make_load = maker(Load)

EMA = 0.1
"""Weight of a new time in a moving average, as in the released SWARM code."""


def first_lease(broker: Session) -> Lease:
    """Return the first lease of a broker's life: the answer to another life's lease must not be taken for one here."""
    return Lease(((broker % 2**32) << 32) + 1)


def average(mean: float, value: float) -> float:
    """Return the moving average of positive values after one more; the first stands for itself."""
    return mean + EMA * (value - mean) if mean else value


class EntryState(IntEnum):
    """See the picture."""

    FORWARD_QUEUED = 0
    FORWARD_LEASED = 1
    WAITING = 2
    BACKWARD_QUEUED = 3
    BACKWARD_LEASED = 4
    DONE = 5


@dataclass(slots=True, kw_only=True)
class Entry:
    """One attempt of one microbatch."""

    key: Key
    kind: JobKind
    """Of its first job: FORWARD, FUSED or EVALUATE."""
    route: Route
    mask: Mask
    accumulate: bool
    """This stage counts the attempt."""
    emit: bool
    """A stage below counts it and wants the gradient of this stage's input."""
    x: Load
    arrived_at_s: float
    credit_bytes: int = 0
    """What its producer spent on it; twice that is reserved for it."""
    dy: Load | None = None
    state: EntryState = EntryState.FORWARD_QUEUED
    line: Line | None = None
    """Where it stands in the backlog, in the two queued states."""
    record: LeaseRecord | None = None
    """Of the lease that is out, in the two leased states."""
    hedge: LeaseRecord | None = None
    """Of a second one, at another worker."""
    affine: Session | None = None
    """The worker that ran the forward and still has the input, perhaps even the graph."""
    done_by: Session | None = None
    """The session that has counted it, in the state DONE."""
    failed_at: frozenset[NodeId] = frozenset()
    """Workers in which a layer raised at it, by name: each goes on with a session of its own afterwards."""

    @property
    def version(self) -> Version:
        """The (branch, step) on whose parameters every job of this entry runs."""
        return (self.key[0], self.key[1])

    @property
    def microbatch(self) -> Microbatch:
        """Its index within the step."""
        return self.key[3]

    @property
    def trains(self) -> bool:
        """Is it to be counted anywhere?"""
        return self.key[2] is Purpose.TRAIN

    @property
    def is_hedgeable(self) -> bool:
        """May two workers do what it needs next? A gradient would be counted twice, and an attempt of a microbatch to train
        on that was sent on twice would have two homes."""
        yields_gradient = self.kind is JobKind.FUSED or self.state is EntryState.BACKWARD_LEASED
        return not self.trains or (yields_gradient and not self.accumulate)

    @property
    def has_backward(self) -> bool:
        """Will the gradient of the output come, or does its first job do everything?"""
        return self.kind is JobKind.FORWARD and (self.accumulate or self.emit)


Line = OrderedDict[Key, Entry]
"""Entries in the order in which they shall be taken."""


@lru_cache(maxsize=256)
def duties(purpose: Purpose, mask: Mask, stage: Stage, *, is_last: bool) -> tuple[JobKind, bool, bool]:
    """Return the kind of the first job at a stage, whether this stage counts the attempt, and whether one below does.

    Nearly all attempts of a run have the same few masks.
    """
    trains = purpose is Purpose.TRAIN
    stages = from_bytes(mask) if trains else 0
    kind = JobKind.FORWARD
    if is_last:
        kind = JobKind.FUSED if trains else JobKind.EVALUATE
    return kind, bool(stages >> stage & 1), bool(stages & ((1 << stage) - 1))


def make_entry(
    key: Key, message: Forward, frames: tuple[Any, ...], *, stage: Stage, is_last: bool, now: float
) -> Entry:
    """Return the entry of a Forward, whose key this is, at a stage: which jobs it needs follows from purpose and mask."""
    kind, accumulate, emit = duties(message.purpose, message.mask, stage, is_last=is_last)
    return Entry(
        key=key,
        kind=kind,
        route=message.route,
        mask=message.mask,
        accumulate=accumulate,
        emit=emit,
        x=make_load(parcel=message.parcel, frames=frames),
        arrived_at_s=now,
    )


@dataclass(slots=True, kw_only=True)
class LeaseRecord:
    """A job at a worker."""

    lease: Lease
    entry: Entry
    worker: Session
    kind: JobKind
    with_input: bool
    since_s: float
    sent_at_s: float
    num_sent: int = 0
    asked_at_s: float = 0.0
    num_asked: int = 0
    """How often the worker was asked to leave it to `asked_for`."""
    asked_for: Session | None = None
    is_needless: bool = False
    """Another worker has done the job meanwhile; this one may still be at it."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """A worker of the pool: what it said last, and what it was given."""

    session: Session
    node: NodeId
    heard_at_s: float
    work: Link | None = None
    version: Version | None = None
    slots: int = 0
    leases: dict[Lease, LeaseRecord] = field(default_factory=dict)
    job_s: float = 0.0
    """Moving average of the compute time of a job."""
    answered_at_s: float = -inf
    """When it was last told that it was heard."""
    leaves: bool = False
    """It takes no more jobs, whatever it has kept."""

    def offer(self, slots: int) -> None:
        """It holds up to so many leases; one that leaves none, whatever a late word of it says."""
        self.slots = 0 if self.leaves else slots

    @property
    def free_slots(self) -> int:
        """Jobs that it would take now."""
        return self.slots - len(self.leases) if self.work is not None else 0
