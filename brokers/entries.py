"""What a broker holds: one entry per attempt of a microbatch, and the worker pool as the broker sees it.

Life of an entry at a middle stage (at the last stage, and for evaluation, it ends with its first job):

          Forward                    Job F                  Result F
    (new) -------> FORWARD_QUEUED ---------> FORWARD_LEASED ---------> WAITING
                                                   |                      |
                                                   |  Backward            | Backward
                                                   v                      v
                   (gone) <--------- BACKWARD_LEASED <--------- BACKWARD_QUEUED
                           Result B                    Job B

A Backward that overtakes the Result of its forward proves that the forward was done. A worker that
leaves, or that answers NEEDS_INPUT, puts the entry back at the head of the line it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from zswarm.ids import Branch, JobKind, Lease, Link, Purpose, Session, Step
from zswarm.membership import Header
from zswarm.messages import Job, Key, Load, Route, key_fields

EMA = 0.1
"""Weight of a new time in a moving average, as in the released SWARM code."""


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


@dataclass(slots=True, kw_only=True)
class Entry:
    """One attempt of one microbatch."""

    key: Key
    kind: JobKind
    """Of its first job: FORWARD, FUSED or EVALUATE."""
    route: Route
    x: Load
    arrived_at_s: float
    dy: Load | None = None
    state: EntryState = EntryState.FORWARD_QUEUED
    record: LeaseRecord | None = None
    """Of the lease that is out, in the two leased states."""
    affine: Session | None = None
    """The worker that ran the forward and still has the input, perhaps even the graph."""

    @property
    def version(self) -> tuple[Branch, Step]:
        """The (branch, step) on whose parameters every job of this entry runs."""
        return (self.key[0], self.key[1])

    @property
    def has_backward(self) -> bool:
        """Will the gradient of the output come, or does its first job do everything?"""
        return self.kind is JobKind.FORWARD and self.key[2] is Purpose.TRAIN


@dataclass(slots=True, kw_only=True)
class LeaseRecord:
    """A job at a worker."""

    lease: Lease
    entry: Entry
    worker: Session
    kind: JobKind
    with_input: bool
    sent_at_s: float
    num_sent: int = 0

    def job(self, header: Header) -> tuple[Job, tuple[Any, ...]]:
        """Return the message that says so, and its payload."""
        entry = self.entry
        x = entry.x if self.with_input else None
        dy = entry.dy if self.kind is JobKind.BACKWARD else None
        message = Job(
            **header,
            **key_fields(entry.key),
            lease=self.lease,
            kind=self.kind,
            accumulate=entry.key[2] is Purpose.TRAIN,
            route=entry.route,
            x=x.parcel if x else None,
            dy=dy.parcel if dy else None,
        )
        return message, (x.frames if x else ()) + (dy.frames if dy else ())


@dataclass(slots=True, kw_only=True)
class Worker:
    """A worker of the pool: what it said last, and what it was given."""

    session: Session
    work: Link | None = None
    version: tuple[Branch, Step] | None = None
    slots: int = 0
    leases: dict[Lease, LeaseRecord]
    job_s: float = 0.0
    """Moving average of the compute time of a job."""

    @property
    def free_slots(self) -> int:
        """Jobs that it would take now."""
        return self.slots - len(self.leases) if self.work is not None else 0
