"""Who gets which job: the leases of a broker's workers.

A lease is one assignment of a job to a session of a worker. It ends with the worker's answer, or with the entry, or
when the worker leaves. The entry goes back into the backlog only if the worker has left, or has answered anything but
DONE: what has been asked back (Revoke) stays leased until then.

A job that changes nothing where it is done, an evaluation or a gradient that is only passed on, is hedged: whoever has
nothing else to do gets it, too, when it takes another worker long. The first answer counts. With one that is counted that
cannot be: its gradient may be in the accumulator already.
"""

from __future__ import annotations

from brokers import pool
from brokers.backlog import Backlog
from brokers.entries import Entry, EntryState, LeaseRecord, Worker, first_lease
from zswarm import limits
from zswarm.ids import JobKind, Lease, Session
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
        self._num_hedged = 0
        """Entries of which two leases are out."""
        self.num_hedges = 0
        """Jobs that a second worker was given, ever."""
        self._next_lease = first_lease(membership.session)
        self._patience_s = 2 * limits.RESEND_HEARTBEATS * membership.heartbeat_s
        """How long a worker is waited for before it is told a second time."""

    @property
    def depth(self) -> int:
        """Entries with a job to do: queued or leased."""
        return self.backlog.num_entries + self.num_leased - self._num_hedged

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
        if self.num_leased and len(self.workers) > 1:
            sends += self._relieve(now)
        return sends

    def _lease(self, worker: Worker, entry: Entry, now: float) -> Send:
        back = entry.state is EntryState.BACKWARD_QUEUED
        self.backlog.remove(entry)
        entry.state = EntryState.BACKWARD_LEASED if back else EntryState.FORWARD_LEASED
        entry.record = self._make_lease(worker, entry, now)
        return self._job(entry.record, worker, now)

    def _make_lease(self, worker: Worker, entry: Entry, now: float) -> LeaseRecord:
        lease = self._next_lease
        self._next_lease = Lease(lease + 1)
        back = entry.state is EntryState.BACKWARD_LEASED
        record = worker.leases[lease] = LeaseRecord(
            lease=lease,
            entry=entry,
            worker=worker.session,
            kind=JobKind.BACKWARD if back else entry.kind,
            with_input=not back or entry.affine != worker.session,
            since_s=now,
            sent_at_s=now,
        )
        self.num_leased += 1
        return record

    def _job(self, record: LeaseRecord, worker: Worker, now: float) -> Send:
        assert worker.work is not None
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
        return make_send(peer=worker.work, message=message, frames=(x.frames if x else ()) + (dy.frames if dy else ()))

    def _relieve(self, now: float) -> list[Send]:
        """Find something to do for each worker that has no job, among those that others have."""
        sends: list[Send] = []
        without_job = [w for w in self.workers.values() if not w.leases and w.free_slots > 0]
        if not without_job:
            return sends
        busy = [w for w in self.workers.values() if len(w.leases) > 1]
        hedgeable = pool.hedgeable(self.workers)
        for idle in without_job:
            if (record := pool.to_ask_back(self.workers, busy, idle)) is not None:
                sends += self._ask_back(record, idle, now)
                if record.asked_at_s == now and record.num_asked == 1:
                    # If it has not begun, nobody need do anything twice.
                    continue
            if (record := pool.to_hedge(hedgeable, self.workers, idle, now)) is not None:
                record.entry.hedge = hedge = self._make_lease(idle, record.entry, now)
                self._num_hedged += 1
                self.num_hedges += 1
                sends.append(self._job(hedge, idle, now))
        return sends

    def _ask_back(self, record: LeaseRecord, idle: Worker, now: float) -> list[Send]:
        """Ask a worker that has more than one job to leave one to another that has none."""
        if record.num_asked and now - record.asked_at_s <= patience(self._patience_s, record.num_asked):
            return []
        record.asked_for, record.asked_at_s = idle.session, now
        record.num_asked += 1
        return self._revoke(record)

    def _revoke(self, record: LeaseRecord) -> list[Send]:
        worker = self.workers.get(record.worker)
        if worker is None or worker.work is None:
            return []
        message = Revoke(**self._me.header(), worker=record.worker, lease=record.lease)
        return [Send(peer=worker.work, message=message)]

    def repeat(self, worker: Worker, held: tuple[Lease, ...], now: float) -> list[Send]:
        """Send the jobs again that a worker should have got by now and does not hold."""
        sends: list[Send] = []
        for record in list(worker.leases.values()):
            if record.is_needless:
                if record.lease not in held:
                    del worker.leases[record.lease]
                continue
            overdue = now - record.sent_at_s > patience(self._patience_s, record.num_sent)
            if record.lease not in held and overdue and worker.work is not None:
                sends.append(self._job(record, worker, now))
        return sends

    def end(self, record: LeaseRecord) -> None:
        """A lease is over; if another worker has the same job, that stays."""
        if worker := self.workers.get(record.worker):
            del worker.leases[record.lease]
        self.num_leased -= 1
        entry = record.entry
        if record is entry.record:
            entry.record = entry.hedge
        self._num_hedged -= entry.hedge is not None
        entry.hedge = None

    def settle(self, record: LeaseRecord) -> list[Send]:
        """A job is done: nobody need do it a second time. Whoever is at it has it until he says that he has not."""
        entry = record.entry
        self.end(record)
        if (other := entry.record) is None:
            return []
        entry.record, other.is_needless = None, True
        self.num_leased -= 1
        return self._revoke(other)

    def withdraw(self, entry: Entry) -> None:
        """Let nobody have this entry to do: neither the backlog nor a worker."""
        while entry.record is not None:
            self.end(entry.record)
        if entry.line is not None:
            self.backlog.remove(entry)

    def requeue(self, record: LeaseRecord) -> None:
        """Put the entry of a lease back at the head of its line, unless another worker has it, too."""
        self.end(record)
        entry = record.entry
        if entry.affine == record.worker:
            entry.affine = None
        if entry.record is not None:
            return
        back = record.kind is JobKind.BACKWARD
        entry.state = EntryState.BACKWARD_QUEUED if back else EntryState.FORWARD_QUEUED
        self.backlog.add(entry, again=True)
