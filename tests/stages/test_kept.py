from __future__ import annotations

import pytest
import torch

from stages.engine import Graph, Place
from stages.kept import Kept
from stages.memory import Memory, gauge_of
from zswarm.errors import LocalProtocolError
from zswarm.ids import Attempt, Branch, Microbatch, Purpose, Step
from zswarm.messages import Load, Parcel

GRAPH = Graph(torch.zeros(1), torch.zeros(1), Place(0, 0))


def key(microbatch, attempt=0):
    return (Branch(0), Step(3), Purpose.TRAIN, Microbatch(microbatch), Attempt(attempt))


def load(size_bytes):
    return Load(parcel=Parcel(tensors=(), size_bytes=size_bytes, crc=0), frames=(bytes(size_bytes),))


@pytest.mark.parametrize(
    ("recompute", "free_bytes", "has_room"),
    [
        ("always", 1000, False),
        ("never", 1000, True),
        ("never", 150, True),
        ("never", 149, False),
        ("auto", 600, True),
        ("auto", 599, False),
    ],
)
def test_graphs_are_kept_while_memory_allows(recompute, free_bytes, has_room):
    """`never` leaves a twentieth of the memory free after one more graph of 100 bytes, `auto` half of it."""
    kept = Kept(recompute, lambda: Memory(total_bytes=1000, free_bytes=free_bytes))
    kept.graph_bytes = 100
    assert kept.has_room() is has_room


def test_what_was_put_is_taken_once():
    """Graph and input come back for exactly the attempt that they belong to, once."""
    kept = Kept("never", lambda: Memory(total_bytes=1, free_bytes=1))
    x = load(4)
    assert kept.put(key(1), x, GRAPH)
    assert kept.put(key(2), x, None)
    assert kept.take(key(1, attempt=1)) == (None, None)
    assert kept.take(key(1)) == (GRAPH, x)
    assert kept.take(key(1)) == (None, None)
    kept.clear()
    assert kept.take(key(2)) == (None, None)


def test_inputs_are_kept_up_to_a_bound():
    """The oldest inputs go first; one that is larger than all room is not kept, its graph still is."""
    kept = Kept("always", lambda: Memory(total_bytes=1, free_bytes=1), input_bytes=10)
    assert all(kept.put(key(number), load(4), None) for number in range(3))
    assert kept.take(key(0)) == (None, None)
    assert kept.take(key(1))[1] is not None
    assert not kept.put(key(3), load(11), None)
    assert kept.put(key(4), load(11), GRAPH)
    assert kept.put(key(5), load(6), None)
    assert kept.take(key(2))[1] is not None


def test_a_repeated_forward_counts_once():
    """The same microbatch put twice takes room once."""
    kept = Kept("always", lambda: Memory(total_bytes=1, free_bytes=1), input_bytes=10)
    for _ in range(5):
        assert kept.put(key(0), load(6), None)
    assert kept.put(key(1), load(4), None)
    assert kept.take(key(0))[1] is not None


def test_an_unknown_choice_is_a_bug_of_ours():
    """The run file's choices are checked before."""
    with pytest.raises(LocalProtocolError, match="always, never, auto"):
        Kept("sometimes", lambda: Memory(total_bytes=1, free_bytes=1))


def test_the_gauge_reads_this_machine(tmp_path, monkeypatch):
    """The kernel's figures, a control group's where it allows less, and an assumption where there are none."""
    memory = gauge_of(torch.device("cpu"))()
    assert 0 < memory.free_bytes <= memory.total_bytes
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr("stages.memory.MEMINFO", meminfo)
    monkeypatch.setattr("stages.memory.CGROUP_LIMIT", tmp_path / "max")
    monkeypatch.setattr("stages.memory.CGROUP_USED", tmp_path / "current")
    assert gauge_of(torch.device("cpu"))().total_bytes == 4 << 30
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:  60 kB\n")
    monkeypatch.setattr("stages.memory.OWN", tmp_path / "own")
    assert gauge_of(torch.device("cpu"))() == Memory(total_bytes=100 << 10, free_bytes=60 << 10)
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "current").write_text("10240\n")
    assert gauge_of(torch.device("cpu"))().total_bytes == 100 << 10
    (tmp_path / "max").write_text("51200\n")
    assert gauge_of(torch.device("cpu"))() == Memory(total_bytes=50 << 10, free_bytes=40 << 10)
