"""What a broker's queue has around it: producers, workers and a coordinator that keep the protocol, and their mail."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from brokers.queue import Queue
from tests.brokers.test_queue import BROKER, membership
from tests.letters import SIZE_BYTES, attach, backward, forward, ready, result, void, worker_at
from zswarm.ids import Direction, JobKind, JobStatus, Link, NackCode, Purpose
from zswarm.limits import CREDIT_UNITS, PREFETCH
from zswarm.machine import Send
from zswarm.messages import Ack, Attach, Backward, Credit, Forward, Job, Key, Message, Nack, Ready, Result, Revoke, Void

PRODUCERS = (11, 12)
PEER = Link(b"peer")
FAILURE = 0.03


class Payload:
    """What frames hold here: it can be asked whether anybody still has it."""


@dataclass
class Producer:
    granted_bytes: int = 0
    sent_bytes: int = 0
    unacknowledged: dict[Key, tuple[Forward, tuple[Any, ...]]] = field(default_factory=dict)


@dataclass
class Computer:
    """A worker as the broker's peer: what it holds, and what it has counted and answered in this step."""

    step: int = 0
    slots: int = PREFETCH
    held: dict[int, Job] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    ledger: set[int] = field(default_factory=set)
    has_failed: bool = False
    """Its session is void, though the view still has it."""


@dataclass
class Wave:
    """Microbatches of a step whose earlier attempts are void."""

    step: int
    microbatches: tuple[int, ...]
    attempt: int

    def covers(self, key: Key) -> bool:
        _, step, purpose, microbatch, attempt = key
        is_named = step == self.step and microbatch in self.microbatches
        return is_named and purpose is Purpose.TRAIN and attempt < self.attempt


class QueueWorld(RuleBasedStateMachine):
    """The others, by what they do; which of it happens when is `test_queue_states`."""

    def open(self, stage: int, capacity_units: int) -> None:
        """Begin with a queue and no workers."""
        self.queue = Queue(membership(stage), capacity_bytes=capacity_units * SIZE_BYTES)
        self.version_before = self.queue.version
        self.stage = stage
        least_bytes = 2 * SIZE_BYTES * CREDIT_UNITS * len(PRODUCERS)
        self.bound_bytes = max(capacity_units * SIZE_BYTES, least_bytes)
        self.now_s = 0.0
        self.producers = {session: Producer() for session in PRODUCERS}
        self.workers: dict[int, Computer] = {}
        self.newest_worker = 20
        self.inbound: list[tuple[Message, tuple[Any, ...]]] = []
        self.outbound: list[Send] = []
        self.num_forwards = 0
        self.committed = 0
        """The steps before this one are committed: no worker is more than one step behind."""
        self.newest_step = 0
        self.accepted: set[Key] = set()
        self.waves: list[Wave] = []
        self.again: list[tuple[int, int, int]] = []
        """Step, microbatch and attempt of what is to be admitted again."""
        self.to_count: set[Key] = set()
        self.ended: set[Key] = set()
        """Whose last job some worker has done."""
        self.given_up: set[Key] = set()
        self.make_room, self.queue.retention.make_room = self.queue.retention.make_room, self.watch_room
        self.sent_on: set[Key] = set()
        """Forwards whose output some worker has sent to a broker of the next stage, also one that has left since."""
        self.computed: dict[Key, None] = {}
        """Forwards that some worker has done: the next stage may send their gradient at any time."""
        self.payloads: list[weakref.ref[Payload]] = []

    # -- the others ------------------------------------------------------------------------------

    def payload(self) -> tuple[Payload]:
        payload = Payload()
        self.payloads.append(weakref.ref(payload))
        return (payload,)

    def tell(self, message: Message, frames: tuple[Any, ...] = ()) -> None:
        self.inbound.append((message, frames))

    def set_members(self) -> None:
        members = [worker_at(p, self.stage - 1) for p in PRODUCERS] + [worker_at(w, self.stage) for w in self.workers]
        self.outbound += self.queue.set_members(tuple(members), self.queue.version, self.now_s)

    def deliver(self, message: Message, frames: tuple[Any, ...]) -> None:
        queue, now_s, version = self.queue, self.now_s, self.queue.version
        match message:
            case Attach():
                self.outbound += queue.attach(message, Link(b"%d" % message.session), now_s)
            case Forward():
                self.outbound += queue.forward(message, frames, PEER, now_s)
                if message.key in queue.entries or message.key in queue._settled:
                    self.accepted.add(message.key)
            case Backward():
                self.outbound += queue.backward(message, frames, PEER, now_s)
            case Ready():
                self.outbound += queue.ready(message, Link(b"%d" % message.session), now_s)
            case Result():
                self.outbound += queue.result(message, now_s)
            case Void():
                self.outbound += queue.void(message, now_s)
        if queue.version != version:
            self.version_before = version

    def receive(self, send: Send) -> None:
        """Somebody gets what the broker sent; nobody else's mail is looked at."""
        match send.message:
            case Credit() as message:
                self.learn(int(send.peer), message.room.granted_bytes)
            case Ack() as message if message.room is not None:
                for session, producer in self.producers.items():
                    if producer.unacknowledged.pop(message.key, None) is not None:
                        self.learn(session, message.room.granted_bytes)
            case Ack() as message:
                self.computed.pop(message.key, None)
            case Nack() as message:
                assert message.code is NackCode.STALE, "who sends within the credit is never refused"
                if message.direction is Direction.BACKWARD:
                    self.computed.pop(message.key, None)
                    return
                for producer in self.producers.values():
                    if producer.unacknowledged.pop(message.key, None) is not None:
                        producer.sent_bytes -= SIZE_BYTES
            case Job() as message:
                self.get_job(int(send.peer), message)
            case Revoke() as message:
                self.leave_to_others(message)

    def learn(self, session: int, granted_bytes: int) -> None:
        producer = self.producers[session]
        producer.granted_bytes = max(producer.granted_bytes, granted_bytes)

    def is_void(self, key: Key) -> bool:
        return any(wave.covers(key) for wave in self.waves)

    def get_job(self, session: int, job: Job) -> None:
        assert session == job.worker
        mask = job.mask[0] if job.purpose is Purpose.TRAIN else 0
        assert job.accumulate == bool(mask >> self.stage & 1)
        assert job.emit == bool(mask & ((1 << self.stage) - 1)) or (job.key in self.ended and not job.emit)
        worker = self.workers.get(session)
        if worker is None or worker.has_failed or job.lease in worker.held:
            return
        if job.lease in worker.results:
            self.tell(worker.results[job.lease])
        elif self.is_void(job.key):
            self.answer(session, job, JobStatus.VOID)
        elif job.step < worker.step:
            self.answer(session, job, JobStatus.WRONG_STEP)
        else:
            worker.held[job.lease] = job

    def leave_to_others(self, message: Revoke) -> None:
        worker = self.workers.get(message.worker)
        job = worker.held.pop(message.lease, None) if worker is not None else None
        if job is not None:
            self.answer(message.worker, job, JobStatus.REVOKED)

    def answer(self, session: int, job: Job, status: JobStatus, *, kept: bool = False) -> None:
        worker = self.workers[session]
        step = worker.step if status is JobStatus.WRONG_STEP else job.step
        answer = result(session, job.lease, status, step=step, kept=kept, slots=worker.slots)
        worker.results[job.lease] = answer
        self.tell(answer)

    def finish(self, session: int, lease: int, *, kept: bool) -> None:
        worker = self.workers[session]
        job = worker.held.pop(lease)
        if job.kind is JobKind.BACKWARD and job.x is None and not kept:
            self.answer(session, job, JobStatus.NEEDS_INPUT)
            return
        if job.kind is JobKind.FORWARD and job.purpose is Purpose.TRAIN:
            assert job.key not in self.sent_on, "one attempt has two homes at the next stage"
            self.sent_on.add(job.key)
            if self.is_wanted_below(job):
                self.computed[job.key] = None
        if job.kind in (JobKind.BACKWARD, JobKind.FUSED) and job.accumulate:
            worker.ledger.add(job.microbatch)
            self.ended.add(job.key)
        self.answer(session, job, JobStatus.DONE, kept=kept and job.kind is JobKind.FORWARD)

    def is_wanted_below(self, job: Job) -> bool:
        """Does the stage after this one have a gradient to send?"""
        return bool(job.mask[0] & ((2 << self.stage) - 1))

    def fail(self, session: int, lease: int) -> None:
        """A layer raises: all that the session has counted is void, and the view will soon say so."""
        worker = self.workers[session]
        job = worker.held.pop(lease)
        worker.has_failed, worker.slots = True, 0
        worker.held, worker.ledger = {}, set()
        self.answer(session, job, JobStatus.FAILED)

    def say_ready(self, session: int) -> None:
        worker = self.workers[session]
        self.tell(ready(session, step=worker.step, slots=worker.slots, held=tuple(worker.held)))

    def advance(self, session: int, step: int) -> None:
        worker = self.workers[session]
        worker.step = step
        worker.held = {lease: job for lease, job in worker.held.items() if job.step >= step}
        worker.results = {lease: answer for lease, answer in worker.results.items() if answer.step >= step}
        worker.ledger = set()
        self.computed = {key: None for key in self.computed if key[1] >= step}
        self.say_ready(session)

    def oldest_open(self) -> int:
        """Return the first step that cannot be committed yet: a Forward of it may not have come, or one of the step
        before it, of which the broker remembers what it took for only so long, is not acknowledged."""
        sent = [key for producer in self.producers.values() for key in producer.unacknowledged]
        open_ = [key[1] for key in sent if key not in self.accepted and not self.is_void(key)]
        return min([*open_, *(key[1] + 1 for key in sent)], default=self.newest_step + 1)

    def watch_room(self) -> None:
        """What is kept is given up the oldest first, and no more of it than credit needs."""
        retention, credits = self.queue.retention, self.queue.credits
        before = list(retention._entries)
        self.make_room()
        after = list(retention._entries)
        given_up = before[: len(before) - len(after)]
        assert after == before[len(given_up) :]
        assert not given_up or credits.free_bytes - credits.kept_bytes < 2 * SIZE_BYTES
        self.given_up.update(given_up)

    def speak(self, nature: Random) -> None:
        for session, producer in self.producers.items():
            if nature.random() < 0.3:
                self.tell(attach(session))
            if nature.random() < 0.2:
                self.resend(session)
            while producer.granted_bytes - producer.sent_bytes >= SIZE_BYTES and nature.random() < 0.6:
                self.send_forward(session, nature)
        if self.waves and self.queue.voids.newest < self.waves[-1].attempt:
            self.tell_void()
        for session in [s for s, worker in self.workers.items() if worker.has_failed and nature.random() < 0.5]:
            self.bury(session)
        for _, step, _, microbatch, attempt in self.computed:
            if nature.random() < 0.4:
                self.tell(backward(99, microbatch, step=step, attempt=attempt), self.payload())

    def send_forward(self, session: int, nature: Random) -> None:
        again = self.take_again()
        if again is not None:
            step, microbatch, attempt = again
            lacks = not any(microbatch in w.ledger for w in self.workers.values() if w.step == step)
            message = self.make_forward(session, microbatch, nature, step=step, attempt=attempt)
            message = replace(message, mask=bytes([message.mask[0] & ~(1 << self.stage) | lacks << self.stage]))
        else:
            step = self.committed + (nature.random() < 0.2)
            purpose = nature.choice([Purpose.TRAIN, Purpose.TRAIN, Purpose.EVALUATE])
            message = self.make_forward(session, self.num_forwards, nature, step=step, purpose=purpose)
            self.num_forwards += 1
        self.newest_step = max(self.newest_step, step)
        producer = self.producers[session]
        producer.sent_bytes += SIZE_BYTES
        producer.unacknowledged[message.key] = (message, self.payload())
        if message.purpose is Purpose.TRAIN and message.mask[0] >> self.stage & 1:
            self.to_count.add(message.key)
        self.tell(*producer.unacknowledged[message.key])

    def make_forward(self, session: int, microbatch: int, nature: Random, **of: Any) -> Forward:
        mask = nature.choice([0b111, 0b111, 1 << self.stage, 1 << (self.stage - 1), 0b100])
        return forward(session, microbatch, route=(BROKER,), mask=bytes([mask]), **of)

    def take_again(self) -> tuple[int, int, int] | None:
        """Return what is to be admitted again, once the broker has voided the attempts before."""
        self.again = [again for again in self.again if again[0] == self.committed]
        if not self.again or self.queue.voids.newest < self.waves[-1].attempt:
            return None
        return self.again.pop()

    def tell_void(self) -> None:
        wave = self.waves[-1]
        self.tell(void(wave.attempt, sum(1 << m for m in wave.microbatches), step=wave.step))

    def resend(self, session: int) -> None:
        for message, frames in self.producers[session].unacknowledged.values():
            self.tell(message, frames)

    def work(self, nature: Random) -> None:
        for session, worker in self.workers.items():
            for lease, job in list(worker.held.items()):
                if job.step != worker.step or lease not in worker.held:
                    continue
                if nature.random() < FAILURE:
                    self.fail(session, lease)
                elif nature.random() < 0.6:
                    self.finish(session, lease, kept=nature.random() < 0.7)
            if nature.random() < 0.3:
                worker.slots = nature.choice([0, 1, PREFETCH, PREFETCH]) if not worker.has_failed else 0
                self.say_ready(session)

    def exchange(self, nature: Random, loss: float) -> None:
        """Deliver in any order; some mail twice, some later, some never."""
        for mail, take in ((self.inbound, lambda letter: self.deliver(*letter)), (self.outbound, self.receive)):
            letters, mail[:] = list(mail), []
            nature.shuffle(letters)
            for letter in letters:
                if nature.random() < loss:
                    continue
                if nature.random() < 0.2:
                    mail.append(letter)
                    if nature.random() < 0.5:
                        continue
                take(letter)

    def bury(self, session: int) -> None:
        del self.workers[session]
        if self.workers:
            self.set_members()
        else:
            self.join()

    def void(self, chosen: tuple[int, ...]) -> None:
        if not chosen or (self.waves and self.queue.voids.newest < self.waves[-1].attempt):
            return
        self.waves.append(Wave(self.committed, chosen, len(self.waves) + 1))
        for worker in self.workers.values():
            worker.held = {lease: job for lease, job in worker.held.items() if not self.is_void(job.key)}
        self.computed = {key: None for key in self.computed if not self.is_void(key)}
        self.again += [(self.committed, microbatch, len(self.waves)) for microbatch in chosen]
        self.tell_void()

    def deliver_all(self) -> None:
        inbound, self.inbound = self.inbound, []
        for letter in inbound:
            self.deliver(*letter)
        outbound, self.outbound = self.outbound, []
        for send in outbound:
            self.receive(send)
