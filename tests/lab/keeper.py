"""The process that carries a laboratory's delayed packets, and takes the laboratory away when it is over.

    python -m tests.lab.keeper LAB OWNER

A link with latency is a pair of TAP devices, one in the machine's namespace and one in the switch's; this process
carries packets across after the delay. Segmentation offload makes them up to 64 KiB each, so that Python is fast enough.

It is asked for links by lines of JSON on stdin. The end of stdin, or of the process OWNER, however that ends, is the end
of the laboratory. Ctrl-C and SIGTERM are not for this process.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from tests.lab.ground import LabError, inside, precise_timers, remove

MAX_HELD_BYTES = 64 << 20
"""Of one direction of a link; what exceeds it is lost, as in any queue."""
MAX_PACKET_BYTES = 70_000
BURST = 32
"""Packets of one link in a row."""
SET_INTERFACE, SET_OFFLOAD = 0x400454CA, 0x400454D0
TAP_WITHOUT_HEADER_BUT_OFFLOAD = 0x5002
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR."""
ALL_OFFLOADS = 0x0F
"""Checksums, TCP segmentation for IPv4 and IPv6, with ECN."""


class Wire:
    """One direction of a link: packets that are due at the device `out`, in order."""

    def __init__(self, out: int, delay_s: float) -> None:
        self._out = out
        self._delay_s = delay_s
        self._held_bytes = 0
        self._packets: deque[tuple[float, bytes]] = deque()

    @property
    def due_s(self) -> float:
        """When the next packet is due."""
        return self._packets[0][0] if self._packets else float("inf")

    def put(self, packet: bytes, now: float) -> None:
        if self._held_bytes < MAX_HELD_BYTES:
            self._packets.append((now + self._delay_s, packet))
            self._held_bytes += len(packet)

    def deliver(self, now: float) -> None:
        while self.due_s <= now:
            _, packet = self._packets.popleft()
            self._held_bytes -= len(packet)
            with suppress(OSError):  # the device may be down: the packet is lost
                os.write(self._out, packet)


class Keeper:
    """See the module."""

    def __init__(self, lab: str, owner: int) -> None:
        self._lab = lab
        self._owner = os.pidfd_open(owner)
        self._wires: dict[int, Wire] = {}
        self._text = b""

    def run(self) -> None:
        """Carry packets until it is over."""
        while True:
            wait_s = min((wire.due_s for wire in self._wires.values()), default=float("inf")) - time.monotonic()
            timeout_s = None if wait_s == float("inf") else max(0.0, wait_s)
            ready = set(select.select([0, self._owner, *self._wires], [], [], timeout_s)[0])
            for fd in ready & self._wires.keys():
                self._carry(fd, time.monotonic())
            for wire in self._wires.values():
                wire.deliver(time.monotonic())
            if self._owner in ready or (0 in ready and not self._listen()):
                return

    def _carry(self, fd: int, now: float) -> None:
        with suppress(BlockingIOError):
            for _ in range(BURST):
                self._wires[fd].put(os.read(fd, MAX_PACKET_BYTES), now)

    def _listen(self) -> bool:
        """Read what is asked for; False at the end."""
        chunk = os.read(0, 1 << 16)
        *lines, self._text = (self._text + chunk).split(b"\n")
        for line in lines:
            os.write(1, self._answer(json.loads(line)).encode() + b"\n")
        return bool(chunk)

    def _answer(self, ask: dict[str, Any]) -> str:
        try:
            near, far = _tap(ask["namespace"], "eth0"), _tap(self._lab, ask["port"])
        except (OSError, LabError) as error:
            return f"no link with latency can be made (/dev/net/tun): {error}"
        self._wires |= {near: Wire(far, ask["delay_s"]), far: Wire(near, ask["delay_s"])}
        return "ok"


def _tap(namespace: str, name: str) -> int:
    """Make a TAP device in a network namespace; returns its file descriptor."""
    with inside(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADER_BUT_OFFLOAD))
    fcntl.ioctl(fd, SET_OFFLOAD, ALL_OFFLOADS)
    return fd


def main(lab: str, owner: int) -> None:
    """Keep a laboratory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # on time even when all cores are busy
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    precise_timers()
    try:
        Keeper(lab, owner).run()
    finally:
        remove(lab)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
