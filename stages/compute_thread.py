"""The thread that owns the device: tasks in, outcomes out, a call to wake whoever waits for them.

    submit(task) --> bounded queue --> Compute.perform --> outcomes() and wake()
                     empty ----------> Compute.go_on ----> outcomes() and wake()

A task that has begun is not interrupted, but for what `perform` has left unfinished: that is done in small parts
while no task waits. On leaving, the thread stops between two outcomes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import torch

from stages.compute import Compute
from stages.engine import one_line
from stages.tasks import Broken, Failed, Outcome, Task
from zswarm.allocator import keep_freed_memory
from zswarm.errors import LocalProtocolError

QUEUE_LENGTH = 256
"""Tasks that wait. A worker asks for one job at a time, a few tasks per round, and an export per Pull."""
STOP_TIMEOUT_S = 1.0
"""How long leaving waits for the task that runs; the process ends in any case, the thread is a daemon."""


class Performer(Protocol):
    """What carries out tasks."""

    @property
    def has_unfinished(self) -> bool:
        """Is there something left to go on with?"""

    def perform(self, task: Task) -> Iterator[Outcome]:
        """Carry out a task."""

    def go_on(self) -> Iterator[Outcome]:
        """Do a part of what is unfinished."""


class ComputeThread:
    """A context manager around the thread; `threads` is what torch may use for one operation.

    `wake` is called from the thread after each outcome.
    """

    def __init__(self, *, wake: Callable[[], None], threads: int = 1, make: Callable[[], Performer] = Compute) -> None:
        self._wake = wake
        self._threads = threads
        self._make = make
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._outcomes: deque[Outcome] = deque()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopping.set()
        self._tasks.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    @property
    def is_alive(self) -> bool:
        """Has the thread not ended yet?"""
        return self._thread.is_alive()

    def submit(self, task: Task) -> None:
        """Queue a task.

        Raises:
            LocalProtocolError: QUEUE_LENGTH tasks wait already.

        """
        if self._tasks.qsize() >= QUEUE_LENGTH:
            raise LocalProtocolError(f"more than {QUEUE_LENGTH} tasks wait for the compute thread")
        self._tasks.put(task)

    def outcomes(self) -> list[Outcome]:
        """Take the outcomes that have come since the last call, in order."""
        taken = []
        while self._outcomes:
            taken.append(self._outcomes.popleft())
        return taken

    def _run(self) -> None:
        try:
            keep_freed_memory()
            torch.set_num_threads(self._threads)
            compute = self._make()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what this machine's device does is no fault of the run
            self._put(Broken(text=f"the device cannot be used: {one_line(error)}"))
            return
        try:
            while (outcomes := self._begin(compute)) is not None:
                for outcome in outcomes:
                    self._put(outcome)
                    if self._is_stopping.is_set():
                        return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the top of the thread
            self._put(Failed(layer="compute thread", text=one_line(error)))

    def _begin(self, compute: Performer) -> Iterator[Outcome] | None:
        """Return the outcomes of what is to be done next, which begins as they are asked for; None to end."""
        try:
            task = self._tasks.get(block=not compute.has_unfinished)
        except queue.Empty:
            return compute.go_on()
        return compute.perform(task) if task is not None else None

    def _put(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._wake()
