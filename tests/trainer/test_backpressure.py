from __future__ import annotations

from zswarm.ids import StatePart
from zswarm.machine import Send, Tick
from zswarm.messages import Pull, Stop
from zswarm.trainer.backpressure import Backpressure
from zswarm.trainer.checkpoint_thread import CaughtUp

STOP = Send(peer="a", message=Stop(run=1, generation=1, session=0))


def pull(peer, offset):
    of = {"run": 1, "generation": 1, "session": 0, "branch": 0, "step": 4, "layer": 0}
    return Send(peer=peer, message=Pull(part=StatePart.PARAMETERS, offset_bytes=offset, **of))


class Scripted:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self):
        self.says, self.heard = [], []

    def next_deadline_s(self):
        return 7.0

    def handle(self, event, now):
        self.heard.append((event, now))
        return self.says


def test_pulls_wait_while_the_disk_is_behind():
    """The newest for each peer; everything else goes out in its order, and the machine hears nothing of it."""
    machine, behind = Scripted(), [True]
    paced = Backpressure(machine, lambda: behind[0])
    assert paced.next_deadline_s() == 7.0
    machine.says = [pull("a", 0), STOP, pull("b", 0)]
    assert paced.handle(Tick(), 1.0) == [STOP]
    machine.says = [pull("a", 5)]
    assert paced.handle(Tick(), 2.0) == []
    behind[0] = False
    assert paced.handle(CaughtUp(), 3.0) == [pull("a", 5), pull("b", 0)]
    assert paced.handle(Tick(), 4.0) == [pull("a", 5)]
    assert machine.heard == [(Tick(), 1.0), (Tick(), 2.0), (Tick(), 4.0)]


def test_what_was_held_comes_before_what_is_new():
    machine, behind = Scripted(), [True]
    paced = Backpressure(machine, lambda: behind[0])
    machine.says = [pull("a", 0)]
    paced.handle(Tick(), 1.0)
    behind[0], machine.says = False, [STOP]
    assert paced.handle(Tick(), 2.0) == [pull("a", 0), STOP]
