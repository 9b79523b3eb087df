"""How fast one beacon sends to another: one Probe of 8 MiB at a time, timed to its answer.

The time includes a round trip and the checksums at both ends: what is found is what a payload of that size would
find, not what the cable can do. The connection exists already, and whoever asks is told of every failure, or after
MEASURE_S that there was no answer.
"""

from __future__ import annotations

from functools import cache

from zswarm import limits, wire
from zswarm.ids import Address, Peer
from zswarm.machine import Send
from zswarm.membership import RUNLESS
from zswarm.messages import Load, Measure, Measured, Probe, Probed, TensorSpec

BUSY = "it measures something else: ask again"
UNKNOWN = "it does not reach that address itself"


@cache
def _load() -> Load:
    """Return the probe's payload: zeros, which nothing between two processes compresses."""
    shape = (limits.PROBE_BYTES // limits.MAX_FRAME_BYTES, limits.MAX_FRAME_BYTES)
    spec = TensorSpec(codec=wire.IDENTITY_CODEC, dtype="uint8", shape=shape, size_bytes=limits.PROBE_BYTES)
    return wire.parcelled(bytes(limits.PROBE_BYTES), (spec,))


class Measurement:
    """See the module: at most one is in work."""

    def __init__(self) -> None:
        self._number = 0
        self._target: Address | None = None
        self._asker: Peer = Address("")
        self._begun_s = 0.0
        self.deadline_s = float("inf")

    def begin(self, message: Measure, asker: Peer, now: float, *, is_known: bool) -> list[Send]:
        """Send a probe to `message.address`, or say why not."""
        if self._target is not None:
            return [_told(asker, message.address, problem=BUSY)]
        if not is_known:
            return [_told(asker, message.address, problem=UNKNOWN)]
        self._number += 1
        self._target, self._asker, self._begun_s = message.address, asker, now
        self.deadline_s = now + limits.MEASURE_S
        load = _load()
        probe = Probe(**RUNLESS, number=self._number, parcel=load.parcel)
        return [Send(peer=message.address, message=probe, frames=load.frames)]

    def probed(self, message: Probed, peer: Peer, now: float) -> list[Send]:
        """Tell whoever asked how long that took."""
        if self._target is None or peer != self._target or message.number != self._number:
            return []
        rate = limits.PROBE_BYTES / max(now - self._begun_s, 1e-6)
        return [self._end(bytes_per_s=rate)]

    def expired(self, now: float) -> list[Send]:
        """Give up what takes too long."""
        if now < self.deadline_s:
            return []
        return [self._end(problem=f"no answer to {limits.PROBE_BYTES >> 20} MiB within {limits.MEASURE_S:.0f} s")]

    def _end(self, *, bytes_per_s: float = 0.0, problem: str = "") -> Send:
        assert self._target is not None
        told = _told(self._asker, self._target, bytes_per_s=bytes_per_s, problem=problem)
        self._target, self.deadline_s = None, float("inf")
        return told


def _told(asker: Peer, address: Address, *, bytes_per_s: float = 0.0, problem: str = "") -> Send:
    message = Measured(**RUNLESS, address=address, bytes_per_s=bytes_per_s, problem=problem)
    return Send(peer=asker, message=message)
