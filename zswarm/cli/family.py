"""The children of one command: forked, watched, and ended with it however it ends.

Forking instead of starting anew is what makes eight workers cost one import of torch. Every child holds
the reading end of a lifeline: if this process vanishes, they see it and end themselves. If a child stops turning, this
process sees that and kills it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Self

from zswarm.errors import HANGS, TRY_LATER, NotYet, RunFailed, UserError, ZswarmError
from zswarm.lifeline import Lifeline, Pulse
from zswarm.logs import set_up_logs

CRASHED = 70
"""Exit code of a child that ended with an unexpected exception, as `EX_SOFTWARE` of sysexits.h."""

WATCHDOG_S = 60.0
"""A child that has not turned for so long is killed, as systemd does it for the services (deploy/systemd)."""
STALL_S = 5.0
"""A parent that has not looked for so long was not running itself, and its children may not have been, either."""
LOG_LEVEL = "warning"
"""Of the children: what a run has to say goes to its user and its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A child that is gone."""

    name: str
    code: int
    """Its exit code, or minus the signal that killed it."""

    def describe(self) -> str:
        """Say how it ended."""
        if self.code < 0:
            return f"{self.name} was killed by {signal.Signals(-self.code).name}"
        why = " (its device hangs)" if self.code == HANGS else ""
        return f"{self.name} ended with exit code {self.code}{why}"


class Family:
    """See the module. A context manager: on leaving, whoever still lives is killed."""

    def __init__(self, *, is_gentle: bool = False, watchdog_s: float = WATCHDOG_S) -> None:
        """Begin without children; see Lifeline for `is_gentle`."""
        self.lifeline = Lifeline(is_gentle=is_gentle)
        self._watchdog_s = watchdog_s
        self._names: dict[int, str] = {}
        self._pulses: dict[int, Pulse] = {}
        self._looked_s = self._fair_from_s = monotonic()

    def fork(self, name: str, body: Callable[[], int]) -> int:
        """Run `body` in a child, whose exit code it returns; returns the child's process id.

        A Ctrl-C that comes meanwhile waits, or it would be the child's too until it has learnt to ignore it.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        pulse = Pulse()
        gc.freeze()  # a child that looks through what was there before it has each page of it copied, and takes long
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            pid = os.fork()
            if pid:
                self._names[pid], self._pulses[pid] = name, pulse
                return pid
            # A later life is forked while its parent waits for signals: what it does about them is not the child's.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = CRASHED
        try:
            self.lifeline.enter_child(pulse)
            set_up_logs(name, level=LOG_LEVEL)
            code = body()
        except ZswarmError as error:
            code = TRY_LATER if isinstance(error, NotYet) else 2 if isinstance(error, UserError) else 1
            print(f"zswarm: {name}: {error}", file=sys.stderr)
        except BaseException:  # noqa: BLE001 - the top of this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def reap(self) -> dict[int, Ended]:
        """Return the children that have ended since the last call; does not wait."""
        ended = {}
        for pid, name in list(self._names.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._names[pid], self._pulses[pid]
                ended[pid] = Ended(name=name, code=os.waitstatus_to_exitcode(status))
        return ended

    def kill_hung(self) -> list[str]:
        """Kill the children that do not turn any more; returns their names. To be called every second."""
        now = monotonic()
        if now - self._looked_s > STALL_S:
            self._fair_from_s = now
        self._looked_s = now
        limit_s = self._watchdog_s
        if now - self._fair_from_s < limit_s:
            return []
        hung = [pid for pid, pulse in self._pulses.items() if pulse.overdue_s(now) > limit_s]
        for pid in hung:
            os.kill(pid, signal.SIGKILL)
            self._pulses[pid].beat(0.0)
        return [self._names[pid] for pid in hung]

    def processes(self) -> dict[str, int]:
        """Return the process ids of the children that have not been reaped, by name."""
        return {name: pid for pid, name in self._names.items()}

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a child, if it has not been reaped."""
        pid = self.processes().get(name)
        if pid is not None:
            os.kill(pid, number)

    def end(self, *, grace_s: float) -> None:
        """Wait for everybody for `grace_s`, then kill who is left."""
        deadline_s = monotonic() + grace_s
        with wake_on_signals() as wait:
            while self._names and monotonic() < deadline_s:
                self.reap()
                if self._names:
                    wait(min(0.1, max(0.0, deadline_s - monotonic())))
        for pid in self._names:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._names):
            os.waitpid(pid, 0)
            del self._names[pid], self._pulses[pid]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(grace_s=0.0)


@contextmanager
def wake_on_signals() -> Iterator[Callable[[float], bytes]]:
    """Give a function that waits up to so many seconds for signals and returns their numbers, one byte each."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        before_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)}
        try:

            def wait(timeout_s: float) -> bytes:
                readable, _, _ = select.select([ours], [], [], timeout_s)
                return ours.recv(4096) if readable else b""

            yield wait
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)


def free_port(host: str) -> int:
    """Return a TCP port of `host` that nobody listens on now."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise RunFailed(f"no free port on {host}: {error.strerror}") from None
