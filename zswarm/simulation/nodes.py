"""A node of the simulated swarm: a machine with a clock of its own, and a worker's compute thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.tasks import Task
from zswarm.machine import Exit
from zswarm.simulation.clock import NodeClock
from zswarm.simulation.symbolic import SymbolicCompute


class AnyMachine(Protocol):
    """A broker, a worker or the coordinator; which events it takes is known to the swarm."""

    def handle(self, event: Any, now: float) -> list[Any]:
        """Decide what follows from the event."""

    def next_deadline_s(self) -> float | None:
        """Return when it wants a Tick at the latest."""


@dataclass(slots=True, eq=False)
class ComputeThread:
    """First in, first out: one task at a time."""

    compute: SymbolicCompute
    waiting: deque[Task] = field(default_factory=deque)
    busy: bool = False


@dataclass(slots=True, eq=False)
class Node:
    """A process. `wake_at_s` is the true time of the tick that is in the queue of events, if any."""

    number: int
    name: str
    machine: AnyMachine
    clock: NodeClock
    thread: ComputeThread | None = None
    wake_at_s: float | None = None
    exit: Exit | None = None
    num_idle_ticks: int = 0


@dataclass(frozen=True, slots=True)
class Wake:
    """The time of a node's deadline has come."""


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """The compute thread is free for its next task."""


WAKE = Wake()
TASK_ENDED = TaskEnded()
