from __future__ import annotations

import os
import signal

from zswarm.lifeline import Lifeline
from zswarm.overseer import NOBODY
from zswarm.sigterm import sigterm_as


def test_each_sigterm_is_told_once():
    """It was told again with every turn of the loop, which a process that drains would have taken for impatience."""
    woken: list[None] = []
    with sigterm_as("leave", wake=lambda: woken.append(None), overseer=NOBODY) as take:
        assert take() == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert take() == ["leave"]
        assert take() == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert take() == ["leave", "leave"]
    assert len(woken) == 3


def test_a_child_is_left_as_it_is_and_everybody_is_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as("leave", wake=print, overseer=Lifeline()) as take:
        assert signal.getsignal(signal.SIGTERM) is before
        assert take() == []
    with sigterm_as("leave", wake=print, overseer=NOBODY):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
