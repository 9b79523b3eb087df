"""How much memory this machine, or the device, has and has left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
OWN = Path("/proc/self/statm")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
FRESH_S = 0.1
ASSUMED_BYTES = 4 << 30
"""Where the system does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes in all, bytes that can still be taken, and bytes that this process has taken."""

    total_bytes: int
    free_bytes: int
    own_bytes: int = 0


MemoryGauge = Callable[[], Memory]


def gauge_of(device: torch.device) -> MemoryGauge:
    """Return a gauge of the device's memory that reads at most every FRESH_S."""
    read = _host if device.type == "cpu" else lambda: _cuda(device)
    known = read()
    known_at_s = time.monotonic()

    def gauge() -> Memory:
        nonlocal known, known_at_s
        now = time.monotonic()
        if now - known_at_s > FRESH_S:
            known, known_at_s = read(), now
        return known

    return gauge


def _host() -> Memory:
    """Read the kernel's figures, or the control group's where it allows less."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        total_bytes, free_bytes = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError, IndexError):
        total_bytes = free_bytes = ASSUMED_BYTES
    try:
        own_bytes = int(OWN.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        own_bytes = 0
    try:
        limit_bytes = int(CGROUP_LIMIT.read_text())
        used_bytes = int(CGROUP_USED.read_text())
    except (OSError, ValueError):
        return Memory(total_bytes=total_bytes, free_bytes=free_bytes, own_bytes=own_bytes)
    return Memory(
        total_bytes=min(total_bytes, limit_bytes),
        free_bytes=max(0, min(free_bytes, limit_bytes - used_bytes)),
        own_bytes=own_bytes,
    )


def _cuda(device: torch.device) -> Memory:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    # What torch has taken from the device and does not use now is free for whatever comes next.
    own_bytes = torch.cuda.memory_allocated(device)
    idle_bytes = torch.cuda.memory_reserved(device) - own_bytes
    return Memory(total_bytes=total_bytes, free_bytes=free_bytes + idle_bytes, own_bytes=own_bytes)
