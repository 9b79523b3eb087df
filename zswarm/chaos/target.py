"""The run under attack: `zswarm local` and what it has started. Nobody else is ever sent a signal.

Whatever becomes of this process, nothing of the run outlives it: a guard, a shell that reads from a pipe whose other
end is here, kills the run's process group when the pipe is closed without a farewell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import psutil

END_WITHIN_S = 5.0
"""After a termination signal; whoever is left then is killed."""
POLL_S = 0.02
GUARD = 'read -r farewell || kill -s KILL -- "-$0"'
PROCESSES = "processes.json"


class Target:
    """A run in a process group of its own; leaving the context ends it."""

    def __init__(self, command: Sequence[str], *, folder: Path, log: Path) -> None:
        """Start `command`, a `zswarm local` into the run folder `folder`; what it says on stderr goes to `log`."""
        self._command = command
        self._processes = folder / PROCESSES
        self._log = log
        self._frozen: dict[str, psutil.Process] = {}

    def __enter__(self) -> Self:
        """Start it."""
        with self._log.open("wb") as log:
            self._run = subprocess.Popen(  # noqa: S603 - our own command
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, process_group=0
            )
        try:
            self._main = psutil.Process(self._run.pid)
            self._guard = subprocess.Popen(  # noqa: S603 - a constant and a number
                ["/bin/sh", "-c", GUARD, str(self._run.pid)], stdin=subprocess.PIPE, process_group=0
            )
        except BaseException:
            self._kill_group()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Continue who is frozen, end everybody."""
        for name in list(self._frozen):
            self.resume(name)
        if not self.has_ended:
            self._main.terminate()
            deadline_s = monotonic() + END_WITHIN_S
            while not self.has_ended and monotonic() < deadline_s:
                time.sleep(POLL_S)
        self._kill_group()
        assert self._guard.stdin is not None
        self._guard.communicate(b"farewell\n")

    @property
    def has_ended(self) -> bool:
        """Whether its main process has ended; others of it may be left.

        It is not waited for before the context is left: as long as it is a zombie, its group's number is its own.
        """
        return self._main.status() == psutil.STATUS_ZOMBIE

    @property
    def code(self) -> int:
        """Its exit code, or minus the signal that killed it; known once the context has been left."""
        return self._run.returncode

    @property
    def frozen(self) -> set[str]:
        """Who is frozen now."""
        return set(self._frozen)

    def last_words(self) -> str:
        """Return the end of what it said."""
        return "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-20:])

    def living(self) -> dict[str, psutil.Process]:
        """Return the run's processes that live and are not frozen."""
        found = {}
        for name, pid in self._pids().items():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                is_ours = any(parent.pid == self._run.pid for parent in process.parents())
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and self._frozen.get(name) != process:
                    found[name] = process
        return found

    def kill(self, process: psutil.Process) -> bool:
        """Kill one of the living; False if it was gone already.

        psutil never signals a process that has got the number of another one meanwhile.
        """
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return False
        return True

    def freeze(self, name: str, process: psutil.Process) -> bool:
        """Stop one of the living until `resume`; False if it was gone already."""
        self._frozen[name] = process
        try:
            process.send_signal(signal.SIGSTOP)
        except psutil.NoSuchProcess:
            del self._frozen[name]
            return False
        return True

    def resume(self, name: str) -> None:
        """Let a frozen process go on, if it still exists."""
        with suppress(psutil.NoSuchProcess):
            self._frozen[name].send_signal(signal.SIGCONT)
        del self._frozen[name]

    def _pids(self) -> dict[str, int]:
        """Return what the run says of itself; nothing while it is being written."""
        try:
            found = json.loads(self._processes.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return {name: pid for name, pid in found.items() if type(pid) is int and pid > 1}

    def _kill_group(self) -> None:
        os.killpg(self._run.pid, signal.SIGKILL)
        self._run.wait()
