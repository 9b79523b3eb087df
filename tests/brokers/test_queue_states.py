"""The broker's queue among producers and workers that keep the protocol, on a network that keeps nothing.

Mail to and from the broker may be delivered in any order, any number of times, or never. Workers come
and go, forget inputs, and take the next step whenever they like. At the end the network turns fair, and
then everything must come to its end.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from brokers.entries import EntryState
from brokers.queue import Queue
from tests.brokers.test_queue import membership
from tests.letters import SIZE_BYTES, attach, backward, forward, ready, result, worker_at
from zswarm.ids import JobKind, JobStatus, Link, NackCode, Purpose
from zswarm.limits import CREDIT_UNITS, PREFETCH
from zswarm.machine import Send
from zswarm.messages import Ack, Attach, Backward, Credit, Forward, Job, Key, Message, Nack, Ready, Result
from zswarm.simulation.node_checks import check_queue

PRODUCERS = (11, 12)
PEER = Link(b"peer")
FAIR_ROUNDS = 40
NATURE = st.integers(0, 2**32).map(Random)


class Payload:
    """What frames hold here: it can be asked whether anybody still has it."""


@dataclass
class Producer:
    granted_bytes: int = 0
    sent_bytes: int = 0
    unacknowledged: dict[Key, tuple[Forward, tuple[Any, ...]]] = field(default_factory=dict)


@dataclass
class Computer:
    """A worker as the broker's peer: what it holds, and what it has answered in this step."""

    step: int = 0
    slots: int = PREFETCH
    held: dict[int, Job] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)


class QueueStates(RuleBasedStateMachine):
    @initialize(stage=st.sampled_from([1, 2]), capacity_units=st.sampled_from([0, 9, 1000]))
    def begin(self, stage, capacity_units):
        self.queue = Queue(membership(stage), capacity_bytes=capacity_units * SIZE_BYTES)
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
        self.settled: set[Key] = set()
        self.computed: dict[Key, None] = {}
        """Forwards that some worker has done: the next stage may send their gradient at any time."""
        self.payloads: list[weakref.ref[Payload]] = []
        self.join()

    # -- the others ------------------------------------------------------------------------------

    def payload(self) -> tuple[Payload]:
        payload = Payload()
        self.payloads.append(weakref.ref(payload))
        return (payload,)

    def tell(self, message: Message, frames: tuple[Any, ...] = ()) -> None:
        self.inbound.append((message, frames))

    def set_members(self) -> None:
        members = [worker_at(p, self.stage - 1) for p in PRODUCERS] + [worker_at(w, self.stage) for w in self.workers]
        self.outbound += self.queue.set_members(tuple(members), self.now_s)

    def deliver(self, message: Message, frames: tuple[Any, ...]) -> None:
        queue, now_s = self.queue, self.now_s
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
                self.outbound += queue.ready(message, now_s)
            case Result():
                self.outbound += queue.result(message, now_s)

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
                self.computed.pop(message.key, None)
                for producer in self.producers.values():
                    producer.unacknowledged.pop(message.key, None)
            case Job() as message:
                self.get_job(int(send.peer), message)

    def learn(self, session: int, granted_bytes: int) -> None:
        producer = self.producers[session]
        producer.granted_bytes = max(producer.granted_bytes, granted_bytes)

    def get_job(self, session: int, job: Job) -> None:
        worker = self.workers.get(session)
        if worker is None:
            return
        if job.step < worker.step:
            self.tell(result(session, job.lease, JobStatus.WRONG_STEP, step=worker.step))
        elif job.lease in worker.results:
            self.tell(worker.results[job.lease])
        else:
            worker.held.setdefault(job.lease, job)

    def finish(self, session: int, lease: int, *, kept: bool) -> None:
        worker = self.workers[session]
        job = worker.held.pop(lease)
        forgotten = job.kind is JobKind.BACKWARD and job.x is None and not kept
        if job.kind is JobKind.FORWARD and job.purpose is Purpose.TRAIN:
            self.computed[job.key] = None
        status = JobStatus.NEEDS_INPUT if forgotten else JobStatus.DONE
        kept = kept and job.kind is JobKind.FORWARD
        answer = result(session, lease, status, step=job.step, kept=kept, slots=worker.slots)
        worker.results[lease] = answer
        self.tell(answer)

    def say_ready(self, session: int) -> None:
        worker = self.workers[session]
        self.tell(ready(session, step=worker.step, slots=worker.slots, held=tuple(worker.held)))

    def advance(self, session: int, step: int) -> None:
        worker = self.workers[session]
        worker.step = step
        worker.held = {lease: job for lease, job in worker.held.items() if job.step >= step}
        worker.results = {}
        self.computed = {key: None for key in self.computed if key[1] >= step}
        self.say_ready(session)

    def oldest_unaccepted(self) -> int:
        """Return the first step of which a Forward may not have come: it cannot be committed yet."""
        sent = [key for producer in self.producers.values() for key in producer.unacknowledged]
        return min((key[1] for key in sent if key not in self.accepted), default=self.newest_step + 1)

    # -- rules -----------------------------------------------------------------------------------

    @rule(nature=NATURE, loss=st.sampled_from([0.0, 0.0, 0.3]))
    def turn(self, nature, loss):
        """Everybody does some of what they can, and some of the mail arrives."""
        self.now_s += 0.7
        self.speak(nature)
        self.exchange(nature, loss)
        self.work(nature)
        self.exchange(nature, loss)

    def speak(self, nature: Random) -> None:
        for session, producer in self.producers.items():
            if nature.random() < 0.3:
                self.tell(attach(session))
            if nature.random() < 0.2:
                self.resend(session)
            while producer.granted_bytes - producer.sent_bytes >= SIZE_BYTES and nature.random() < 0.6:
                self.send_forward(session, nature)
        for _, step, _, microbatch, _ in self.computed:
            if nature.random() < 0.4:
                self.tell(backward(99, microbatch, step=step), self.payload())

    def send_forward(self, session: int, nature: Random) -> None:
        producer = self.producers[session]
        step = self.committed + (nature.random() < 0.2)
        self.newest_step = max(self.newest_step, step)
        purpose = nature.choice([Purpose.TRAIN, Purpose.TRAIN, Purpose.EVALUATE])
        message = forward(session, self.num_forwards, step=step, purpose=purpose)
        self.num_forwards += 1
        producer.sent_bytes += SIZE_BYTES
        producer.unacknowledged[message.key] = (message, self.payload())
        self.tell(*producer.unacknowledged[message.key])

    def resend(self, session: int) -> None:
        for message, frames in self.producers[session].unacknowledged.values():
            self.tell(message, frames)

    def work(self, nature: Random) -> None:
        for session, worker in self.workers.items():
            for lease, job in list(worker.held.items()):
                if job.step == worker.step and nature.random() < 0.6:
                    self.finish(session, lease, kept=nature.random() < 0.7)
            if nature.random() < 0.3:
                worker.slots = nature.randint(0, PREFETCH)
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

    @rule(data=st.data(), early=st.sampled_from([False, False, False, False, True]))
    def take_the_next_step(self, data, early):
        """Usually when the step's microbatches are done; `early` stands for results that are still on their way."""
        if not early and any(entry.version[1] <= self.committed for entry in self.queue.entries.values()):
            return
        session = data.draw(st.sampled_from(list(self.workers)))
        everybody_has_the_last = all(worker.step == self.committed for worker in self.workers.values())
        if everybody_has_the_last and self.committed < self.oldest_unaccepted():
            self.committed += 1
        if self.workers[session].step < self.committed:
            self.advance(session, self.committed)

    @rule()
    @precondition(lambda self: len(self.workers) < 3)
    def join(self):
        self.newest_worker += 1
        self.workers[self.newest_worker] = Computer(step=self.committed)
        self.set_members()
        self.tell(attach(self.newest_worker))
        self.say_ready(self.newest_worker)

    @rule(data=st.data())
    @precondition(lambda self: len(self.workers) > 1)
    def leave(self, data):
        del self.workers[data.draw(st.sampled_from(list(self.workers)))]
        self.set_members()

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def books_balance(self):
        queue = self.queue
        check_queue("broker", queue, self.bound_bytes)
        states = [entry.state for entry in queue.entries.values()]
        queued = [s for s in states if s in (EntryState.FORWARD_QUEUED, EntryState.BACKWARD_QUEUED)]
        assert queue.num_queued == len(queued)
        assert queue.depth == len([s for s in states if s is not EntryState.WAITING])

    @invariant()
    def what_was_accepted_is_held_or_settled(self):
        for key in self.accepted:
            assert key in self.queue.entries or key in self.queue._settled or key[:2] < self.queue._version

    @invariant()
    def settled_keys_are_forgotten_with_their_step(self):
        assert all(key[:2] >= self.queue._version for key in self.queue._settled)

    @invariant()
    def what_is_settled_does_not_come_back(self):
        self.settled |= self.queue._settled
        assert not self.settled & set(self.queue.entries)

    @invariant()
    def no_idle_hands(self):
        """No worker with a free slot waits for nothing while an orphan of its step is queued."""
        for worker in self.queue.workers.values():
            if worker.free_slots > 0:
                assert self.queue._backlog.choose(worker) is None

    def deliver_all(self) -> None:
        inbound, self.inbound = self.inbound, []
        for letter in inbound:
            self.deliver(*letter)
        outbound, self.outbound = self.outbound, []
        for send in outbound:
            self.receive(send)

    def teardown(self):
        if not hasattr(self, "queue"):
            return
        for session, worker in self.workers.items():
            worker.slots = PREFETCH
            self.advance(session, self.committed)
        for _ in range(FAIR_ROUNDS):
            self.fair_round()
            if not self.queue.entries and not self.inbound and not self.outbound:
                break
        assert not self.queue.entries
        assert self.queue.credits.reserved_bytes == 0
        for session, producer in self.producers.items():
            account = self.queue.credits.account(session)
            assert (account.granted_bytes, account.received_bytes) == (producer.granted_bytes, producer.sent_bytes)
            assert account.credit_bytes == CREDIT_UNITS * SIZE_BYTES
            assert not producer.unacknowledged
        self.inbound, self.outbound = [], []
        for worker in self.workers.values():
            worker.held = {}
        assert not any(ref() for ref in self.payloads), "the broker keeps a payload that nobody needs"

    def fair_round(self) -> None:
        self.now_s += 3.0
        self.committed = max(self.committed, min(self.newest_step, self.oldest_unaccepted()))
        for session in PRODUCERS:
            self.resend(session)
            self.tell(attach(session))
        for _, step, _, microbatch, _ in list(self.computed):
            self.tell(backward(99, microbatch, step=step), self.payload())
        for session, worker in list(self.workers.items()):
            self.tell(attach(session))
            if worker.step < self.committed:
                self.advance(session, self.committed)
            for lease, job in list(worker.held.items()):
                if job.step == worker.step:
                    self.finish(session, lease, kept=True)
            self.say_ready(session)
        self.deliver_all()
        self.deliver_all()


TestQueueStates = QueueStates.TestCase
TestQueueStates.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=50)
