from __future__ import annotations

import pytest

from stages.reduction import Inbox, Reduction
from stages.tasks import Assemble, Snapshot, Snapshotted, Sum, Summed
from tests.letters import chunk, chunk_ack, header, load, of_type
from zswarm.ids import Address, ReducePhase
from zswarm.limits import REDUCE_WINDOW
from zswarm.machine import Send

ROUND = 7
SCATTER, GATHER = ReducePhase.SCATTER, ReducePhase.GATHER


def address(session: int) -> Address:
    return Address(f"sim://{session}")


def share(owner: int, shard: int, num_chunks: int = 1):
    return tuple(load((owner, shard, index)) for index in range(num_chunks))


def total(shard: int):
    return (load(("sum", shard)),)


class Fixture:
    """The reduction of participant `me`, with every address known."""

    def __init__(self, me: int = 11, participants: tuple[int, ...] = (11, 12, 13), *, addresses: bool = True) -> None:
        self.inbox = Inbox(ROUND)
        self.me = me
        self.participants = participants
        self.reduction = Reduction(
            header(me), version=(0, 0), participants=participants, inbox=self.inbox, resend_s=1.0
        )
        if addresses:
            self.reduction.set_addresses({p: address(p) for p in participants}, 0.0)

    def snapshot(self, num_chunks: int = 1, now: float = 0.0):
        shards = tuple(share(self.me, shard, num_chunks) for shard in range(len(self.participants)))
        return self.reduction.snapshotted(Snapshotted(round=ROUND, shards=shards), now)

    def get(self, message, content):
        if not self.inbox.put(message, load(content)):
            return None
        return self.reduction.received(message.session, 0.0)

    def summed(self, shard: int):
        return self.reduction.summed(Summed(round=ROUND, shard=shard, chunks=total(shard)), 0.0)


def sent(commands) -> list[tuple[str, ReducePhase, int, int]]:
    return [(c.peer, c.message.phase, c.message.shard, c.message.chunk) for c in commands if isinstance(c, Send)]


def test_the_way_of_one_participant():
    me = Fixture(12)
    assert me.reduction.start() == [Snapshot(round=ROUND, num_shards=3)]
    assert sent(me.snapshot()) == [(address(11), SCATTER, 0, 0), (address(13), SCATTER, 2, 0)]
    assert me.get(chunk(13, ROUND, SCATTER, 1), (13, 1, 0)) == []
    (task,) = me.get(chunk(11, ROUND, SCATTER, 1), (11, 1, 0))
    assert task == Sum(round=ROUND, shard=1, contributions=(share(11, 1), share(12, 1), share(13, 1)))
    assert sent(me.summed(1)) == [(address(11), GATHER, 1, 0), (address(13), GATHER, 1, 0)]
    assert me.get(chunk(11, ROUND, GATHER, 0), ("sum", 0)) == []
    (task,) = me.get(chunk(13, ROUND, GATHER, 2), ("sum", 2))
    assert task == Assemble(round=ROUND, shards=(total(0), total(1), total(2)))


def test_one_participant_needs_no_network():
    me = Fixture(11, (11,))
    (task,) = me.snapshot()
    assert task == Sum(round=ROUND, shard=0, contributions=(share(11, 0),))
    (task,) = me.summed(0)
    assert task == Assemble(round=ROUND, shards=(total(0),))
    assert me.reduction.is_delivered


def test_what_comes_before_the_own_prepare_counts():
    me = Fixture(11, (11, 12))
    assert me.get(chunk(12, ROUND, SCATTER, 0), (12, 0, 0)) == []
    (task,) = of_type(me.snapshot(), Sum)
    assert task.contributions == (share(11, 0), share(12, 0))


def test_chunks_come_in_any_order_and_more_than_once():
    me = Fixture(11, (11, 12))
    me.snapshot()
    for index in (2, 0, 2, 0):
        assert me.get(chunk(12, ROUND, SCATTER, 0, index, 3), (12, 0, index)) == []
    (task,) = me.get(chunk(12, ROUND, SCATTER, 0, 1, 3), (12, 0, 1))
    assert task.contributions[1] == share(12, 0, 3)
    assert me.get(chunk(12, ROUND, SCATTER, 0, 1, 3), (12, 0, 1)) == []


@pytest.mark.parametrize(
    ("index", "num_chunks"), [(3, 3), (9, 3), (0, 2), (0, 0)], ids=["beyond", "far beyond", "other count", "no count"]
)
def test_chunks_that_contradict_themselves_are_not_taken(index, num_chunks):
    """They once ended the worker with a KeyError as soon as enough had come."""
    me = Fixture(11, (11, 12))
    me.snapshot()
    me.get(chunk(12, ROUND, SCATTER, 0, 0, 3), (12, 0, 0))
    assert me.get(chunk(12, ROUND, SCATTER, 0, index, num_chunks), "?") is None
    for place in (1, 2):
        commands = me.get(chunk(12, ROUND, SCATTER, 0, place, 3), (12, 0, place))
    assert commands[0].contributions[1] == share(12, 0, 3)


def test_chunks_of_strangers_are_in_nobodys_sum():
    me = Fixture(11, (11, 12))
    me.snapshot()
    assert me.get(chunk(99, ROUND, SCATTER, 0), "?") == []
    (task,) = me.get(chunk(12, ROUND, SCATTER, 0), (12, 0, 0))
    assert task.contributions == (share(11, 0), share(12, 0))


def test_a_window_of_chunks_is_on_its_way():
    me = Fixture(11, (11, 12))
    first = sent(me.snapshot(num_chunks=REDUCE_WINDOW + 2))
    assert [index for *_, index in first] == list(range(REDUCE_WINDOW))
    assert sent(me.reduction.acknowledged(chunk_ack(12, ROUND, SCATTER, 1, 3), 0.0)) == [
        (address(12), SCATTER, 1, REDUCE_WINDOW)
    ]
    assert me.reduction.acknowledged(chunk_ack(12, ROUND, SCATTER, 1, 3), 0.0) == []
    assert not me.reduction.is_delivered


@pytest.mark.parametrize("message", [chunk_ack(99, ROUND, SCATTER, 1), chunk_ack(12, ROUND, GATHER, 1)])
def test_acknowledgements_of_nothing_change_nothing(message):
    me = Fixture(11, (11, 12))
    me.snapshot()
    assert me.reduction.acknowledged(message, 0.0) == []
    assert not me.reduction.is_delivered


def test_unacknowledged_chunks_are_repeated():
    me = Fixture(11, (11, 12, 13))
    assert me.reduction.next_deadline_s() is None
    me.snapshot(now=5.0)
    assert (me.reduction.next_deadline_s(), me.reduction.resend_due(5.9)) == (6.0, [])
    me.reduction.acknowledged(chunk_ack(12, ROUND, SCATTER, 1), 6.0)
    assert sent(me.reduction.resend_due(6.0)) == [(address(13), SCATTER, 2, 0)]
    assert me.reduction.next_deadline_s() == 8.0
    me.reduction.acknowledged(chunk_ack(13, ROUND, SCATTER, 2), 6.5)
    assert (me.reduction.next_deadline_s(), me.reduction.is_delivered) == (None, True)


def test_peers_get_their_chunks_when_a_view_names_them():
    me = Fixture(11, (11, 12, 13), addresses=False)
    assert me.snapshot() == []
    assert sent(me.reduction.set_addresses({12: address(12)}, 0.0)) == [(address(12), SCATTER, 1, 0)]
    assert sent(me.reduction.set_addresses({12: address(12), 13: address(13)}, 0.0)) == [(address(13), SCATTER, 2, 0)]


def test_a_peer_that_a_view_no_longer_names_still_gets_its_chunks():
    """It once ended the worker with a KeyError when a chunk was due again."""
    me = Fixture(11, (11, 12))
    me.snapshot()
    me.reduction.set_addresses({}, 0.0)
    assert sent(me.reduction.resend_due(1.0)) == [(address(12), SCATTER, 1, 0)]


def test_nothing_is_summed_or_assembled_twice():
    me = Fixture(11, (11, 12))
    me.get(chunk(12, ROUND, SCATTER, 0), (12, 0, 0))
    me.get(chunk(12, ROUND, GATHER, 1), ("sum", 1))
    assert len(of_type(me.snapshot(), Sum)) == 1
    assert of_type(me.reduction.received(12, 0.0), Sum) == []
    assert len(of_type(me.summed(0), Assemble)) == 1
    assert me.reduction.received(12, 0.0) == []
