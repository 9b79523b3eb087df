"""SIGTERM as an event of the loop: whoever is told to go by the system drains, and says farewell, first."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

E = TypeVar("E")


@contextmanager
def sigterm_as(event: E, *, wake: Callable[[], None], is_child: bool) -> Iterator[Callable[[], list[E]]]:
    """Give a function that returns `event` once for each SIGTERM since it was last called; `wake` is called at each.

    A child, which its parent ends, is left as it is: then there are never any.
    """
    events: deque[E] = deque()

    def take() -> list[E]:
        return [events.popleft() for _ in range(len(events))]

    if is_child:
        yield take
        return

    def note(*_: object) -> None:
        events.append(event)
        wake()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield take
    finally:
        signal.signal(signal.SIGTERM, before)
