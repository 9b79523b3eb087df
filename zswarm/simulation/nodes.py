"""A node of the simulated swarm: a process with a name, a clock, and one life after the other.

A life is a machine and, for a worker, a compute thread. Whatever is on its way to a life that has ended is
lost. A node that is frozen handles nothing: what comes meanwhile waits until it thaws.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from stages.tasks import Outcome, Reset, Run, Task
from zswarm.ids import Address
from zswarm.machine import Exit
from zswarm.simulation.clock import NodeClock
from zswarm.simulation.symbolic import SymbolicCompute


class AnyMachine(Protocol):
    """A broker, a worker or the coordinator; which events it takes is known to the swarm."""

    def handle(self, event: Any, now: float) -> list[Any]:
        """Decide what follows from the event."""

    def next_deadline_s(self) -> float | None:
        """Return when it wants a Tick at the latest."""


class Nobody:
    """What a node has in place of a machine while it is down."""

    def handle(self, event: Any, now: float) -> list[Any]:
        """Nothing may come here."""
        raise AssertionError(f"a process that is down handles {event} at {now}")

    def next_deadline_s(self) -> float | None:
        """Want nothing."""
        return None


NOBODY = Nobody()


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """The compute thread is free for its next task."""


TASK_ENDED = TaskEnded()
FromThread = tuple[float, Outcome | TaskEnded]
"""In how many seconds what comes from the thread."""


@dataclass(slots=True, eq=False)
class ComputeThread:
    """First in, first out: one task at a time, and what jobs have left unfinished while none waits, or before one that
    is no job. One that hangs never ends, and neither does its next."""

    compute: SymbolicCompute
    waiting: deque[Task] = field(default_factory=deque)
    busy: bool = False
    hangs: bool = False
    silent_since_s: float = 0.0
    """Since when there is a task and no outcome, by the clock of its node."""
    answers: bool = False
    """Does what is in work end with an outcome? A part of a job that is not the last does not."""

    def submit(self, task: Task, now: float) -> list[FromThread]:
        """Take a task, and begin it if the thread is free."""
        self.waiting.append(task)
        if self.busy:
            return []
        self.silent_since_s = now
        return self._begin()

    def ended(self, now: float) -> list[FromThread]:
        """The task, or a part of what is unfinished, has ended: begin the next."""
        self.busy = False
        if self.answers:
            self.silent_since_s = now
        return self._begin() if self.waiting or self.compute.unfinished else []

    def _begin(self) -> list[FromThread]:
        self.busy = True
        goes_on = self.compute.unfinished and not (self.waiting and isinstance(self.waiting[0], Run | Reset))
        outcomes, took_s = self.compute.go_on() if goes_on else self.compute.start(self.waiting.popleft())
        self.answers = bool(outcomes)
        return [*outcomes, (took_s, TASK_ENDED)]


@dataclass(slots=True, eq=False)
class Node:
    """See the module. `wake_at_s` is the true time of the tick that is in the queue of events, if any."""

    number: int
    name: str
    clock: NodeClock
    addresses: tuple[Address, ...]
    machine: AnyMachine = NOBODY
    thread: ComputeThread | None = None
    life: int = 0
    """Counts: one more when it is born, one more when it dies. What was meant for another life is lost."""
    wake_at_s: float | None = None
    exit: Exit | None = None
    frozen_at_s: float | None = None
    held: list[tuple[float, Any]] = field(default_factory=list)
    """What came while it was frozen, and when."""
    num_idle_ticks: int = 0
    idle_at_s: float = -1.0

    @property
    def is_up(self) -> bool:
        """Does it live?"""
        return self.machine is not NOBODY and self.exit is None


@dataclass(frozen=True, slots=True)
class Wake:
    """The time of a node's deadline has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a node has decided and not yet done, because it was frozen in the middle."""

    commands: list[Any]


WAKE = Wake()
