"""What the worker's compute thread is at, as far as the machine has to know.

    FREE --begin--> RUNNING --Ran--> FREE
      |                |
      +----- reset ----+--> RESETTING --WasReset--> FREE

A task that has begun is not recalled: after a reset the outcomes of what was running are of no job any more,
and the next job waits until the accumulator is known to be empty. If that does not happen because one task takes
longer than anybody is given for a job, the device hangs.

The thread takes tasks in their order: of those that are not answered the first is in work, since it was given or
since the one before it was answered.
"""

from __future__ import annotations

from collections import deque

from stages.jobs import HeldJob
from stages.tasks import Discard, Emitted, Import, Outcome, Ran, Reset, Run, Task
from zswarm import limits
from zswarm.ids import Lease
from zswarm.messages import Key

HANGS = 70
"""Exit code of a worker whose device does not answer, as `EX_SOFTWARE` of sysexits.h: starting it again may help."""
NEWEST_SHARE = 0.1
"""Weight of the newest job in the moving average of job times."""


class Device:
    """See the module."""

    def __init__(self) -> None:
        self.running: HeldJob | None = None
        self.is_resetting = False
        self.num_jobs = 0
        """Done in all."""
        self.job_s = 0.0
        """Moving average of the time that a job takes; 0 before the first."""
        self._lease = Lease(0)
        self._unanswered: deque[Task] = deque()
        self._since_s = 0.0
        """When the first of those began."""

    @property
    def is_free(self) -> bool:
        """May a job begin?"""
        return self.running is None and not self.is_resetting

    @property
    def running_key(self) -> Key | None:
        """What is being worked on and may still be counted."""
        return self.running.job.key if self.running is not None else None

    def submitted(self, task: Task, now: float) -> None:
        """A task goes to the thread; some are answered by nothing."""
        if not isinstance(task, (Discard, Import)):
            if not self._unanswered:
                self._since_s = now
            self._unanswered.append(task)

    def answered(self, outcome: Outcome, now: float) -> None:
        """An outcome has come; all but Emitted end their task."""
        if self._unanswered and not isinstance(outcome, Emitted):
            self._unanswered.popleft()
            self._since_s = now

    def begin(self, held: HeldJob, *, accumulate: bool) -> Run:
        """Do this job; it is free."""
        held.begun = True
        job = held.job
        self.running = held
        self._lease = Lease(self._lease + 1)
        return Run(
            lease=self._lease, kind=job.kind, key=job.key, accumulate=accumulate, emit=job.emit, x=held.x, dy=held.dy
        )

    def running_of(self, lease: Lease) -> HeldJob | None:
        """Return the job that an outcome is of; None if that job is void or has ended."""
        return self.running if lease == self._lease else None

    def end(self, outcome: Ran) -> None:
        """The job has ended."""
        self.running = None
        self.num_jobs += 1
        share = NEWEST_SHARE if self.job_s else 1.0
        self.job_s += share * (outcome.compute_s - self.job_s)

    def reset(self) -> list[Reset]:
        """Forget what is counted and what is in work; nothing has begun since an earlier reset that still lasts."""
        if self.is_resetting:
            return []
        self.running, self.is_resetting = None, True
        return [Reset()]

    def was_reset(self) -> None:
        """The accumulator is empty."""
        self.is_resetting = False

    def busy_s(self, now: float) -> float:
        """Return how long the task in work has taken; 0 if there is none."""
        return now - self._since_s if self._unanswered else 0.0

    def stuck_at_s(self, heartbeat_s: float) -> float | None:
        """Return when a task that keeps a reset from beginning proves that the device hangs; None without one."""
        if not self.is_resetting or not self._unanswered:
            return None
        if not self.num_jobs:
            return self._since_s + limits.STUCK_FIRST_S
        return self._since_s + max(limits.STUCK_HEARTBEATS * heartbeat_s, limits.STUCK_JOBS * self.job_s)

    def excuse(self, now: float) -> None:
        """This process was not running: the device may not have been, either."""
        self._since_s = now
