"""What a process tells systemd, if that has started it (sd_notify(3)): READY, STATUS, WATCHDOG, STOPPING.

turn of the loop --> due? --> health(now) --> STATUS, and WATCHDOG while the machine says that it is well --> systemd

A loop that hangs reports nothing and a machine that is not well feeds no watchdog: either way systemd ends the
process and starts it again. Each report is the whole truth, READY included until one has got through, so none is
waited for: systemd may be busy.

There is no library behind this: `sdnotify` and `sd-notify`, in Python, have had no release since 2017 and 2020;
`systemd-python` and `cysystemd` are compiled. What they would do for us is one datagram.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic

from zswarm import limits
from zswarm.machine import Health
from zswarm.overseer import Overseer
from zswarm.transport import Switchboard


class Notifier(Overseer):
    """Reports to the socket of the service manager."""

    def __init__(
        self, address: str, *, watchdog_s: float | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        """Report to `address`: a path, or @NAME in Linux's abstract namespace; `watchdog_s`: how often at the least."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._feeds = watchdog_s is not None
        self._interval_s = limits.STATUS_S
        if watchdog_s is not None:
            self._interval_s = min(limits.STATUS_S, watchdog_s / limits.REPORTS_PER_WATCHDOG)
        self._clock = clock
        self._health: Callable[[float], Health] | None = None
        self._is_ready = False
        """systemd knows that this process is."""
        self._due_s = float("-inf")

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:  # noqa: ARG002
        """Report for the first time: this process is ready."""
        self._health = health
        self.turned()

    def turned(self) -> None:
        """Report, if the last time was long ago and the process has begun."""
        now = self._clock()
        if now < self._due_s or self._health is None:
            return
        self._due_s = now + self._interval_s
        health = self._health(now)
        lines = [] if self._is_ready else ["READY=1"]
        lines.append(f"STATUS={health.text}")
        if self._feeds and health.is_well:
            lines.append("WATCHDOG=1")
        self._is_ready |= self._tell(lines)

    def stopping(self, reason: str) -> None:
        """Say so, and nothing more: systemd's time for stopping runs."""
        self._health = None
        self._tell(["STOPPING=1", f"STATUS=stopping: {reason}"])

    def _tell(self, lines: list[str]) -> bool:
        """Send a report; False if it is lost."""
        report = "\n".join(" ".join(line.splitlines()) for line in lines)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            try:
                out.sendto(report.encode(), self._address)
            except OSError:
                return False
        return True
