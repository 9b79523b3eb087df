"""SIGTERM and Ctrl-C as an event of the loop: whoever is told to go drains, and says farewell, first."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

from zswarm.machine import ASKED
from zswarm.overseer import Overseer

E = TypeVar("E")


class Asked(Generic[E]):
    """How often this process was asked to go; called, it returns the event once for each time since it was last called."""

    def __init__(self) -> None:
        self._events: deque[E] = deque()
        self.is_interrupted = False
        """Was it Ctrl-C, ever? That has an exit code of its own."""

    def __call__(self) -> list[E]:
        """Take what has come."""
        return [self._events.popleft() for _ in range(len(self._events))]

    @property
    def is_waiting(self) -> bool:
        """Is there an event that nobody has taken?"""
        return bool(self._events)

    def note(self, event: E, *, is_interrupt: bool) -> None:
        """Once more."""
        self.is_interrupted |= is_interrupt
        self._events.append(event)


_entered: list[Asked[Any]] = []
"""Those that have been entered and not left, one within another."""


@contextmanager
def signals_as(event: E, *, wake: Callable[[], None], overseer: Overseer) -> Iterator[Asked[E]]:
    """Give a function that returns `event` once for each signal since it was last called; `wake` is called at each.

    Where the overseer ends this process by itself, signals are left as they are: then there are never any. Ctrl-C is, too,
    where it is ignored: somebody else looks after it. One within another: both are told, the inner one also of what came
    before it was there, and nobody has taken yet.
    """
    asked: Asked[E] = Asked()
    if overseer.ends_us:
        yield asked
        return

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]

    def note(number: int, frame: FrameType | None) -> None:
        asked.note(event, is_interrupt=number == signal.SIGINT)
        overseer.stopping(ASKED)
        wake()
        if callable(before[number]) and before[number] is not signal.default_int_handler:
            before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    if any(outer.is_waiting for outer in _entered):
        asked.note(event, is_interrupt=False)
    _entered.append(asked)
    try:
        yield asked
    finally:
        _entered.remove(asked)
        for number, handler in before.items():
            signal.signal(number, handler)
