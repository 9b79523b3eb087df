"""What every machine is made of: events in, commands out, and no other way in or out.

A machine is a plain class that decides without doing:

    handle(event, now) -> list[Command]     what follows from this event at this (monotonic) time
    next_deadline_s() -> float | None       when it wants a Tick at the latest

`now` is in seconds of the process's own monotonic clock; no time stamp crosses machines. Commands are
carried out in their order. The service of a process and the simulator run the same machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from zswarm.ids import Peer
from zswarm.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A checked message came from `peer`; `frames` are its payload, opaque to machines."""

    peer: Peer
    message: Message
    frames: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed."""


ASKED = "asked to leave"
"""Why a process has gone that was told Leave, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A worker or broker is asked to go, by its user or by the system; asked a second time, it goes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a message; it may get lost, be repeated or be overtaken, and the machine counts on nothing else."""

    peer: Peer
    message: Message
    frames: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The process has nothing left to do; `text` says why. Code 0 is success."""

    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a machine says of itself to whoever looks after its process; `text` is one line for people.

    A process that is not well makes no progress and cannot help itself: it has to be ended and started again.
    """

    text: str
    is_well: bool = True
    silent_s: float = 0.0
    """How long a broker or worker has not heard its trainer."""


E_contra = TypeVar("E_contra", contravariant=True)
C = TypeVar("C")


class Machine(Protocol[E_contra, C]):
    """The interface above, for services and the simulator."""

    def handle(self, event: E_contra, now: float) -> list[C]:
        """Decide what follows from the event."""

    def next_deadline_s(self) -> float | None:
        """Return the monotonic time of the next Tick wanted, or None."""
