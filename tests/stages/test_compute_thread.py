from __future__ import annotations

import threading

import pytest
import torch

from stages import compute_thread
from stages.compute_thread import ComputeThread
from stages.tasks import Applied, Broken, Discard, Failed
from zswarm.errors import LocalProtocolError
from zswarm.ids import Round, Step

DEADLINE_S = 10.0


class Recorder:
    """Counts calls and lets a test wait for them."""

    def __init__(self):
        self._calls = threading.Semaphore(0)

    def __call__(self):
        self._calls.release()

    def wait(self, count=1):
        for _ in range(count):
            assert self._calls.acquire(timeout=DEADLINE_S)


class Echo:
    """Answers round n with n outcomes; round 0 raises, and each waits where a test wants it to."""

    def __init__(self):
        self.threads = torch.get_num_threads()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    has_unfinished = False

    def perform(self, task):
        if task.round == 0:
            raise RuntimeError("out of\nluck")
        for number in range(task.round):
            yield Applied(step=Step(number), parameter_digest=self.threads)
            assert self.may_go_on.wait(DEADLINE_S)


class Leaver:
    """Leaves `round` parts of each task for later; the third part of all waits for a test."""

    def __init__(self):
        self.parts = []
        self.num_done = 0
        self.may_go_on = threading.Event()

    @property
    def has_unfinished(self):
        return bool(self.parts)

    def perform(self, task):
        self.parts += [task.round] * task.round
        yield Applied(step=Step(task.round), parameter_digest=0)

    def go_on(self):
        self.num_done += 1
        if self.num_done == 3:
            assert self.may_go_on.wait(DEADLINE_S)
        yield Applied(step=Step(10 * self.parts.pop(0)), parameter_digest=0)


def test_what_is_unfinished_waits_for_tasks():
    """It is done without anybody asking for it, but not before a task that has come meanwhile."""
    woken, leaver = Recorder(), Leaver()
    with ComputeThread(wake=woken, make=lambda: leaver) as thread:
        thread.submit(Discard(round=Round(4)))
        woken.wait(3)
        thread.submit(Discard(round=Round(1)))
        leaver.may_go_on.set()
        woken.wait(4)
        assert [outcome.step for outcome in thread.outcomes()] == [4, 40, 40, 40, 1, 40, 10]


def test_outcomes_come_in_order_and_wake():
    """Each outcome is there once its wake has been called; they are taken once, in order."""
    woken = Recorder()
    with ComputeThread(wake=woken, make=Echo) as thread:
        thread.submit(Discard(round=Round(2)))
        thread.submit(Discard(round=Round(1)))
        woken.wait(3)
        assert [outcome.step for outcome in thread.outcomes()] == [0, 1, 0]
        assert thread.outcomes() == []
    assert not thread.is_alive


def test_the_first_outcome_does_not_wait_for_the_last():
    """Dx is out while the weights' gradients are still being worked on."""
    woken, echo = Recorder(), Echo()
    echo.may_go_on.clear()
    with ComputeThread(wake=woken, make=lambda: echo) as thread:
        thread.submit(Discard(round=Round(2)))
        woken.wait()
        assert [outcome.step for outcome in thread.outcomes()] == [0]
        echo.may_go_on.set()
        woken.wait()
        assert [outcome.step for outcome in thread.outcomes()] == [1]


def test_threads_are_set_where_the_work_is_done():
    """Torch uses as many threads as the worker was given."""
    woken = Recorder()
    try:
        with ComputeThread(wake=woken, threads=2, make=Echo) as thread:
            thread.submit(Discard(round=Round(1)))
            woken.wait()
            assert thread.outcomes()[0].parameter_digest == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("making", Broken(text="the device cannot be used: RuntimeError: out of luck")),
        ("performing", Failed(layer="compute thread", text="RuntimeError: out of luck")),
    ],
)
def test_what_escapes_is_reported(fails, says):
    """A bug in the thread is one Failed, not a silent end; a card that was lost after it was tried ended everybody's run."""
    woken = Recorder()

    def make():
        if fails == "making":
            raise RuntimeError("out of\nluck")
        return Echo()

    with ComputeThread(wake=woken, make=make) as thread:
        thread.submit(Discard(round=Round(0)))
        woken.wait()
        assert thread.outcomes() == [says]


def test_leaving_stops_between_two_outcomes():
    """The thread ends although its task has more to say and other tasks wait."""
    woken, echo = Recorder(), Echo()
    echo.may_go_on.clear()
    with ComputeThread(wake=woken, make=lambda: echo) as thread:
        thread.submit(Discard(round=Round(1000)))
        thread.submit(Discard(round=Round(1000)))
        woken.wait()
        thread._is_stopping.set()
        echo.may_go_on.set()
    assert not thread.is_alive
    assert len(thread.outcomes()) <= 2


def test_leaving_does_not_wait_forever(monkeypatch):
    """A task that never ends is left behind: the thread is a daemon."""
    monkeypatch.setattr(compute_thread, "STOP_TIMEOUT_S", 0.01)
    woken, echo = Recorder(), Echo()
    echo.may_go_on.clear()
    with ComputeThread(wake=woken, make=lambda: echo) as thread:
        thread.submit(Discard(round=Round(5)))
        woken.wait()
    assert thread.is_alive
    echo.may_go_on.set()
    thread._thread.join(DEADLINE_S)
    assert not thread.is_alive


def test_the_queue_is_bounded(monkeypatch):
    """More tasks than a worker can want are a bug of ours."""
    monkeypatch.setattr(compute_thread, "QUEUE_LENGTH", 2)
    thread = ComputeThread(wake=Recorder(), make=Echo)
    thread.submit(Discard(round=Round(1)))
    thread.submit(Discard(round=Round(1)))
    with pytest.raises(LocalProtocolError, match="more than 2 tasks"):
        thread.submit(Discard(round=Round(1)))
