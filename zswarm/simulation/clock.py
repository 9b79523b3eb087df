"""Virtual time: one queue of events in a total order, and a crooked clock for every node."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class EventQueue(Generic[T]):
    """Events by (time, sequence): those of one instant come in the order in which they were put."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, time_s: float, item: T) -> None:
        """Let `item` happen at `time_s`; the past is now."""
        self._sequence += 1
        heappush(self._heap, (max(self.now_s, time_s), self._sequence, item))

    def pop(self) -> T:
        """Take the next event and advance the time to it; IndexError where nothing is left."""
        self.now_s, _, item = heappop(self._heap)
        return item


class NodeClock:
    """A node's own monotonic clock: it starts anywhere and runs too fast or too slow, but steadily."""

    __slots__ = ("_latest_s", "_offset_s", "_rate")

    def __init__(self, *, offset_s: float = 0.0, rate: float = 1.0) -> None:
        self._offset_s = offset_s
        self._rate = rate
        self._latest_s = float("-inf")

    def local_s(self, time_s: float) -> float:
        """Read the clock at a true time."""
        local_s = self._offset_s + self._rate * time_s
        self._latest_s = max(self._latest_s, local_s)
        return self._latest_s

    def local_at_least_s(self, time_s: float, local_s: float) -> float:
        """Read the clock at the true time of a deadline: rounding must not make it early."""
        self._latest_s = max(self._latest_s, local_s, self._offset_s + self._rate * time_s)
        return self._latest_s

    def true_s(self, local_s: float) -> float:
        """Return the true time at which the clock shows `local_s`."""
        return (local_s - self._offset_s) / self._rate
