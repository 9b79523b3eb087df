from __future__ import annotations

import os
import signal

import pytest

from zswarm.lifeline import Lifeline
from zswarm.overseer import NOBODY
from zswarm.signals import signals_as


def test_each_signal_is_told_once():
    """It was told again with every turn of the loop, which a process that drains would have taken for impatience."""
    woken: list[None] = []
    with signals_as("leave", wake=lambda: woken.append(None), overseer=NOBODY) as take:
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
    with signals_as("leave", wake=print, overseer=Lifeline()) as take:
        assert signal.getsignal(signal.SIGTERM) is before
        assert take() == []
    with signals_as("leave", wake=print, overseer=NOBODY):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_within_another_tells_both(number):
    """Between runs and within one: the process leaves the run, and takes part in no other."""
    with (
        signals_as("outer", wake=lambda: None, overseer=NOBODY) as outer,
        signals_as("inner", wake=lambda: None, overseer=NOBODY) as inner,
    ):
        os.kill(os.getpid(), number)
        assert (inner(), outer()) == (["inner"], ["outer"])


def test_ctrl_c_is_remembered_for_the_exit_code():
    with signals_as("leave", wake=lambda: None, overseer=NOBODY) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not asked.is_interrupted
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_interrupted


def test_what_came_before_the_inner_one_was_there_is_not_lost():
    """While torch is imported, say, or sockets are bound."""
    with signals_as("outer", wake=lambda: None, overseer=NOBODY) as outer:
        os.kill(os.getpid(), signal.SIGINT)
        with signals_as("inner", wake=lambda: None, overseer=NOBODY) as inner:
            assert inner() == ["inner"]
        assert outer() == ["outer"]
        with signals_as("inner", wake=lambda: None, overseer=NOBODY) as inner:
            assert inner() == [], "it has been taken"


def test_ctrl_c_stays_ignored_where_somebody_else_looks_after_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as("leave", wake=lambda: None, overseer=NOBODY) as take:
            os.kill(os.getpid(), signal.SIGINT)
            assert take() == []
    finally:
        signal.signal(signal.SIGINT, before)
