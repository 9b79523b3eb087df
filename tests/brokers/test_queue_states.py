"""The broker's queue among producers and workers that keep the protocol, on a network that keeps nothing.

Mail to and from the broker may be delivered in any order, any number of times, or never. Workers come
and go, fail, forget inputs, leave jobs to others, and take the next step whenever they like; with a worker goes
what it has counted. Attempts are voided and made anew for the stages that lack them. No two live workers may ever
have counted the same microbatch. At the end the network turns fair, and then everything must come to its end.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from brokers.entries import EntryState
from brokers.queue import Queue
from tests.brokers.test_queue import BROKER, membership
from tests.letters import SIZE_BYTES, attach, backward, forward, ready, result, void, worker_at
from zswarm.ids import Direction, JobKind, JobStatus, Link, NackCode, Purpose
from zswarm.limits import CREDIT_UNITS, PREFETCH
from zswarm.machine import Send
from zswarm.messages import Ack, Attach, Backward, Credit, Forward, Job, Key, Message, Nack, Ready, Result, Revoke, Void
from zswarm.simulation.node_checks import check_queue

PRODUCERS = (11, 12)
PEER = Link(b"peer")
FAIR_ROUNDS = 60
FAILURE = 0.03
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


class QueueStates(RuleBasedStateMachine):
    @initialize(stage=st.sampled_from([1, 2]), capacity_units=st.sampled_from([0, 14, 1000]))
    def begin(self, stage, capacity_units):
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
                self.outbound += queue.ready(message, now_s)
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

    # -- rules -----------------------------------------------------------------------------------

    @rule(nature=NATURE, loss=st.sampled_from([0.0, 0.0, 0.3]))
    def turn(self, nature, loss):
        """Everybody does some of what they can, and some of the mail arrives."""
        for _ in range(nature.randint(1, 4)):
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

    @rule(data=st.data(), early=st.sampled_from([False, False, False, False, True]))
    def take_the_next_step(self, data, early):
        """Usually when the step's microbatches are done; `early` stands for results that are still on their way."""
        if not early and any(entry.version[1] <= self.committed for entry in self.queue.entries.values()):
            return
        session = data.draw(st.sampled_from(list(self.workers)))
        everybody_has_the_last = all(worker.step == self.committed for worker in self.workers.values())
        if everybody_has_the_last and self.committed < self.oldest_open():
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

    @rule(nature=NATURE)
    @precondition(lambda self: len(self.workers) > 1)
    def leave(self, nature):
        """What it has done last nobody hears of, but for the stages next to it."""
        session = nature.choice(sorted(self.workers))
        worker = self.workers[session]
        for lease, job in list(worker.held.items()):
            if job.step == worker.step and nature.random() < 0.5:
                self.finish(session, lease, kept=True)
        self.bury(session)

    def bury(self, session: int) -> None:
        del self.workers[session]
        if self.workers:
            self.set_members()
        else:
            self.join()

    @rule(nature=NATURE)
    @precondition(lambda self: not self.again)
    def lose_track(self, nature):
        """The coordinator voids microbatches of this step: every worker drops them, then the broker does."""
        known = sorted({key[3] for key in self.accepted if key[1] == self.committed and key[2] is Purpose.TRAIN})
        chosen = tuple(microbatch for microbatch in known if nature.random() < 0.3)
        if nature.random() > 0.6:
            self.void(chosen)

    def void(self, chosen: tuple[int, ...]) -> None:
        if not chosen or (self.waves and self.queue.voids.newest < self.waves[-1].attempt):
            return
        self.waves.append(Wave(self.committed, chosen, len(self.waves) + 1))
        for worker in self.workers.values():
            worker.held = {lease: job for lease, job in worker.held.items() if not self.is_void(job.key)}
        self.computed = {key: None for key in self.computed if not self.is_void(key)}
        self.again += [(self.committed, microbatch, len(self.waves)) for microbatch in chosen]
        self.tell_void()

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
    def nothing_is_counted_twice(self):
        """By two sessions that are both live, of one step."""
        counted = [(w.step, microbatch) for w in self.workers.values() for microbatch in w.ledger]
        assert len(counted) == len(set(counted))

    @invariant()
    def what_was_accepted_is_held_or_settled(self):
        for key in self.accepted:
            assert key in self.queue.entries or key in self.queue._settled or key[:2] < self.queue.version

    @invariant()
    def what_is_to_be_counted_is_to_do_or_counted_by_somebody_live(self):
        """Unless what was kept of it had to make way for credit."""
        queue = self.queue
        kept = queue.retention._entries
        assert all(entry.done_by in queue.workers for entry in kept.values())
        for key in self.to_count & self.accepted - self.given_up:
            is_over = queue._is_stale(key) or self.is_void(key)
            assert is_over or key in queue.entries or key in kept, (
                "workers may know that it is void before the broker does"
            )

    @invariant()
    def settled_keys_are_forgotten_when_the_next_step_is_over(self):
        """Or earlier, where the broker has not heard of every step."""
        assert all(key[:2] >= self.version_before for key in self.queue._settled)

    @invariant()
    def what_is_settled_comes_back_to_be_counted_only(self):
        for key in self.queue._settled & set(self.queue.entries):
            entry = self.queue.entries[key]
            assert (entry.accumulate, entry.emit, entry.done_by) == (True, False, None)

    @invariant()
    def what_is_void_is_not_here(self):
        if self.waves and self.queue.voids.newest == self.waves[-1].attempt:
            assert not any(self.is_void(key) for key in (*self.queue.entries, *self.queue.retention._entries))

    @invariant()
    def no_idle_hands(self):
        """No worker with a free slot waits for nothing while an orphan of its step is queued."""
        for worker in self.queue.workers.values():
            if worker.free_slots > 0:
                assert self.queue._leasing.backlog.choose(worker) is None

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
        for session in [session for session, worker in self.workers.items() if worker.has_failed]:
            self.bury(session)
        for session, worker in self.workers.items():
            worker.slots = PREFETCH
            self.advance(session, self.committed)
        for _ in range(FAIR_ROUNDS):
            self.fair_round()
            if not self.queue.entries and not self.inbound and not self.outbound:
                break
        assert not self.queue.entries
        assert self.queue.credits.reserved_bytes == 0
        self.end_the_step()
        assert (len(self.queue.retention), self.queue.credits.kept_bytes) == (0, 0)
        for session, producer in self.producers.items():
            account = self.queue.credits.account(session)
            assert (account.granted_bytes, account.received_bytes) == (producer.granted_bytes, producer.sent_bytes)
            assert account.credit_bytes == CREDIT_UNITS * SIZE_BYTES
            assert not producer.unacknowledged
        self.inbound, self.outbound = [], []
        for worker in self.workers.values():
            worker.held = {}
        assert not any(ref() for ref in self.payloads), "the broker keeps a payload that nobody needs"

    def end_the_step(self) -> None:
        for session in self.workers:
            self.advance(session, self.newest_step + 1)
        self.deliver_all()

    def unseen(self) -> set[int]:
        """Return what waits for a gradient that nobody has to send: whoever ran the forward left before it was done."""
        waiting = [key for key, entry in self.queue.entries.items() if entry.state is EntryState.WAITING]
        return {key[3] for key in waiting if key[1] == self.committed and key not in self.computed}

    def fair_round(self) -> None:
        self.now_s += 3.0
        self.committed = max(self.committed, min(self.newest_step, self.oldest_open()))
        if self.waves and self.queue.voids.newest < self.waves[-1].attempt:
            self.tell_void()
        self.void(tuple(sorted(self.unseen())))
        for session in PRODUCERS:
            self.resend(session)
            self.tell(attach(session))
        for _, step, _, microbatch, attempt in list(self.computed):
            self.tell(backward(99, microbatch, step=step, attempt=attempt), self.payload())
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
TestQueueStates.settings = settings(derandomize=True, deadline=None, max_examples=120, stateful_step_count=50)
