"""Checkpoints come no faster than the disk takes them: what asks for more of one waits while the disk is behind.

    coordinator --Pull--> disk is behind? --no--> out
                                |
                                yes--> held, the newest for each peer --CaughtUp--> out

To the coordinator that is a slow network, of which it expects nothing else: it repeats what is not answered. At most one
range per stage is on its way when the disk falls behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zswarm.ids import Peer
from zswarm.machine import Machine, Send
from zswarm.messages import Pull
from zswarm.trainer.checkpoint_thread import CaughtUp


class Backpressure:
    """A machine around another one, whose Pulls wait while `is_behind`."""

    def __init__(self, machine: Machine[Any, Any], is_behind: Callable[[], bool]) -> None:
        self._machine = machine
        self._is_behind = is_behind
        self._held: dict[Peer, Send] = {}

    def next_deadline_s(self) -> float | None:
        """Return when a Tick is due."""
        return self._machine.next_deadline_s()

    def handle(self, event: Any, now: float) -> list[Any]:
        """Decide what follows from the event."""
        commands = [] if isinstance(event, CaughtUp) else self._machine.handle(event, now)
        if self._is_behind():
            self._held.update((each.peer, each) for each in commands if _is_pull(each))
            return [each for each in commands if not _is_pull(each)]
        if self._held:
            commands = [*self._held.values(), *commands]
            self._held.clear()
        return commands


def _is_pull(command: object) -> bool:
    return isinstance(command, Send) and isinstance(command.message, Pull)
