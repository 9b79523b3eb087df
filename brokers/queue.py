"""The broker's machine: a queue of microbatches, balanced over the workers of one stage.

Theory of operation. Producers send Forward within their credit (`brokers.credit`), workers of the next
stage send Backward; both are acknowledged once they are in memory, and an equal key is a duplicate.
Each worker says with Ready which parameters it holds and how many leases it takes. Jobs go to the
worker with the fewest leases first, in the order of `brokers.backlog`. A lease ends with its Result, or
when the worker leaves the view: then it is leased again, and what the leaver had counted is done again
(`brokers.retention`). A worker without a job is given one that another has not begun, if that one says
so (Revoke). What the coordinator has voided is dropped (`brokers.voids`). What is repeated until true: Job
when Ready lacks its lease, Revoke while somebody is idle, Credit at every Attach, Drained at every Ready of a worker
that leaves and has no lease. Payloads are opaque.

Ignored on purpose: results of unknown leases (their entry has been settled otherwise), messages of
older (branch, step), Attach of sessions that the view does not know yet (their link is kept).

A producer gives back the credit of a Forward that is refused, so STALE is said only of what was never taken: keys
that were taken are remembered until the step after theirs is over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from brokers import pool
from brokers.credit import Credits
from brokers.entries import Entry, EntryState, LeaseRecord, Worker, average, make_entry
from brokers.leasing import Leasing
from brokers.retention import Retention
from brokers.voids import Voids
from zswarm import limits
from zswarm.bequests import Left
from zswarm.custody import Custody
from zswarm.ids import (
    TRAINER,
    Direction,
    Generation,
    JobKind,
    JobStatus,
    Link,
    NackCode,
    Peer,
    Purpose,
    Role,
    Session,
    Version,
)
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import (
    Ack,
    Attach,
    Backward,
    Credit,
    Drained,
    Forward,
    HeartbeatAck,
    Key,
    Load,
    Member,
    Nack,
    Ready,
    Result,
    Room,
    Void,
    key_fields,
)
from zswarm.slots import maker

make_ack, make_room, make_load, make_send = maker(Ack), maker(Room), maker(Load), maker(Send)
make_credit = maker(Credit)
NOTHING = Left(TRAINER, 0)


class Queue:
    """The queue of one stage's broker. Methods return the Sends that follow."""

    def __init__(self, membership: Membership, *, capacity_bytes: int) -> None:
        self._me = membership
        self._is_last = membership.stage == membership.num_stages - 1
        self.credits = Credits(capacity_bytes=capacity_bytes, unit_bytes=membership.unit_bytes)
        self.entries: dict[Key, Entry] = {}
        """What there is to do, or a gradient to come for."""
        self.retention = Retention(self.credits)
        self._settled: set[Key] = set()
        """What was taken and needs nothing from its senders any more: it is done, or dropped, or both were long ago and
        it is done again from what was kept."""
        self.voids = Voids()
        self.custody = Custody()
        """Of the microbatches to train on that have a job to do here."""
        self.leasing = Leasing(membership)
        self.workers = self.leasing.workers
        self._links: dict[Session, Link] = {}
        """Work connections of producers, and of sessions that a newer view may name."""
        self._trainer = membership.generation
        """The newest generation of the trainer that has spoken as a producer."""
        self.version: Version = (membership.branch, membership.step)
        """The newest that anybody has told of: whatever is older is committed, or void."""
        self._response_s = 0.0
        self._finished: set[Session] = set()
        """Producers that will send nothing more, since this broker closes."""

    # -- membership ----------------------------------------------------------------------------------

    def set_members(self, members: tuple[Member, ...], version: Version, now: float) -> list[Send]:
        """Adopt the newest view: who produces for this stage, who works at it, and which step is in work.

        Before anything is done again that a leaver had counted: it may be in a commit that no worker has told of yet.
        """
        self._go_on(version)
        stage = self._me.stage
        workers = {m.member: m.node for m in members if m.role is Role.WORKER and m.stage == stage}
        if self._me.bequests:
            self._bequeath(workers)
        for session in sorted(set(self.workers) - set(workers)):
            self._let_go(self.workers.pop(session), now)
        for session in sorted(self.retention.owners() - set(workers)):
            self._do_again(session, now)
        for session in sorted(set(workers) - set(self.workers)):
            link = self._links.pop(session, None)
            self.workers[session] = Worker(session=session, node=workers[session], heard_at_s=now, work=link)
        before = {m.member for m in members if m.role is Role.WORKER and m.stage == stage - 1}
        producers = before if stage > 0 else {TRAINER}
        newest = max((m.member for m in members), default=TRAINER)
        self._links = {s: link for s, link in self._links.items() if s in producers or s > newest}
        granted = self.credits.set_producers(producers)
        self.retention.make_room()
        return self._announce(granted) + self.leasing.dispatch(now)

    def close(self) -> list[Send]:
        """Be home to nothing new, but for what is on its way: tell every producer so, with each word from here on."""
        self.credits.is_closed = True
        return self._announce(self.credits.accounts)

    @property
    def is_closed(self) -> bool:
        """Does this broker grant nothing any more?"""
        return self.credits.is_closed

    @property
    def is_empty(self) -> bool:
        """Is it home to nothing of which the step is not over?"""
        return not self.entries and not len(self.retention)

    @property
    def is_settled(self) -> bool:
        """Is it empty, and will it stay so? Every producer has used up its credit, or has said that it is done."""
        return (
            self.is_closed
            and self.is_empty
            and all(
                producer in self._finished or not account.credit_bytes
                for producer, account in self.credits.accounts.items()
            )
        )

    def abandon(self) -> None:
        """Give up everything, for good: the payloads' memory is free at once.

        What holds them refer to each other, and would wait for the garbage collector.
        """
        for entry in self.entries.values():
            self.leasing.withdraw(entry)
        self.entries.clear()

    def _bequeath(self, workers: Collection[Session]) -> None:
        """Let what leavers had counted, and have left to others, be theirs; their word that it was done may not have come."""
        bequests = self._me.bequests

        def owner_of(counter: Session, entry: Entry) -> Session | None:
            for _ in bequests:
                if counter in workers:
                    break
                heir, left = bequests.get(counter, NOTHING)
                if not left >> entry.microbatch & 1:
                    return None
                counter = heir
            return counter if counter in workers else None

        for leaver in [worker for session, worker in self.workers.items() if session not in workers]:
            for record in list(leaver.leases.values()):
                entry = record.entry
                counts = record.kind is not JobKind.FORWARD and entry.accumulate and entry.version == self.version
                if counts and not record.is_needless and owner_of(leaver.session, entry) is not None:
                    # Nobody is told anything: nobody else has a job that is counted.
                    self._done(record, kept=False)
        self.retention.bequeath(owner_of)

    def _let_go(self, leaver: Worker, now: float) -> None:
        """Have done again what a worker had leased, and before that what it had counted.

        But no forward to train on: its output may have gone to a broker of the next stage already, and if another
        worker's went to another broker one attempt would have two homes there. If it has not gone, nobody reports the
        microbatch any more, and the coordinator voids this attempt.
        """
        self.leasing.backlog.forget_worker(leaver.session)
        for record in reversed(leaver.leases.values()):
            if record.is_needless:
                continue
            if record.kind is JobKind.FORWARD and record.entry.key[2] is Purpose.TRAIN:
                self.leasing.end(record)
                self._pass_on(record.entry, affine=None)
            else:
                self.leasing.requeue(record)
        self._do_again(leaver.session, now)

    def _do_again(self, leaver: Session, now: float) -> None:
        for entry in reversed(self.retention.take_back(leaver)):
            back = entry.kind is JobKind.FORWARD
            entry.state = EntryState.BACKWARD_QUEUED if back else EntryState.FORWARD_QUEUED
            entry.emit, entry.done_by, entry.arrived_at_s = False, None, now
            self.entries[entry.key] = entry
            self.leasing.backlog.add(entry, again=True)
            self.custody.take(entry.version, entry.microbatch)

    def attach(self, message: Attach, link: Link, now: float) -> list[Send]:
        """Keep the work link of a producer or worker; tell a producer its credit."""
        if worker := self.workers.get(message.session):
            worker.work, worker.heard_at_s = link, now
            return self.leasing.dispatch(now)
        if self._is_of_past_trainer(message):
            return []
        self._keep_link(message.session, link)
        if message.is_done and self.is_closed:
            self._finished.add(message.session)
        granted = self._grant()
        return self._announce([message.session, *(p for p in granted if p != message.session)])

    def _is_of_past_trainer(self, message: Attach | Forward) -> bool:
        """Has the trainer been started again since? The next one has the same session and counts from 0."""
        if message.session == TRAINER and message.generation > self._trainer:
            self._trainer = message.generation
            self.credits.begin_anew(TRAINER)
        return message.session == TRAINER and message.generation < self._trainer

    def _announce(self, producers: Iterable[Session]) -> list[Send]:
        sends = []
        for producer in producers:
            link, room = self._links.get(producer), self._room(producer)
            if link is not None and room is not None:
                sends.append(make_send(peer=link, message=make_credit(**self._me.header(), room=room)))
        return sends

    def _room(self, producer: Session) -> Room | None:
        account = self.credits.account(producer)
        if account is None:
            return None
        return make_room(
            producer=producer,
            unit_bytes=self._me.unit_bytes,
            trainer=self._trainer if producer == TRAINER else Generation(0),
            granted_bytes=account.granted_bytes,
            received_bytes=account.received_bytes,
            free_bytes=self.credits.free_bytes,
            depth=self.leasing.depth,
            response_s=self._response_s,
            closes=self.credits.is_closed,
        )

    def active(self, version: Version) -> int:
        """Return a bitmap of the microbatches to train on of a step that have a job to do."""
        bitmap = 0
        for entry in self.entries.values():
            if entry.version == version and entry.trains and entry.state is not EntryState.WAITING:
                bitmap |= 1 << entry.microbatch
        return bitmap

    def accused(self, now: float) -> tuple[Session, ...]:
        """Return the workers that have jobs and have been silent for too long."""
        return pool.silent(self.workers, now, limits.SILENCE_HEARTBEATS * self._me.heartbeat_s)

    def excuse(self, now: float, stall_s: float) -> None:
        """This broker itself was not running for so long."""
        pool.excuse(self.workers, now, stall_s)

    # -- producers -----------------------------------------------------------------------------------

    def _keep_link(self, session: Session, link: Link) -> None:
        """Remember a link; whoever makes up sessions makes others lose theirs, which have no view yet, and no more."""
        if len(self._links) >= limits.MAX_REMEMBERED_PEERS and session not in self._links:
            self._links = {s: known for s, known in self._links.items() if self.credits.account(s) is not None}
        self._links[session] = link

    def forward(self, message: Forward, frames: tuple[Any, ...], peer: Peer, now: float) -> list[Send]:
        """Queue a stage input, within its producer's credit."""
        me, key, producer = self._me, message.key, message.session
        if producer == TRAINER and self._is_of_past_trainer(message):
            return []
        if message.route[-1:] != (me.session,):
            return [self._refuse(message, peer, NackCode.STALE)]
        if key in self.entries or key in self._settled:
            return [self._acknowledge(message, peer)]
        if self._is_stale(key):
            return [self._refuse(message, peer, NackCode.STALE)]
        entry = make_entry(key, message, frames, stage=me.stage, is_last=self._is_last, now=now)
        # What comes back may be larger than what came, as at stage 0.
        entry.credit_bytes = max(message.parcel.size_bytes, me.unit_bytes)
        if not self.credits.take(producer, entry.credit_bytes):
            return [self._refuse(message, peer, NackCode.BUSY)]
        self.entries[key] = entry
        self.leasing.backlog.add(entry)
        if entry.trains:
            self.custody.take(entry.version, entry.microbatch)
        granted = self._grant()
        sends = self.leasing.dispatch(now)
        sends.append(self._acknowledge(message, peer))
        if granted and granted != [producer]:
            sends += self._announce(p for p in granted if p != producer)
        return sends

    def backward(self, message: Backward, frames: tuple[Any, ...], peer: Peer, now: float) -> list[Send]:
        """Queue the gradient of a stage output; its room was reserved with the input."""
        key = message.key
        if self._is_stale(key):
            return [self._refuse(message, peer, NackCode.STALE)]
        entry = self.entries.get(key)
        if key in self._settled or (entry is not None and entry.dy is not None):
            return [self._acknowledge(message, peer)]
        if entry is None or not entry.has_backward:
            return [self._refuse(message, peer, NackCode.STALE)]
        self.leasing.withdraw(entry)
        entry.dy = make_load(parcel=message.parcel, frames=frames)
        entry.state = EntryState.BACKWARD_QUEUED
        entry.arrived_at_s = now
        self.leasing.backlog.add(entry)
        self.custody.take(entry.version, entry.microbatch)
        sends = self.leasing.dispatch(now)
        sends.append(self._acknowledge(message, peer))
        return sends

    def _is_stale(self, key: Key) -> bool:
        return key[:2] < self.version or self.voids.covers(key)

    def _acknowledge(self, message: Forward | Backward, peer: Peer) -> Send:
        me, forth = self._me, type(message) is Forward
        ack = make_ack(
            run=me.run,
            generation=me.generation,
            session=me.session,
            branch=message.branch,
            step=message.step,
            purpose=message.purpose,
            microbatch=message.microbatch,
            attempt=message.attempt,
            direction=Direction.FORWARD if forth else Direction.BACKWARD,
            room=self._room(message.session) if forth else None,
        )
        return make_send(peer=peer, message=ack)

    def _refuse(self, message: Forward | Backward, peer: Peer, code: NackCode) -> Send:
        forth = isinstance(message, Forward)
        nack = Nack(
            **self._me.header(),
            **key_fields(message.key),
            direction=Direction.FORWARD if forth else Direction.BACKWARD,
            code=code,
            room=self._room(message.session) if forth else None,
        )
        return Send(peer=peer, message=nack)

    # -- workers -------------------------------------------------------------------------------------

    def ready(self, message: Ready, peer: Peer, now: float) -> list[Send]:
        """Note what a worker holds; repeat jobs that it should have got by now."""
        worker = self._hear(message.session, now)
        if worker is None or not self._advance(worker, (message.branch, message.step)):
            return []
        if message.leaves and not worker.leaves:
            worker.leaves = True
            self.leasing.backlog.forget_worker(worker.session)
        worker.offer(message.slots)
        again = self.leasing.repeat(worker, message.held, now)
        sends = self._announce(self._grant()) + again + self.leasing.dispatch(now) + self._drained(worker)
        if now - worker.answered_at_s >= limits.ANSWER_HEARTBEATS * self._me.heartbeat_s:
            worker.answered_at_s = now
            sends.append(make_send(peer=peer, message=HeartbeatAck(**self._me.header(), view=self._me.view)))
        return sends

    def _hear(self, session: Session, now: float) -> Worker | None:
        worker = self.workers.get(session)
        if worker is not None:
            worker.heard_at_s = now
        return worker

    def _drained(self, worker: Worker) -> list[Send]:
        """Let a worker go that leaves, as far as this broker is concerned, once it has nothing to do any more."""
        if not worker.leaves or worker.leases or worker.work is None:
            return []
        return [make_send(peer=worker.work, message=Drained(**self._me.header(), worker=worker.session))]

    def result(self, message: Result, now: float) -> list[Send]:
        """Settle a lease."""
        worker = self._hear(message.session, now)
        return self._settle(worker, message, now) + self._drained(worker) if worker is not None else []

    def _settle(self, worker: Worker, message: Result, now: float) -> list[Send]:
        worker.offer(message.slots)
        record = worker.leases.get(message.lease)
        if record is None:
            return self.leasing.dispatch(now)
        if message.status is JobStatus.DONE:
            worker.job_s = average(worker.job_s, message.compute_s)
        if record.is_needless:
            del worker.leases[message.lease]
            return self.leasing.dispatch(now)
        if message.status is JobStatus.DONE:
            self._response_s = average(self._response_s, now - record.entry.arrived_at_s)
            sends = self._done(record, kept=message.kept) + self.leasing.dispatch(now)
            if granted := self._grant():
                sends += self._announce(granted)
            return sends
        if message.status is JobStatus.WRONG_STEP:
            self._advance(worker, (message.branch, message.step))
        if message.status is JobStatus.FAILED:
            record.entry.failed_at |= {worker.node}
        if message.status is JobStatus.VOID:
            self._drop(record.entry)
        elif record.lease in worker.leases:
            self.leasing.requeue(record)
        return self._announce(self._grant()) + self.leasing.dispatch(now)

    def _done(self, record: LeaseRecord, *, kept: bool) -> list[Send]:
        entry, sends = record.entry, self.leasing.settle(record)
        if record.kind is JobKind.FORWARD:
            self._pass_on(entry, affine=record.worker if kept else None)
            return sends
        self._forget(entry)
        if entry.accumulate:
            self.retention.keep(entry, record.worker)
        else:
            self.credits.release(entry.credit_bytes)
        return sends

    def void(self, message: Void, now: float) -> list[Send]:
        """Drop the attempts that the coordinator has given up, and refuse them until their step is over."""
        self.voids.note(message)
        self.voids.drop_before(self.version)
        for entry in [e for e in self.entries.values() if self.voids.covers(e.key)]:
            self._drop(entry)
        self.retention.drop(lambda entry: self.voids.covers(entry.key))
        return self._announce(self._grant()) + self.leasing.dispatch(now)

    def _advance(self, worker: Worker, version: Version) -> bool:
        """Note a worker's parameters: everything older is committed, or void. False if it said so long ago."""
        if worker.version is not None and version < worker.version:
            return False
        worker.version = version
        self._go_on(version)
        return True

    def _go_on(self, version: Version) -> None:
        if version <= self.version:
            return
        before, self.version = self.version, version
        for entry in [e for e in self.entries.values() if e.version < version]:
            self._drop(entry)
        self.retention.drop(lambda entry: entry.version < version)
        self._settled = {key for key in self._settled if (key[0], key[1]) >= before}
        self.voids.drop_before(version)
        self.custody.drop_before(version)
        self.leasing.backlog.drop_before(version)

    def _forget(self, entry: Entry) -> None:
        """Hold it as settled: nobody has it to do any more."""
        del self.entries[entry.key]
        self._settled.add(entry.key)

    def _pass_on(self, entry: Entry, *, affine: Session | None) -> None:
        """A forward is done, or is not to be done again: what comes next is the gradient, if this stage gets one."""
        if entry.has_backward:
            entry.state, entry.affine = EntryState.WAITING, affine
            return
        self._forget(entry)
        self.credits.release(entry.credit_bytes)

    def _drop(self, entry: Entry) -> None:
        self.leasing.withdraw(entry)
        self._forget(entry)
        self.credits.release(entry.credit_bytes)

    def _grant(self) -> list[Session]:
        """Promise what is free, at the cost of what is kept; returns the producers whose grant has changed."""
        granted = self.credits.grant()
        self.retention.make_room()
        return granted
