"""What ties a parent process and its children: each sees that the other is gone, and the parent that a child has stopped.

    pipe    the parent keeps the writing end: when it ends, however it ends, its children see the end of the pipe
    pulse   a child writes the time into memory that both share as long as its loop turns

A child that holds Python's lock in a call that does not return has a heart that beats no more, and nobody but its parent
can end it. Of a device that hangs the process itself knows.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from time import monotonic
from typing import NoReturn

from zswarm.machine import Health
from zswarm.overseer import Overseer
from zswarm.transport import Switchboard

BEAT_S = 1.0
_TIME = struct.Struct("@d")


class Pulse:
    """When a child last turned, on the monotonic clock; made before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _TIME.size)

    def beat(self, now: float) -> None:
        """Say that it turns now; 0 for a child that is not to be watched."""
        _TIME.pack_into(self._memory, 0, now)

    def overdue_s(self, now: float) -> float:
        """Return how long ago that was, 0 for a child that is not to be watched."""
        (at_s,) = _TIME.unpack_from(self._memory)
        return now - at_s if at_s else 0.0


class Lifeline(Overseer):
    """See the module."""

    def __init__(self, *, is_gentle: bool = False) -> None:
        """Make one; with `is_gentle` the parent tells children to go by SIGTERM, and they leave in peace."""
        self.ends_us = not is_gentle
        self._read_fd, self._write_fd = os.pipe()
        self._pulse = Pulse()
        self._is_watched = False
        self._due_s = 0.0

    def enter_child(self, pulse: Pulse) -> None:
        """Close the end that only the parent may hold, and take the pulse; to be called first in the child."""
        os.close(self._write_fd)
        self._pulse = pulse

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:  # noqa: ARG002
        """End this process at once when the parent is gone: its work has nobody left to go to."""
        switchboard.watch(self._read_fd, self._end)
        self._is_watched, self._due_s = True, 0.0
        self.turned()

    def turned(self) -> None:
        """Let the parent see it."""
        now = monotonic()
        if now >= self._due_s and self._is_watched:
            self._due_s = now + BEAT_S
            self._pulse.beat(now)

    def stopping(self, reason: str) -> None:  # noqa: ARG002
        """Be watched no more: whoever stops has a time of its own for that."""
        self._is_watched = False
        self._pulse.beat(0.0)

    @staticmethod
    def _end() -> NoReturn:
        os._exit(1)
