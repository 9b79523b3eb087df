"""Who is not let in again at once, and for how long."""

from __future__ import annotations

from zswarm import limits
from zswarm.ids import NodeId
from zswarm.trainer.quarantine import Quarantine

HEARTBEAT_S = 2.0
NODE = NodeId("w0")


def test_each_time_is_twice_as_long_up_to_a_limit_however_often() -> None:
    quarantine = Quarantine(heartbeat_s=HEARTBEAT_S)
    waits_s = [quarantine.note(NODE, 0.0) for _ in range(2000)]
    assert waits_s[:6] == [0.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    assert max(waits_s) == waits_s[-1] == 8.0 * 2**limits.MOST_DOUBLINGS


def test_others_are_let_in() -> None:
    quarantine = Quarantine(heartbeat_s=HEARTBEAT_S)
    for _ in range(3):
        quarantine.note(NODE, 0.0)
    assert quarantine.holds(NODE, 1.0)
    assert not quarantine.holds(NodeId("w1"), 1.0)


def test_the_trainers_own_stall_is_no_part_of_it() -> None:
    quarantine = Quarantine(heartbeat_s=HEARTBEAT_S)
    quarantine.note(NODE, 0.0)
    wait_s = quarantine.note(NODE, 0.0)
    quarantine.excuse(100.0)
    assert quarantine.holds(NODE, 100.0 + wait_s - 0.1)
    assert not quarantine.holds(NODE, 100.0 + wait_s)


def test_so_many_are_remembered_and_no_more() -> None:
    quarantine = Quarantine(heartbeat_s=HEARTBEAT_S)
    nodes = [NodeId(f"n{index}") for index in range(limits.MAX_ENDED_NODES + 1)]
    for node in nodes:
        quarantine.note(node, 0.0)
        quarantine.note(node, 0.0)
    assert [quarantine.holds(node, 1.0) for node in nodes] == [False, *[True] * limits.MAX_ENDED_NODES]
