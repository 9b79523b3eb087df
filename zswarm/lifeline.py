"""A pipe from a parent process: when the parent ends, however it ends, its children see the end of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from zswarm.machine import Health
from zswarm.overseer import Overseer
from zswarm.transport import Switchboard


class Lifeline(Overseer):
    """The parent keeps the writing end, each child watches the reading end."""

    def __init__(self, *, is_gentle: bool = False) -> None:
        """Make one; with `is_gentle` the parent tells children to go by SIGTERM, and they leave in peace."""
        self.ends_us = not is_gentle
        self._read_fd, self._write_fd = os.pipe()

    def enter_child(self) -> None:
        """Close the end that only the parent may hold; to be called first in the child."""
        os.close(self._write_fd)

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:  # noqa: ARG002
        """End this process at once when the parent is gone: its work has nobody left to go to."""
        switchboard.watch(self._read_fd, self._end)

    @staticmethod
    def _end() -> NoReturn:
        os._exit(1)
