"""Who gets which job: the leases of a broker's workers.

A lease is one assignment of a job to a session of a worker. It ends with the worker's answer, or with the entry, or
when the worker leaves. The entry goes back into the backlog only if the worker has left, or has answered anything but
DONE: what has been asked back (Revoke) stays leased until then.
"""

from __future__ import annotations

from brokers import pool
from brokers.backlog import Backlog
from brokers.entries import Entry, EntryState, LeaseRecord, Worker, first_lease
from zswarm import limits
from zswarm.ids import JobKind, Lease, Link, Session
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Job, Revoke
from zswarm.patience import patience
from zswarm.slots import maker

make_job, make_send = maker(Job), maker(Send)


class Leasing:
    """See the module. Whoever changes `workers` or adds to the backlog calls `dispatch` next."""

    def __init__(self, membership: Membership) -> None:
        self._me = membership
        self.workers: dict[Session, Worker] = {}
        self.backlog = Backlog(self.workers)
        self.num_leased = 0
        self._next_lease = first_lease(membership.session)
        self._patience_s = 2 * limits.RESEND_HEARTBEATS * membership.heartbeat_s
        """How long a worker is waited for before it is told a second time."""

    @property
    def depth(self) -> int:
        """Entries with a job to do: queued or leased."""
        return self.backlog.num_entries + self.num_leased

    def dispatch(self, now: float) -> list[Send]:
        """Give jobs to workers while there are both, to the one with the fewest leases first."""
        sends: list[Send] = []
        while self.backlog.num_entries:
            able = [w for w in self.workers.values() if w.slots > len(w.leases) and w.work is not None]
            if len(able) > 1:
                able.sort(key=lambda w: (len(w.leases), w.job_s, w.session))
            for worker in able:
                entry = self.backlog.choose(worker)
                if entry is not None:
                    sends.append(self._lease(worker, entry, now))
                    break
            else:
                break
        if self.num_leased > 1 and len(self.workers) > 1:
            sends += self._ask_back(now)
        return sends

    def _lease(self, worker: Worker, entry: Entry, now: float) -> Send:
        lease = self._next_lease
        self._next_lease = Lease(lease + 1)
        back = entry.state is EntryState.BACKWARD_QUEUED
        record = LeaseRecord(
            lease=lease,
            entry=entry,
            worker=worker.session,
            kind=JobKind.BACKWARD if back else entry.kind,
            with_input=not back or entry.affine != worker.session,
            sent_at_s=now,
        )
        self.backlog.remove(entry)
        self.num_leased += 1
        entry.record = record
        entry.state = EntryState.BACKWARD_LEASED if back else EntryState.FORWARD_LEASED
        worker.leases[lease] = record
        assert worker.work is not None
        return self._job(record, worker.work, now)

    def _job(self, record: LeaseRecord, link: Link, now: float) -> Send:
        record.sent_at_s = now
        record.num_sent += 1
        me, entry = self._me, record.entry
        branch, step, purpose, microbatch, attempt = entry.key
        x = entry.x if record.with_input else None
        dy = entry.dy if record.kind is JobKind.BACKWARD else None
        message = make_job(
            run=me.run,
            generation=me.generation,
            session=me.session,
            branch=branch,
            step=step,
            purpose=purpose,
            microbatch=microbatch,
            attempt=attempt,
            worker=record.worker,
            lease=record.lease,
            kind=record.kind,
            accumulate=entry.accumulate,
            emit=entry.emit,
            route=entry.route,
            mask=entry.mask,
            x=x.parcel if x else None,
            dy=dy.parcel if dy else None,
        )
        return make_send(peer=link, message=message, frames=(x.frames if x else ()) + (dy.frames if dy else ()))

    def _ask_back(self, now: float) -> list[Send]:
        """Ask workers that have more than one job to leave one to each that has none."""
        sends: list[Send] = []
        without_job = [w for w in self.workers.values() if not w.leases and w.free_slots > 0]
        if not without_job or not (busy := [w for w in self.workers.values() if len(w.leases) > 1]):
            return sends
        for idle in without_job:
            if (record := pool.to_ask_back(self.workers, busy, idle)) is None:
                continue
            is_early = record.num_asked and now - record.asked_at_s <= patience(self._patience_s, record.num_asked)
            link = self.workers[record.worker].work
            if is_early or link is None:
                continue
            record.asked_for, record.asked_at_s = idle.session, now
            record.num_asked += 1
            message = Revoke(**self._me.header(), worker=record.worker, lease=record.lease)
            sends.append(Send(peer=link, message=message))
        return sends

    def repeat(self, worker: Worker, held: tuple[Lease, ...], now: float) -> list[Send]:
        """Send the jobs again that a worker should have got by now and does not hold."""
        sends: list[Send] = []
        for record in worker.leases.values():
            overdue = now - record.sent_at_s > patience(self._patience_s, record.num_sent)
            if record.lease not in held and overdue and worker.work is not None:
                sends.append(self._job(record, worker.work, now))
        return sends

    def end(self, record: LeaseRecord) -> None:
        """A lease is over."""
        if worker := self.workers.get(record.worker):
            del worker.leases[record.lease]
        self.num_leased -= 1
        record.entry.record = None

    def withdraw(self, entry: Entry) -> None:
        """Let nobody have this entry to do: neither the backlog nor a worker."""
        if entry.record is not None:
            self.end(entry.record)
        elif entry.line is not None:
            self.backlog.remove(entry)

    def requeue(self, record: LeaseRecord) -> None:
        """Put the entry of a lease back at the head of its line."""
        self.end(record)
        entry = record.entry
        if entry.affine == record.worker:
            entry.affine = None
        back = record.kind is JobKind.BACKWARD
        entry.state = EntryState.BACKWARD_QUEUED if back else EntryState.FORWARD_QUEUED
        self.backlog.add(entry, again=True)
