"""SIGTERM as an event of the loop: whoever is told to go by the system drains, and says farewell, first."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from zswarm.machine import ASKED
from zswarm.overseer import Overseer

E = TypeVar("E")


@contextmanager
def sigterm_as(event: E, *, wake: Callable[[], None], overseer: Overseer) -> Iterator[Callable[[], list[E]]]:
    """Give a function that returns `event` once for each SIGTERM since it was last called; `wake` is called at each.

    Where the overseer ends this process by itself, the signal is left as it is: then there are never any. One within
    another: both are told.
    """
    events: deque[E] = deque()

    def take() -> list[E]:
        return [events.popleft() for _ in range(len(events))]

    if overseer.ends_us:
        yield take
        return

    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        events.append(event)
        overseer.stopping(ASKED)
        wake()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield take
    finally:
        signal.signal(signal.SIGTERM, before)
