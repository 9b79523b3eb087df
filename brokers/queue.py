"""The broker's machine: a queue of microbatches, balanced over the workers of one stage.

Theory of operation. Producers send Forward within their credit (`brokers.credit`), workers of the next
stage send Backward; both are acknowledged once they are in memory, and an equal key is a duplicate.
Each worker says with Ready which parameters it holds and how many leases it takes. Jobs go to the
worker with the fewest leases first, in the order of `brokers.backlog`. A lease ends with its Result, or
when the worker leaves the view. What is repeated until true: Job when Ready lacks its lease, Credit at
every Attach. Payloads are opaque.

Ignored on purpose: results of unknown leases (their entry has been settled otherwise), messages of
older (branch, step), Attach of sessions that the view does not know yet (their link is kept).
"""

from __future__ import annotations

from typing import Any

from brokers.backlog import Backlog
from brokers.credit import Credits
from brokers.entries import Entry, EntryState, LeaseRecord, Worker, average
from zswarm import limits
from zswarm.ids import (
    TRAINER,
    Branch,
    Direction,
    JobKind,
    JobStatus,
    Lease,
    Link,
    NackCode,
    Peer,
    Purpose,
    Role,
    Session,
    Step,
)
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import (
    Ack,
    Attach,
    Backward,
    Credit,
    Forward,
    Key,
    Load,
    Member,
    Nack,
    Ready,
    Result,
    Room,
    key_fields,
)
from zswarm.patience import patience


class Queue:
    """The queue of one stage's broker. Methods return the Sends that follow."""

    def __init__(self, membership: Membership, *, capacity_bytes: int) -> None:
        self._me = membership
        self._last_stage = membership.stage == membership.num_stages - 1
        self.credits = Credits(capacity_bytes=capacity_bytes, unit_bytes=membership.unit_bytes)
        self.entries: dict[Key, Entry] = {}
        self._settled: set[Key] = set()
        self.workers: dict[Session, Worker] = {}
        self._backlog = Backlog(self.workers)
        self.num_leased = 0
        self._links: dict[Session, Link] = {}
        """Work connections of producers, and of sessions that a newer view may name."""
        self._version: tuple[Branch, Step] = (Branch(0), Step(0))
        self._next_lease = Lease(1)
        self._response_s = 0.0

    # -- membership ----------------------------------------------------------------------------------

    def set_members(self, members: tuple[Member, ...], now: float) -> list[Send]:
        """Adopt the newest view: who produces for this stage, who works at it."""
        stage = self._me.stage
        workers = {m.member for m in members if m.role is Role.WORKER and m.stage == stage}
        for session in sorted(set(self.workers) - workers):
            leaver = self.workers.pop(session)
            self._backlog.forget_worker(session)
            for record in reversed(leaver.leases.values()):
                self._requeue(record)
        for session in sorted(workers - set(self.workers)):
            self.workers[session] = Worker(session=session, work=self._links.pop(session, None), leases={})
        before = {m.member for m in members if m.role is Role.WORKER and m.stage == stage - 1}
        producers = before if stage > 0 else {TRAINER}
        newest = max((m.member for m in members), default=TRAINER)
        self._links = {s: link for s, link in self._links.items() if s in producers or s > newest}
        return self._announce(self.credits.set_producers(producers)) + self._dispatch(now)

    def attach(self, message: Attach, link: Link, now: float) -> list[Send]:
        """Keep the work link of a producer or worker; tell a producer its credit."""
        if worker := self.workers.get(message.session):
            worker.work = link
            return self._dispatch(now)
        self._links[message.session] = link
        return self._announce([message.session])

    def _announce(self, producers: list[Session]) -> list[Send]:
        sends = []
        for producer in producers:
            link, room = self._links.get(producer), self._room(producer)
            if link is not None and room is not None:
                sends.append(Send(peer=link, message=Credit(**self._me.header(), room=room)))
        return sends

    def _room(self, producer: Session) -> Room | None:
        account = self.credits.account(producer)
        if account is None:
            return None
        return Room(
            granted_bytes=account.granted_bytes,
            free_bytes=self.credits.free_bytes,
            depth=self.depth,
            response_s=self._response_s,
        )

    @property
    def num_queued(self) -> int:
        """Microbatches that wait for a worker."""
        return len(self._backlog)

    @property
    def depth(self) -> int:
        """Microbatches with a job to do: queued or leased."""
        return self.num_queued + self.num_leased

    # -- producers -----------------------------------------------------------------------------------

    def forward(self, message: Forward, frames: tuple[Any, ...], peer: Peer, now: float) -> list[Send]:
        """Queue a stage input, within its producer's credit."""
        if (message.branch, message.step) < self._version:
            return [self._answer(message, peer, NackCode.STALE)]
        key = message.key
        if key in self.entries or key in self._settled:
            return [self._answer(message, peer)]
        if not self.credits.take(message.session, message.parcel.size_bytes):
            return [self._answer(message, peer, NackCode.BUSY)]
        kind = JobKind.FORWARD
        if self._last_stage:
            kind = JobKind.FUSED if message.purpose is Purpose.TRAIN else JobKind.EVALUATE
        x = Load(parcel=message.parcel, frames=frames)
        self.entries[key] = entry = Entry(key=key, kind=kind, route=message.route, x=x, arrived_at_s=now)
        self._backlog.add(entry)
        granted = [p for p in self.credits.grant() if p != message.session]
        return [*self._dispatch(now), self._answer(message, peer), *self._announce(granted)]

    def backward(self, message: Backward, frames: tuple[Any, ...], peer: Peer, now: float) -> list[Send]:
        """Queue the gradient of a stage output; its room was reserved with the input."""
        if (message.branch, message.step) < self._version:
            return [self._answer(message, peer, NackCode.STALE)]
        entry = self.entries.get(message.key)
        if message.key in self._settled or (entry is not None and entry.dy is not None):
            return [self._answer(message, peer)]
        if entry is None or not entry.has_backward:
            return [self._answer(message, peer, NackCode.STALE)]
        self._withdraw(entry)
        entry.dy = Load(parcel=message.parcel, frames=frames)
        entry.state = EntryState.BACKWARD_QUEUED
        entry.arrived_at_s = now
        self._backlog.add(entry)
        return [*self._dispatch(now), self._answer(message, peer)]

    def _answer(self, message: Forward | Backward, peer: Peer, code: NackCode | None = None) -> Send:
        """Return an Ack, or a Nack with that code."""
        forth = isinstance(message, Forward)
        direction = Direction.FORWARD if forth else Direction.BACKWARD
        room = self._room(message.session) if forth else None
        header, key = self._me.header(), key_fields(message.key)
        if code is None:
            return Send(peer=peer, message=Ack(**header, **key, direction=direction, room=room))
        return Send(peer=peer, message=Nack(**header, **key, direction=direction, code=code, room=room))

    # -- workers -------------------------------------------------------------------------------------

    def ready(self, message: Ready, now: float) -> list[Send]:
        """Note what a worker holds; repeat jobs that it should have got by now."""
        worker = self.workers.get(message.session)
        if worker is None or not self._advance(worker, (message.branch, message.step)):
            return []
        worker.slots = message.slots
        sends = []
        first_s = 2 * limits.RESEND_HEARTBEATS * self._me.heartbeat_s
        for record in worker.leases.values():
            overdue = now - record.sent_at_s > patience(first_s, record.num_sent)
            if record.lease not in message.held and overdue and worker.work is not None:
                sends.append(self._job(record, worker.work, now))
        return self._announce(self.credits.grant()) + sends + self._dispatch(now)

    def result(self, message: Result, now: float) -> list[Send]:
        """Settle a lease."""
        worker = self.workers.get(message.session)
        if worker is None:
            return []
        worker.slots = message.slots
        record = worker.leases.get(message.lease)
        if record is None:
            return self._dispatch(now)
        if message.status is not JobStatus.DONE:
            if message.status is JobStatus.WRONG_STEP:
                self._advance(worker, (message.branch, message.step))
            if record.lease in worker.leases:
                self._requeue(record)
            return self._announce(self.credits.grant()) + self._dispatch(now)
        entry = record.entry
        if record.kind is JobKind.FORWARD and entry.has_backward:
            self._end(record)
            entry.state = EntryState.WAITING
            entry.affine = message.session if message.kept else None
        else:
            self._settle(entry)
        worker.job_s = average(worker.job_s, message.compute_s)
        self._response_s = average(self._response_s, now - entry.arrived_at_s)
        return self._dispatch(now) + self._announce(self.credits.grant())

    def _advance(self, worker: Worker, version: tuple[Branch, Step]) -> bool:
        """Note a worker's parameters: everything older is committed, or void. False if it said so long ago."""
        if worker.version is not None and version < worker.version:
            return False
        worker.version = version
        if version > self._version:
            self._version = version
            for entry in [e for e in self.entries.values() if e.version < version]:
                self._settle(entry)
            self._settled = {key for key in self._settled if (key[0], key[1]) >= version}
            self._backlog.drop_before(version)
        return True

    def _end(self, record: LeaseRecord) -> None:
        if worker := self.workers.get(record.worker):
            del worker.leases[record.lease]
        self.num_leased -= 1
        record.entry.record = None

    def _withdraw(self, entry: Entry) -> None:
        """Let nobody have this entry to do: neither the backlog nor a worker."""
        if entry.record is not None:
            self._end(entry.record)
        elif entry.state is not EntryState.WAITING:
            self._backlog.remove(entry)

    def _requeue(self, record: LeaseRecord) -> None:
        self._end(record)
        entry = record.entry
        if entry.affine == record.worker:
            entry.affine = None
        back = record.kind is JobKind.BACKWARD
        entry.state = EntryState.BACKWARD_QUEUED if back else EntryState.FORWARD_QUEUED
        self._backlog.add(entry, again=True)

    def _settle(self, entry: Entry) -> None:
        self._withdraw(entry)
        del self.entries[entry.key]
        self._settled.add(entry.key)
        self.credits.release(entry.x.parcel.size_bytes)

    # -- dispatch ------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> list[Send]:
        """Give jobs to workers while there are both."""
        sends: list[Send] = []
        while self._backlog:
            able = [w for w in self.workers.values() if w.slots > len(w.leases) and w.work is not None]
            if len(able) > 1:
                able.sort(key=lambda w: (len(w.leases), w.job_s, w.session))
            for worker in able:
                entry = self._backlog.choose(worker)
                if entry is not None:
                    sends.append(self._lease(worker, entry, now))
                    break
            else:
                break
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
        self._backlog.remove(entry)
        self.num_leased += 1
        entry.record = record
        entry.state = EntryState.BACKWARD_LEASED if back else EntryState.FORWARD_LEASED
        worker.leases[lease] = record
        assert worker.work is not None
        return self._job(record, worker.work, now)

    def _job(self, record: LeaseRecord, link: Link, now: float) -> Send:
        record.sent_at_s = now
        record.num_sent += 1
        message, frames = record.job(self._me.header())
        return Send(peer=link, message=message, frames=frames)
