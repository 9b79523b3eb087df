"""SIGTERM as an event of the loop: whoever is told to go by the system says farewell first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from zswarm.overseer import Overseer

E = TypeVar("E")


@contextmanager
def sigterm_as(event: E, *, wake: Callable[[], None], overseer: Overseer) -> Iterator[list[E]]:
    """Give a list that holds `event` once the process has got SIGTERM; `wake` is called then.

    Where the overseer ends this process by itself, the signal is left as it is: the list stays empty. One within
    another: both are told.
    """
    events: list[E] = []
    if overseer.ends_us:
        yield events
        return

    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        events.append(event)
        overseer.stopping("asked to leave")
        wake()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield events
    finally:
        signal.signal(signal.SIGTERM, before)
