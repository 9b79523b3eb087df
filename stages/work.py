"""The jobs of a worker: which are taken, which is begun next, what is counted, and where the outputs go.

    Job --> held --begin--> Run --Emitted--> dx goes home, the next may begin --Ran--> counted, y goes on, Result
      |       |                |
      |       +-- Revoke, Void, the broker has left, this worker leaves: dropped
      |                        +-- Void: ends, and may be counted, but nothing of it is sent
      +-- not meant for this session, or void: dropped; of another step, nothing may be counted now, or this worker
          leaves: refused

A microbatch is counted only if its job says so and is meant for this session, the parameters are those of its
step, and it is not in the ledger yet (R1).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from stages.departure import Departure
from stages.device import Device, most_unfinished
from stages.greetings import Greetings
from stages.heir import Heir
from stages.jobs import HeldJob, Jobs
from stages.outputs import Outputs
from stages.participant import StepState
from stages.tasks import Emitted, Ran, Reset, Run, Task
from stages.voids import Voids
from zswarm import ledger
from zswarm.ids import Attempt, JobKind, JobStatus, Session
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Inherit, Job, Load, Result, Revoke, Void
from zswarm.outbox import Outbox


class Work:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(
        self,
        membership: Membership,
        state: StepState,
        *,
        jobs: Jobs,
        greetings: Greetings,
        outputs: Outputs,
        departure: Departure,
    ) -> None:
        self._me = membership
        self._state = state
        self._departure = departure
        self.greetings = greetings
        self._outputs = outputs
        self.jobs = jobs
        self.device = Device()
        self._voids = Voids()
        self.heir = Heir(membership, state, self._voids.covers)

    @property
    def voided(self) -> Attempt:
        """The newest Void that has been carried out in this life."""
        return self._voids.newest

    def pending(self) -> int:
        """Return the bitmap of the microbatches to train on of this step that have a job here, or are being taken over."""
        return self.jobs.pending(self._state.version) | self.heir.added.ledger

    # -- what brokers ask for ------------------------------------------------------------------------

    def take(self, message: Job, frames: tuple[Any, ...], *, is_able: bool) -> list[Send]:
        """Hold a job, or refuse it; one that is done brings its result again."""
        if message.worker != self._me.session:
            return []
        if self._outputs.has_left(message.session):
            return []
        if (known := self.jobs.result_of(message)) is not None:
            return self._tell_again(message.session, known)
        if self._voids.covers(message.key) and not self.jobs.holds(message):
            return self.refuse(message, JobStatus.VOID)
        if self._departure.drains and not self.jobs.holds(message):
            return self.refuse(message, JobStatus.REVOKED)
        if not is_able or (message.branch, message.step) < self._state.version:
            return self.refuse(message, JobStatus.WRONG_STEP)
        num_x = message.x.num_frames if message.x else 0
        x = Load(parcel=message.x, frames=frames[:num_x]) if message.x else None
        dy = Load(parcel=message.dy, frames=frames[num_x:]) if message.dy else None
        self.jobs.take(HeldJob(job=message, x=x, dy=dy))
        return []

    def revoke(self, message: Revoke) -> list[Send]:
        """Leave a job to others, unless it has begun; one that is done brings its result again."""
        if message.worker != self._me.session:
            return []
        id_ = (message.session, message.lease)
        held = self.jobs.held.get(id_)
        if held is not None and not held.begun:
            self.jobs.finish(held, self.greetings.refusal(held.job, JobStatus.REVOKED))
        known = self.jobs.results.get(id_)
        return self._tell_again(message.session, known[1]) if known is not None else []

    def refuse(self, job: Job, status: JobStatus) -> list[Send]:
        """Tell the broker of a job that it is not done here; nor is a late copy, which others may be doing by then."""
        result = self.greetings.refusal(job, status)
        self.jobs.remember(job, result)
        return self.greetings.tell(job.session, result)

    def inherit(self, message: Inherit, *, layer: int, now: float) -> list[Send]:
        """Get a copy of what another worker has counted, unless this one leaves."""
        return [] if self._departure.is_asked else self.heir.inherit(message, layer=layer, now=now)

    def hand_back(self) -> list[Send]:
        """Leave every job that has not begun to others: this worker takes no more."""
        sends: list[Send] = []
        for held in [held for held in self.jobs.held.values() if not held.begun]:
            result = self.greetings.refusal(held.job, JobStatus.REVOKED)
            self.jobs.finish(held, result)
            sends += self.greetings.tell(held.job.session, result)
        return sends

    @property
    def is_idle(self) -> bool:
        """Is there no job here, and nothing else on its way into the accumulator?"""
        return not self.jobs.held and self.device.is_idle and not self.heir.is_adding

    def _tell_again(self, broker: Session, result: Result) -> list[Send]:
        return self.greetings.tell(broker, replace(result, slots=self.greetings.slots(broker)))

    # -- what becomes void ---------------------------------------------------------------------------

    def view_changed(self) -> list[Task]:
        """Drop the jobs of brokers that have left; count what a worker that has left leaves to this one."""
        self.jobs.drop(lambda job: self._outputs.has_left(job.session))
        return self.heir.view_changed()

    def void(self, message: Void, outbox: Outbox) -> None:
        """Carry out what can be at once; `settle` says when all of it is."""
        self._voids.note(message, self._state.version)
        self.jobs.drop(lambda job: self._voids.covers(job.key))
        self.heir.void()
        version = (message.branch, message.step)
        outbox.drop_void(version, message.attempt, ledger.from_bytes(message.ledger))

    def settle(self) -> None:
        """See whether what is void has ended."""
        self._voids.settle(chain(self.device.running_keys(), self.heir.added.keys()))

    def forget(self) -> list[Reset]:
        """Nothing is counted, nothing is held."""
        self.heir.forget()
        self._state.forget()
        self.jobs.clear()
        return self.device.reset()

    def begin_new_life(self, *, is_spare: bool) -> None:
        """Nobody has asked anything of this session yet; all tasks are to end, or the process if it `is_spare`."""
        self._voids.begin_new_life()
        self.device.is_spare = is_spare

    # -- computing -----------------------------------------------------------------------------------

    def begin(self) -> list[Run]:
        """Give the compute thread its next job, if it is free to take one."""
        is_free = self.device.is_free(most_unfinished(self._me.stage))
        held = self.jobs.next(self._state.version) if is_free else None
        if held is None:
            return []
        job = held.job
        trains = job.kind in (JobKind.BACKWARD, JobKind.FUSED)
        accumulate = trains and job.accumulate and not self._state.has(job.microbatch)
        if accumulate:
            self._state.accumulating |= 1 << job.microbatch
        return [self.device.begin(held, accumulate=accumulate)]

    def emitted(self, outcome: Emitted, outbox: Outbox, now: float) -> list[Send]:
        """Send the gradient of the stage's input home, while that of the parameters is in work."""
        held = self.device.running_of(outcome.lease)
        if held is None:
            return []
        self.device.emitted(outcome.lease)
        if self._voids.covers(held.job.key):
            return []
        return self._outputs.backward(outbox, held.job, outcome.dx, now)

    def ran(self, outcome: Ran, outbox: Outbox, now: float) -> list[Send]:
        """A job has ended: count it, send its output on, and tell its broker."""
        held = self.device.running_of(outcome.lease)
        if held is None:
            return []
        job = held.job
        self.device.end(outcome)
        if held.accumulates:
            self._state.accumulating &= ~(1 << job.microbatch)
        sends: list[Send] = []
        if outcome.status is JobStatus.DONE:
            if held.accumulates:
                self._state.add(job.microbatch, outcome.loss_sum, outcome.num_targets)
            if job.kind is JobKind.FORWARD and outcome.y is not None and not self._voids.covers(job.key):
                sends += self._outputs.forward(outbox, job, outcome.y, now)
            if job.kind is JobKind.EVALUATE:
                sends += self._outputs.loss(outbox, job, outcome, now)
        result = Result(
            **self._me.header(),
            branch=job.branch,
            step=job.step,
            lease=job.lease,
            status=outcome.status,
            kept=outcome.kept,
            compute_s=outcome.compute_s,
            slots=self.greetings.slots(job.session),
        )
        self.jobs.finish(held, result)
        return [*sends, *self.greetings.tell(job.session, result)]
