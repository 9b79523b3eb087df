from __future__ import annotations

import math

import pytest

from stages.participant import Participant, StepState
from stages.tasks import Apply, Assemble, Assembled, Discard, Snapshot, Snapshotted, Sum, Summed
from tests.letters import abort, chunk, chunk_ack, commit, load, of_type, prepare, view, welcome, worker_at
from zswarm import ledger
from zswarm.ids import Address, Link, NodeId, ReducePhase, Role
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Chunk, ChunkAck, Prepared
from zswarm.wire import decode_untrusted, encode

ME, PEER = 11, 12
BOTH = (ME, PEER)
DIGEST = 77
SCATTER, GATHER = ReducePhase.SCATTER, ReducePhase.GATHER
REPORT = "a heartbeat"
MEMBERS = (worker_at(ME, 1), worker_at(PEER, 1), worker_at(99, 0))


class Fixture:
    """Participant 11 of a stage with 11 and 12."""

    def __init__(self, members=MEMBERS) -> None:
        self.me = me = Membership(
            node=NodeId("w"),
            boot_nonce=1,
            role=Role.WORKER,
            addresses=(Address("sim://worker-11"),),
            coordinator=Address("sim://trainer"),
        )
        me.welcome(welcome(ME, stage=1))
        me.see(view(1), members)
        self.state = StepState()
        self.part = Participant(me, self.state, lambda: [REPORT])

    def prepare(self, round_=1, participants=BOTH, **of):
        return self.part.prepare(prepare(round_, participants, **of), 0.0)

    def snapshotted(self, round_=1, num_shards=2):
        shards = tuple((load((ME, shard)),) for shard in range(num_shards))
        return self.part.outcome(Snapshotted(round=round_, shards=shards), 0.0)

    def summed(self, round_=1):
        return self.part.outcome(Summed(round=round_, shard=0, chunks=(load("sum 0"),)), 0.0)

    def assembled(self, round_=1, digest=DIGEST):
        outcome = Assembled(round=round_, digest=digest, finite=True, square_norm=2.0)
        return self.part.outcome(outcome, 0.0)

    def chunk(self, round_=1, phase=SCATTER, shard=0, **of):
        return self.part.chunk(chunk(PEER, round_, phase, shard, **of), load("from 12"), Link(b"12"), 0.0)

    def commit(self, round_=1, digest=DIGEST, **of):
        return self.part.commit(commit(round_, digest=digest, **of))

    def hold_result(self, round_=1):
        self.prepare(round_)
        self.snapshotted(round_)
        self.chunk(round_)
        self.summed(round_)
        self.chunk(round_, GATHER, 1)
        return self.assembled(round_)


@pytest.fixture
def me():
    return Fixture()


def test_the_way_through_a_step(me):
    me.state.add(3, 1.5, 10)
    assert me.prepare(counted=0b1000) == [Snapshot(round=1, num_shards=2)]
    (scatter,) = me.snapshotted()
    assert (scatter.peer, scatter.message.phase, scatter.frames) == ("sim://worker-12", SCATTER, ((ME, 1),))
    ack, task = me.chunk()
    assert (ack.peer, type(ack.message)) == (Link(b"12"), ChunkAck)
    assert isinstance(task, Sum)
    assert len(of_type(me.summed(), Chunk)) == 1
    assert len(of_type(me.chunk(phase=GATHER, shard=1), Assemble)) == 1
    (send,) = me.assembled()
    assert (send.peer, send.message.digest, send.message.round) == ("sim://trainer", DIGEST, 1)
    assert (send.message.ledger, send.message.loss_sum, send.message.num_targets) == (b"\x08", 1.5, 10)
    assert me.part.prepared_round == 1
    assert me.commit() == Apply(step=0, round=1, scale=0.5, lr=0.25, apply=True, snapshot=False)
    assert me.part.is_applying
    me.part.applied()
    assert (me.state.version, me.state.ledger, me.state.loss_sum, me.state.num_targets) == ((0, 1), 0, 0.0, 0)
    assert (me.part.is_applying, me.part.prepared_round) == (False, 0)


def test_a_prepare_with_another_ledger_is_answered_by_the_own_one(me):
    me.state.add(3, 0.0, 0)
    assert me.prepare(counted=0b11000) == [REPORT]
    assert me.snapshotted() == []


def test_a_prepare_while_a_gradient_is_being_added_waits_for_its_repetition(me):
    me.state.accumulating = 0b100
    assert me.prepare() == []
    me.state.accumulating = 0
    assert of_type(me.prepare(), Snapshot)


def test_the_contribution_is_that_of_the_snapshot(me):
    """A microbatch that is added while the round is under way is in the accumulator, not in the round."""
    me.state.add(0, 1.0, 1)
    me.prepare(counted=1)
    me.state.add(5, 100.0, 100)
    me.snapshotted()
    me.chunk()
    me.summed()
    me.chunk(phase=GATHER, shard=1)
    (message,) = of_type(me.assembled(), Prepared)
    assert (ledger.from_bytes(message.ledger), message.loss_sum, message.num_targets) == (1, 1.0, 1)


@pytest.mark.parametrize("loss_sum", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_can_be_told(me, loss_sum):
    """Prepared could not be encoded: the worker died where the step should have been skipped everywhere."""
    me.state.add(3, loss_sum, 1)
    me.prepare(counted=0b1000)
    me.snapshotted()
    me.chunk()
    me.summed()
    me.chunk(phase=GATHER, shard=1)
    (message,) = of_type(me.assembled(), Prepared)
    assert message.loss_sum is None
    assert decode_untrusted(encode(message)).message == message


@pytest.mark.parametrize("step", [1, 5])
def test_prepare_and_commit_of_another_step_are_ignored(me, step):
    assert me.prepare(step=step) == []
    me.hold_result()
    assert me.commit(step=step) is None


def test_a_prepare_without_this_worker_is_ignored(me):
    """It once ended the worker with a ValueError."""
    assert me.prepare(participants=(PEER, 13)) == []


def test_a_prepare_that_comes_again_is_answered_once_there_is_a_result(me):
    me.prepare()
    assert me.prepare() == []
    me.hold_result(2)
    assert [message.round for message in of_type(me.prepare(2), Prepared)] == [2]
    assert [message.round for message in of_type(me.part.send_prepared(), Prepared)] == [2]


def test_a_newer_round_replaces_an_older_one(me):
    me.hold_result(1)
    assert me.prepare(2) == [Discard(round=1), Snapshot(round=2, num_shards=2)]
    assert me.part.prepared_round == 0
    assert me.prepare(1) == []
    assert me.assembled(1) == []
    assert me.snapshotted(1) == []
    assert me.summed(1) == []
    assert me.commit(1) is None


def test_a_late_prepare_does_not_lose_chunks_of_a_newer_round(me):
    """It once did; they were acknowledged, so they never came again and the newer round hung."""
    me.chunk(2)
    assert me.prepare(1) == []
    me.prepare(2)
    assert len(of_type(me.snapshotted(2), Sum)) == 1


def test_chunks_before_prepare_are_kept_and_acknowledged(me):
    (ack,) = me.chunk()
    assert isinstance(ack.message, ChunkAck)
    me.prepare()
    assert len(of_type(me.snapshotted(), Sum)) == 1


def test_chunks_of_older_rounds_and_steps_are_ignored(me):
    me.prepare(2)
    assert me.chunk(1) == []
    me.state.step = 1
    assert me.chunk(3, step=0) == []


def test_a_chunk_that_contradicts_itself_is_not_acknowledged(me):
    me.prepare()
    assert me.chunk(index=4, num_chunks=2) == []


def test_abort_forgets_the_round_and_touches_nothing_else(me):
    me.state.add(3, 1.5, 10)
    me.prepare(counted=8)
    assert me.part.abort(abort(1)) == [Discard(round=1), REPORT]
    assert (me.state.ledger, me.state.loss_sum) == (8, 1.5)
    assert me.snapshotted() == []
    assert me.part.abort(abort(1)) == []
    assert me.prepare(2, counted=8)[-1] == Snapshot(round=2, num_shards=2)


@pytest.mark.parametrize("round_", [0, 2, 99])
def test_abort_of_another_round_is_ignored(me, round_):
    me.hold_result(1)
    assert me.part.abort(abort(round_)) == []
    assert me.part.prepared_round == 1


def test_abort_of_a_held_result_lets_it_go(me):
    me.hold_result(1)
    me.part.abort(abort(1))
    assert me.part.prepared_round == 0
    assert me.commit() is None


@pytest.mark.parametrize(("round_", "digest"), [(2, DIGEST), (1, DIGEST + 1)])
def test_only_the_result_that_is_held_is_applied(me, round_, digest):
    """No answer either: the coordinator repeats Commit to whoever reports, so an answer would never end."""
    me.hold_result(1)
    assert me.commit(round_, digest) is None
    assert not me.part.is_applying


def test_commit_before_the_result_is_ignored(me):
    me.prepare()
    assert me.commit() is None


def test_nothing_moves_while_the_step_is_applied(me):
    me.hold_result()
    me.commit()
    assert me.commit() is None
    assert me.part.abort(abort(1)) == []
    assert me.prepare(2) == []
    me.part.applied()
    assert me.commit() is None
    for late in (me.part.abort(abort(1)), me.prepare(1), me.chunk(1), me.assembled(1)):
        assert late == []
    assert me.state.step == 1


def test_what_a_round_received_goes_with_its_step(me):
    """Two gradients' worth of chunks once stayed until the next round."""
    me.hold_result()
    assert len(me.part._inbox.chunks) == 2
    me.commit()
    me.part.applied()
    assert me.part._inbox is None


def test_chunks_of_the_next_step_survive_the_end_of_this_one(me):
    me.hold_result()
    me.commit()
    me.chunk(2, step=1)
    me.part.applied()
    me.prepare(2, step=1)
    assert len(of_type(me.snapshotted(2), Sum)) == 1


def test_unacknowledged_chunks_are_repeated(me):
    assert (me.part.next_deadline_s(), me.part.repeat(9.0)) == (None, [])
    me.prepare()
    me.snapshotted()
    assert me.part.next_deadline_s() == 1.0
    (send,) = me.part.repeat(1.0)
    assert isinstance(send, Send)
    me.part.acknowledged(chunk_ack(PEER, 2, SCATTER, 1), 1.0)
    assert me.part.next_deadline_s() == 3.0
    me.part.acknowledged(chunk_ack(PEER, 1, SCATTER, 1), 1.0)
    assert me.part.next_deadline_s() is None


def test_a_round_that_is_forgotten_leaves_nothing(me):
    me.hold_result(1)
    me.part.forget()
    assert (me.part.prepared_round, me.part.next_deadline_s(), me.part.send_prepared()) == (0, None, [])
    assert me.commit() is None
    assert me.prepare(2) == [Snapshot(round=2, num_shards=2)], "its task has nothing to discard"


def test_what_others_have_sent_outlives_a_round_that_is_forgotten(me):
    """It was acknowledged, so nobody sends it again: the newer round hung."""
    me.hold_result(1)
    assert of_type(me.chunk(2), ChunkAck)
    me.part.forget()
    assert me.prepare(1) == [], "it is over"
    me.prepare(2)
    assert len(of_type(me.snapshotted(2), Sum)) == 1


def test_a_commit_in_work_is_not_forgotten(me):
    me.hold_result(1)
    me.commit(snapshot=True)
    me.part.forget()
    assert me.part.is_applying
    assert me.part.applied().snapshot
    assert me.state.version == (0, 1)


def test_silence_is_measured_from_the_last_word(me):
    me.prepare()
    me.snapshotted()
    assert (me.part.silent(2.9, 3.0), me.part.silent(3.0, 3.0)) == ([], [PEER])
    me.part.chunk(chunk(PEER, 1, SCATTER, 0), load("from 12"), Link(b"12"), 2.0)
    assert (me.part.silent(4.9, 3.0), me.part.silent(5.0, 3.0)) == ([], [PEER])
    me.part.acknowledged(chunk_ack(PEER, 1, SCATTER, 1), 5.0)
    assert me.part.silent(99.0, 3.0) == [], "it owes nothing"


def test_nobody_is_silent_before_it_was_spoken_to():
    me = Fixture((worker_at(ME, 1),))
    me.prepare()
    me.snapshotted()
    me.me.see(view(2), (worker_at(ME, 1), worker_at(PEER, 1)))
    assert len(of_type(me.part.view_changed(10.0), Chunk)) == 1
    assert (me.part.silent(12.9, 3.0), me.part.silent(13.0, 3.0)) == ([], [PEER])
