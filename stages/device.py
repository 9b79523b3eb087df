"""What the worker's compute thread is at, as far as the machine has to know.

    FREE --begin--> RUNNING --Ran--> FREE
      |                |  --Emitted--> FREE, while the job is unfinished; up to so many are
      +----- reset ----+--> RESETTING --WasReset--> FREE

A job that has emitted its dx leaves the device to the next one, and is finished when nothing is waited for more. A
stage whose dx has to pass k more stages may have k + 1 such jobs: that is how much of its work the end of a step, where
the stages before it are waited for, can use up (ZB-H1 of Qi et al., arXiv:2401.10241; a stage early in the
pipeline holds more graphs instead, so that all need as much memory).

A task that has begun is not recalled: after a reset the outcomes of what was running are of no job any more,
and the next job waits until the accumulator is known to be empty. If that does not happen because one task takes
longer than anybody is given for a job, the device hangs.

The thread is busy while a task is not answered, since that was given or since the last outcome came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

from stages.jobs import HeldJob
from stages.tasks import (
    Adopt,
    Adopted,
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Discard,
    Emitted,
    Export,
    Exported,
    Failed,
    Import,
    Imported,
    Outcome,
    Ran,
    Reset,
    Run,
    ShareTaken,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    TakeShare,
    Task,
    Unfit,
    WasReset,
)
from zswarm import limits
from zswarm.ids import Lease, Session, Stage, StatePart
from zswarm.messages import Key
from zswarm.patience import most_busy_s

NEWEST_SHARE = 0.1
"""Weight of the newest job in the moving average of job times."""
TASK_OF: dict[type[Outcome], type[Task]] = {
    Built: Build,
    Unfit: Build,
    Ran: Run,
    Snapshotted: Snapshot,
    Summed: Sum,
    Assembled: Assemble,
    Applied: Apply,
    Exported: Export,
    Imported: Import,
    Adopted: Adopt,
    ShareTaken: TakeShare,
}
"""What an outcome ends; WasReset ends whatever came before its task, and the others may be of any."""
UNTIMED: dict[type[Task], float] = {
    Build: 2.0 * limits.STUCK_FIRST_S / limits.STUCK_TIMES,
    Import: 0.0,
    Adopt: 0.0,
}
"""Nobody knows how long these take: parameters are made, and a job is rehearsed, for which something may be compiled; the last
range of a file makes a layer of gigabytes."""
Sort = Hashable
"""Tasks of one sort take about the same time; None is the sort of those that are not timed."""
MOST_REHEARSED_S = limits.STUCK_FIRST_S / limits.STUCK_TIMES
"""A rehearsal in which something was compiled gives nobody longer than if nothing were known."""


def most_unfinished(stage: Stage) -> int:
    """Return how many jobs of a stage may be unfinished: one more than the stages that its dx has yet to pass."""
    return min(stage + 1, limits.MAX_UNFINISHED)


class Device:
    """See the module."""

    def __init__(self) -> None:
        self._running: dict[Lease, HeldJob] = {}
        """What has not ended."""
        self._unfinished: set[Lease] = set()
        """Those of which the dx is out."""
        self.is_resetting = False
        self.is_spare = False
        """Others have the parameters that this process holds: it need not wait for a task that does not end."""
        self.job_s = 0.0
        """Moving average of the time that a job takes; 0 before the first."""
        self._lease = Lease(0)
        self._unanswered: deque[tuple[type[Task], Sort, Lease | None]] = deque()
        """The tasks that have not been answered, in their order; the leases of those that are jobs."""
        self._longest_s: dict[Sort, float] = {}
        """What tasks that are no jobs have taken at most lately, by their sort."""
        self._done: set[Sort] = set()
        """The sorts of jobs that the layers have done at least one of."""
        self._rehearsed_job_s = self._rehearsed_round_s = 0.0
        """What they took with made-up numbers; 0 if nobody knows."""
        self._since_s = 0.0
        """When what is in work began."""

    def is_free(self, most: int) -> bool:
        """May a job begin, if so many may be unfinished with it?"""
        is_occupied = len(self._running) > len(self._unfinished) or len(self._running) >= most
        return not (is_occupied or self.is_resetting)

    def begin_stage(self) -> None:
        """Jobs of another stage are to come: nobody knows yet how long they take."""
        self.job_s, self._longest_s, self._done = 0.0, {}, set()
        self._rehearsed_job_s = self._rehearsed_round_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Has every job ended?"""
        return not self._running

    def num_unfinished(self, broker: Session) -> int:
        """Return of how many of a broker's jobs only the dx is out."""
        return sum(self._running[lease].job.session == broker for lease in self._unfinished)

    def running_keys(self) -> Iterator[Key]:
        """Yield what is being worked on and may still be counted."""
        return (held.job.key for held in self._running.values())

    def submitted(self, task: Task, now: float) -> None:
        """A task goes to the thread; one sort is answered by nothing."""
        if not isinstance(task, Discard):
            if not self._unanswered:
                self._since_s = now
            self._unanswered.append((type(task), _sort(task), task.lease if isinstance(task, Run) else None))

    def answered(self, outcome: Outcome, now: float) -> None:
        """An outcome has come; all but Emitted end their task, and WasReset those that were unfinished."""
        taken_s, self._since_s = now - self._since_s, now
        if isinstance(outcome, WasReset):
            while self._unanswered and self._unanswered.popleft()[0] is not Reset:
                pass
        elif not isinstance(outcome, Emitted):
            self._ended(outcome, taken_s)
        if isinstance(outcome, Built):
            self._done = set()
            self._rehearsed_job_s = min(outcome.job_s, MOST_REHEARSED_S)
            self._rehearsed_round_s = min(outcome.round_s, MOST_REHEARSED_S)
        if isinstance(outcome, Ran) and outcome.lease not in self._running:
            # Of a life that was given up, perhaps for this very job: whoever is slower than anybody thought learns so.
            self.job_s = max(self.job_s, outcome.compute_s)

    def _ended(self, outcome: Outcome, taken_s: float) -> None:
        """A task has ended: the first of its kind, or whichever was in work if something has failed that is no job."""
        lease = outcome.lease if isinstance(outcome, (Ran, Failed)) else None
        kind = Run if lease is not None else TASK_OF.get(type(outcome))
        for place, (task, sort, of) in enumerate(self._unanswered):
            if kind in (None, task) and lease in (None, of):
                del self._unanswered[place]
                if isinstance(outcome, Ran):
                    self._done.add(sort)
                elif kind not in (None, Run) and sort is not None:
                    self._learn(sort, taken_s)
                return

    def _learn(self, sort: Sort, taken_s: float) -> None:
        """What takes longer than before counts at once; what is quicker makes that forgotten, little by little."""
        longest_s = self._longest_s.get(sort, 0.0)
        share = 1.0 if taken_s > longest_s else NEWEST_SHARE
        self._longest_s[sort] = longest_s + share * (taken_s - longest_s)

    def begin(self, held: HeldJob, *, accumulate: bool) -> Run:
        """Do this job; the device is free. `accumulate`: it is counted here."""
        held.begun, held.accumulates = True, accumulate
        job = held.job
        self._lease = Lease(self._lease + 1)
        self._running[self._lease] = held
        return Run(
            lease=self._lease, kind=job.kind, key=job.key, accumulate=accumulate, emit=job.emit, x=held.x, dy=held.dy
        )

    def running_of(self, lease: Lease) -> HeldJob | None:
        """Return the job that an outcome is of; None if that job is void or has ended."""
        return self._running.get(lease)

    def emitted(self, lease: Lease) -> None:
        """What is left of the job may wait."""
        self._unfinished.add(lease)

    def end(self, outcome: Ran) -> None:
        """The job has ended."""
        del self._running[outcome.lease]
        self._unfinished.discard(outcome.lease)
        share = NEWEST_SHARE if self.job_s else 1.0
        self.job_s += share * (outcome.compute_s - self.job_s)

    def reset(self) -> list[Reset]:
        """Forget what is counted and what is in work; nothing has begun since an earlier reset that still lasts."""
        if self.is_resetting:
            return []
        self._running, self._unfinished, self.is_resetting = {}, set(), True
        return [Reset()]

    def was_reset(self) -> None:
        """The accumulator is empty."""
        self.is_resetting = self.is_spare = False

    def busy_s(self, now: float) -> float:
        """Return how long the task in work has taken; 0 if there is none."""
        return now - self._since_s if self._unanswered else 0.0

    @property
    def usual_s(self) -> float:
        """Return how long the tasks in work usually take, the longest of them; 0 without one, or if of one nobody knows.

        The first of a sort of jobs is taken to be as long as the rehearsal; whatever is no job, as long as a job, a round of the
        rehearsal, or the longest of its sort lately.
        """
        if not self._unanswered:
            return 0.0
        if any(task is Build for task, _, _ in self._unanswered):
            # Whatever waits behind it has not begun.
            return UNTIMED[Build]
        usual_s = {self._usual_s(task, sort) for task, sort, _ in self._unanswered if task is not Reset}
        return 0.0 if 0.0 in usual_s else max(usual_s, default=self._usual_s(Reset, None))

    def _usual_s(self, task: type[Task], sort: Sort) -> float:
        job_s = self.job_s or self._rehearsed_job_s
        if task is Run:
            if sort in self._done:
                return job_s
            return max(job_s, self._rehearsed_job_s) if self._rehearsed_job_s else 0.0
        if sort is None and task in UNTIMED:
            return UNTIMED[task]
        return max(self._longest_s.get(sort, 0.0), job_s, self._rehearsed_round_s)

    def stuck_at_s(self, heartbeat_s: float) -> float | None:
        """Return when a task that keeps a reset from beginning proves that the device hangs; None without one.

        Far later than its worker is given up for it: what ends all the same, the first of its sort, is known from then on,
        and what the process holds may be the last copy. Soon where neither is so.
        """
        overdue_at_s = self.overdue_at_s(heartbeat_s) if self.is_resetting else None
        if overdue_at_s is None:
            return None
        given_s = overdue_at_s - self._since_s
        times = limits.STUCK_ENDS_SPARE if self.is_spare and self._is_known() else limits.STUCK_ENDS
        return self._since_s + max(given_s, min(times * given_s, limits.STUCK_FIRST_S))

    def _is_known(self) -> bool:
        """Has the process done every sort of what is in work before?"""
        return all(
            task is Reset or (sort in self._done if task is Run else sort in self._longest_s)
            for task, sort, _ in self._unanswered
        )

    def overdue_at_s(self, heartbeat_s: float) -> float | None:
        """Return when the task in work takes longer than anybody is given; None without one."""
        if not self._unanswered:
            return None
        return self._since_s + most_busy_s(self.usual_s, heartbeat_s)

    def excuse(self, now: float) -> None:
        """This process was not running: the device may not have been, either."""
        self._since_s = now


def _sort(task: Task) -> Sort:
    """Return the sort of a task."""
    match task:
        case Run():
            return Run.__name__, task.key[2], task.kind
        case Snapshot() | Sum() | Assemble() | Export() | TakeShare():
            return type(task).__name__
        case Import() if task.part is StatePart.SHARE:
            return Import.__name__, task.part
        case Apply():
            return Apply.__name__, task.snapshot, bool(task.retained), bool(task.gradients)
        case _:
            return None
