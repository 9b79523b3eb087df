"""The broker's queue among producers and workers that keep the protocol, on a network that keeps nothing.

Mail to and from the broker may be delivered in any order, any number of times, or never. Workers come
and go, fail, forget inputs, leave jobs to others, and take the next step whenever they like; with a worker goes
what it has counted. Attempts are voided and made anew for the stages that lack them. No two live workers may ever
have counted the same microbatch. At the end the network turns fair, and then everything must come to its end.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from brokers.entries import EntryState
from tests.brokers.queue_world import PRODUCERS, Computer, QueueWorld
from tests.letters import SIZE_BYTES, attach, backward
from zswarm.ids import Purpose
from zswarm.limits import CREDIT_UNITS, PREFETCH
from zswarm.simulation.node_checks import check_queue

FAIR_ROUNDS = 60
NATURE = st.integers(0, 2**32).map(Random)


class QueueStates(QueueWorld):
    @initialize(stage=st.sampled_from([1, 2]), capacity_units=st.sampled_from([0, 14, 1000]))
    def begin(self, stage, capacity_units):
        self.open(stage, capacity_units)
        self.join()

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

    @rule(nature=NATURE)
    @precondition(lambda self: not self.again)
    def lose_track(self, nature):
        """The coordinator voids microbatches of this step: every worker drops them, then the broker does."""
        known = sorted({key[3] for key in self.accepted if key[1] == self.committed and key[2] is Purpose.TRAIN})
        chosen = tuple(microbatch for microbatch in known if nature.random() < 0.3)
        if nature.random() > 0.6:
            self.void(chosen)

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def books_balance(self):
        queue = self.queue
        check_queue("broker", queue, self.bound_bytes, most=PREFETCH)
        states = [entry.state for entry in queue.entries.values()]
        queued = [s for s in states if s in (EntryState.FORWARD_QUEUED, EntryState.BACKWARD_QUEUED)]
        assert queue.leasing.backlog.num_entries == len(queued)
        assert queue.leasing.depth == len([s for s in states if s is not EntryState.WAITING])

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
                assert self.queue.leasing.backlog.choose(worker) is None

    # -- the end --------------------------------------------------------------------------------------

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
TestQueueStates.settings = settings(derandomize=True, max_examples=120, stateful_step_count=50)
