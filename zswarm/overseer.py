"""Who has started a process and looks after it: nobody, its family (lifeline.py), or systemd (systemd.py)."""

from __future__ import annotations

from collections.abc import Callable

from zswarm.machine import Health
from zswarm.transport import Switchboard


class Overseer:
    """Nobody: what a service tells the one who has started it, who does not listen; the others are made of this."""

    ends_us = False
    """It ends this process by itself, so that SIGTERM and Ctrl-C are left as it is."""

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:
        """The sockets are bound and the loop begins to turn; `health` is what the machine says of itself at a time."""

    def turned(self) -> None:
        """The loop has turned once more, or waits for something on purpose."""

    def stopping(self, reason: str) -> None:
        """The process is about to end; may be called from a signal handler."""


NOBODY = Overseer()
