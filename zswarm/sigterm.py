"""SIGTERM as an event of the loop: whoever is told to go by the system says farewell first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

E = TypeVar("E")


@contextmanager
def sigterm_as(event: E, *, wake: Callable[[], None], is_child: bool) -> Iterator[list[E]]:
    """Give a list that holds `event` once the process has got SIGTERM; `wake` is called then.

    A child, which its parent ends, is left as it is: the list stays empty. One within another: both are told.
    """
    events: list[E] = []
    if is_child:
        yield events
        return

    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        events.append(event)
        wake()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield events
    finally:
        signal.signal(signal.SIGTERM, before)
