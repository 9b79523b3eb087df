"""SIGTERM and Ctrl-C as an event of the loop: whoever is told to go drains, and says farewell, first."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from zswarm.machine import ASKED
from zswarm.overseer import Overseer

E = TypeVar("E")

_seen: set[int] = set()
"""The signals that have come as events."""


def was_interrupted() -> bool:
    """Was it Ctrl-C that ended this process? It has an exit code of its own."""
    return signal.SIGINT in _seen


@contextmanager
def signals_as(event: E, *, wake: Callable[[], None], overseer: Overseer) -> Iterator[Callable[[], list[E]]]:
    """Give a function that returns `event` once for each signal since it was last called; `wake` is called at each.

    Where the overseer ends this process by itself, signals are left as they are: then there are never any. Ctrl-C is, too,
    where it is ignored: somebody else looks after it. One within another: both are told.
    """
    events: deque[E] = deque()

    def take() -> list[E]:
        return [events.popleft() for _ in range(len(events))]

    if overseer.ends_us:
        yield take
        return

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]

    def note(number: int, frame: FrameType | None) -> None:
        _seen.add(number)
        events.append(event)
        overseer.stopping(ASKED)
        wake()
        if callable(before[number]) and before[number] is not signal.default_int_handler:
            before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield take
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
