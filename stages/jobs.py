"""The jobs that a worker has been leased, and the results that it has given.

    (new) --Job--> HELD --begin--> RUNNING --finish--> finished, remembered until the step is over

A job that comes again while HELD or RUNNING is ignored; one that comes again after it was finished
brings its Result again. Backwards begin before forwards, each in the order of arrival. A job that is only HELD may
be dropped: then it was never there. One that its broker has revoked is finished without having been done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from zswarm.custody import Custody
from zswarm.ids import JobKind, Lease, Purpose, Session, Version
from zswarm.messages import Job, Load, Result

JobId = tuple[Session, Lease]
"""The broker's session and its lease: unique in the run."""


@dataclass(slots=True, kw_only=True)
class HeldJob:
    """A job that is not finished, with its payload."""

    job: Job
    x: Load | None
    dy: Load | None
    begun: bool = False
    accumulates: bool = False
    """It has begun, and will be counted."""

    @property
    def id(self) -> JobId:
        """Which job this is."""
        return (self.job.session, self.job.lease)


@dataclass(slots=True)
class Jobs:
    """See the module."""

    held: dict[JobId, HeldJob] = field(default_factory=dict)
    results: dict[JobId, tuple[Version, Result]] = field(default_factory=dict)
    custody: Custody = field(default_factory=Custody)

    def take(self, held: HeldJob) -> None:
        """Hold a job that is neither finished nor refused."""
        job = held.job
        self.held.setdefault(held.id, held)
        if job.purpose is Purpose.TRAIN:
            self.custody.take((job.branch, job.step), job.microbatch)

    def holds(self, job: Job) -> bool:
        """Is it held?"""
        return (job.session, job.lease) in self.held

    def result_of(self, job: Job) -> Result | None:
        """Return what was said of a job that is finished, or was refused."""
        known = self.results.get((job.session, job.lease))
        return known[1] if known is not None else None

    def remember(self, job: Job, result: Result) -> None:
        """A job is refused, for good."""
        self.results[job.session, job.lease] = ((job.branch, job.step), result)

    def next(self, version: Version) -> HeldJob | None:
        """Return the job to begin now: of these parameters, backward first."""
        best: HeldJob | None = None
        for held in self.held.values():
            if held.begun or (held.job.branch, held.job.step) != version:
                continue
            if held.job.kind is JobKind.BACKWARD:
                return held
            best = best or held
        return best

    def finish(self, job: HeldJob, result: Result) -> None:
        """Remember the result in place of the job."""
        del self.held[job.id]
        self.results[job.id] = ((job.job.branch, job.job.step), result)

    def clear(self) -> None:
        """Forget all jobs, also what is running; what was said of others stays said."""
        self.held.clear()

    def drop(self, is_unwanted: Callable[[Job], bool]) -> None:
        """Forget jobs that nobody wants any more; what is running stays until it ends."""
        self.held = {k: h for k, h in self.held.items() if h.begun or not is_unwanted(h.job)}

    def pending(self, version: Version) -> int:
        """Return the bitmap of the microbatches to train on of a step that have a job here."""
        bitmap = 0
        for held in self.held.values():
            job = held.job
            if job.purpose is Purpose.TRAIN and (job.branch, job.step) == version:
                bitmap |= 1 << job.microbatch
        return bitmap

    def drop_before(self, version: Version) -> None:
        """Forget jobs and results of older steps; what is running stays until it ends."""
        self.held = {k: h for k, h in self.held.items() if h.begun or (h.job.branch, h.job.step) >= version}
        self.results = {k: r for k, r in self.results.items() if r[0] >= version}
        self.custody.drop_before(version)

    def of(self, broker: Session) -> tuple[Lease, ...]:
        """Return the unfinished leases of one broker."""
        return tuple(lease for session, lease in self.held if session == broker)
