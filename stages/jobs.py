"""The jobs that a worker has been leased, and the results that it has given.

    (new) --Job--> HELD --begin--> RUNNING --finish--> finished, remembered until the step is over

A job that comes again while HELD or RUNNING is ignored; one that comes again after it was finished
brings its Result again. Backwards begin before forwards, each in the order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zswarm.ids import Branch, JobKind, Lease, Session, Step
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

    @property
    def id(self) -> JobId:
        """Which job this is."""
        return (self.job.session, self.job.lease)


@dataclass(slots=True)
class Jobs:
    """See the module."""

    held: dict[JobId, HeldJob] = field(default_factory=dict)
    results: dict[JobId, tuple[tuple[Branch, Step], Result]] = field(default_factory=dict)

    def take(self, job: HeldJob) -> Result | None:
        """Hold a job; for one that is finished already, return its result instead."""
        if (known := self.results.get(job.id)) is not None:
            return known[1]
        self.held.setdefault(job.id, job)
        return None

    def next(self, version: tuple[Branch, Step]) -> HeldJob | None:
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

    def drop_before(self, version: tuple[Branch, Step]) -> None:
        """Forget jobs and results of older steps; what is running stays until it ends."""
        self.held = {k: h for k, h in self.held.items() if h.begun or (h.job.branch, h.job.step) >= version}
        self.results = {k: r for k, r in self.results.items() if r[0] >= version}

    def of(self, broker: Session) -> tuple[Lease, ...]:
        """Return the unfinished leases of one broker."""
        return tuple(lease for session, lease in self.held if session == broker)
