"""The thread that waits for the disk where checkpoints are, so that the trainer's loop never does.

    store, seal, forsake, read, tidy --> queue --> Checkpoints --> events() and wake()

A disk that is slower than the swarm falls behind: then the archive asks for no more of a checkpoint until it has caught up,
and training goes on.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, assert_never

from zswarm import limits
from zswarm.ids import Version
from zswarm.logs import get_log
from zswarm.trainer.settings import Behind, CaughtUp, Forsake, Read, Seal, Sealed, Store, WasRead

BEHIND = 16
"""Commands that wait when the disk is behind: with STATE_RANGE_BYTES, 64 MiB to write. It has caught up at half of that."""
STOP_TIMEOUT_S = 1.0
"""How long leaving waits for what the disk is at; the process ends in any case, the thread is a daemon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidy:
    """The log says which checkpoint is the newest, or that the run has gone `back_to` a step on a new branch."""

    back_to: Version | None = None


Command = Store | Seal | Forsake | Read | Tidy
Event = Sealed | WasRead | CaughtUp


class Disk(Protocol):
    """What the thread calls; see `Checkpoints`."""

    def store(self, command: Store) -> None:
        """Write a range."""

    def seal(self, version: Version) -> Sealed:
        """Make a checkpoint durable."""

    def forsake(self, version: Version) -> None:
        """Remove what was written of one."""

    def read(self, command: Read) -> WasRead:
        """Read a range."""

    def tidy(self, back_to: Version | None) -> None:
        """Remove what is no longer of use."""


class CheckpointThread:
    """A context manager around the thread; `wake` is called from it after each event."""

    def __init__(self, disk: Disk, *, wake: Callable[[], None]) -> None:
        self._disk = disk
        self._wake = wake
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        self._is_behind = False
        """Set by whoever submits, cleared by the thread, each with an event."""
        self._num_reads = 0
        """Reads that have not been answered."""
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commands.put(None)
        self._thread.join(STOP_TIMEOUT_S)

    def submit(self, command: Command) -> list[Behind]:
        """Take a command. Never waits: a Read that comes while many wait is dropped, as if it had been lost on its way,
        and comes again. Returns what the coordinator is to hear at once."""
        if isinstance(command, Read):
            if self._num_reads >= limits.MAX_PULLS:
                return []
            self._num_reads += 1
        self._commands.put(command)
        if self._is_behind or self._commands.qsize() < BEHIND:
            return []
        self._is_behind = True
        return [Behind()]

    def events(self) -> list[Event]:
        """Take the answers that have come since the last call, in order."""
        taken: list[Event] = []
        while self._events:
            event = self._events.popleft()
            self._num_reads -= isinstance(event, WasRead)
            taken.append(event)
        return taken

    def _run(self) -> None:
        while (command := self._commands.get()) is not None:
            if self._is_behind and self._commands.qsize() <= BEHIND // 2:
                self._is_behind = False
                self._put(CaughtUp())
            try:
                self._perform(command)
            except Exception as error:  # noqa: BLE001 - the top of the thread
                get_log().error("checkpoint", reason=f"{type(error).__name__}: {error}")
                self._answer_failure(command, f"this is a bug of zswarm: {type(error).__name__}: {error}")

    def _perform(self, command: Command) -> None:
        match command:
            case Store():
                self._disk.store(command)
            case Seal():
                self._put(self._disk.seal((command.branch, command.step)))
            case Forsake():
                self._disk.forsake((command.branch, command.step))
            case Read():
                self._put(self._disk.read(command))
            case Tidy():
                self._disk.tidy(command.back_to)
            case _:
                assert_never(command)

    def _answer_failure(self, command: Command, problem: str) -> None:
        if isinstance(command, Seal):
            self._put(Sealed(branch=command.branch, step=command.step, problem=problem))
        elif isinstance(command, Read):
            self._put(WasRead(peer=command.peer, pull=command.pull, total_bytes=0, load=None, problem=problem))

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake()
