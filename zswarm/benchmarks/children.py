"""Child processes of a benchmark: started together, given a deadline, gone when the measurement is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Self

from zswarm.errors import RunFailed

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LAST_WORDS_CHARS = 2000


class Children:
    """Python processes with pipes to talk to them; leaving the context kills whoever is left.

    After `deadline_s` seconds all are killed, which their reader sees as the end of what they say.
    """

    def __init__(self, commands: Sequence[Sequence[str]], *, deadline_s: float, cores: Sequence[int] = ()) -> None:
        """Start `python COMMAND` for each command, with one thread for each operation of torch.

        With `cores` given, the i-th child runs on core `cores[i]` alone, as do all of its threads.
        """
        self._commands = commands
        self._logs: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._timer = threading.Timer(deadline_s, self._kill)
        self._deadline_s = deadline_s
        self._cores = cores

    def __enter__(self) -> Self:
        """Start them."""
        self._timer.start()
        for index, command in enumerate(self._commands):
            log = tempfile.TemporaryFile()
            self._logs.append(log)
            with _on_core(self._cores[index] if self._cores else None):
                self._processes.append(
                    subprocess.Popen(  # noqa: S603 - our own modules
                        [sys.executable, *command],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=os.environ | ONE_THREAD,
                        start_new_session=True,
                    )
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Kill who is left."""
        self._timer.cancel()
        self._kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()
        for log in self._logs:
            log.close()

    def pid(self, index: int) -> int:
        """Return the process id of a child."""
        return self._processes[index].pid

    def check(self) -> None:
        """Raise RunFailed if a child has ended."""
        for index, process in enumerate(self._processes):
            if process.poll() is not None:
                raise self._failure(index)

    def read_line(self, index: int) -> str:
        """Return what a child says next, up to the end of a line.

        Raises:
            RunFailed: it has ended, or was killed at the deadline.

        """
        stream = self._processes[index].stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise self._failure(index)
        return line.strip()

    def read_lines(self) -> list[str]:
        """Return what every child says next; raises as `read_line`."""
        return [self.read_line(index) for index in range(len(self._processes))]

    def write_line(self, text: str) -> None:
        """Say the same to every child, at once."""
        for index, process in enumerate(self._processes):
            assert process.stdin is not None
            try:
                process.stdin.write(text + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise self._failure(index) from None

    def wait(self, index: int) -> str:
        """Wait until a child has ended well, and return what it has said since the last line read.

        Raises:
            RunFailed: it ended otherwise.

        """
        stream = self._processes[index].stdout
        assert stream is not None
        text = stream.read()
        if self._processes[index].wait() != 0:
            raise self._failure(index)
        return text

    def end(self, index: int) -> str:
        """Ask a child to end (SIGTERM), and return all that it has said to its log.

        Raises:
            RunFailed: it ended otherwise than well.

        """
        self._processes[index].terminate()
        if self._processes[index].wait() != 0:
            raise self._failure(index)
        log = self._logs[index]
        log.seek(0)
        return log.read().decode(errors="replace")

    def _failure(self, index: int) -> RunFailed:
        code = self._processes[index].wait()
        log = self._logs[index]
        log.seek(0)
        words = log.read().decode(errors="replace")[-LAST_WORDS_CHARS:].strip()
        how = (
            f"was killed after {self._deadline_s:.0f} s" if code == -signal.SIGKILL else f"ended with exit code {code}"
        )
        return RunFailed(f"python {' '.join(self._commands[index])} {how}:\n{words}")

    def _kill(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """Let what is started meanwhile inherit one core; this thread itself goes back to where it was."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
