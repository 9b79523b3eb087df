"""What a worker has counted, given in ranges; and what another one has got of it, until it is added.

the owner   file: a copy of the accumulator, from the first range on that is asked for
the heir    receive_untrusted, range by range --all of it--> held --take: added --another begins, or clear: forgotten

With the codec bf16 it is rounded to that, as each share of an all-reduce is then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stages.accumulation import Accumulator
from stages.state import Incoming
from zswarm.config import AllReduceCodec
from zswarm.errors import LocalProtocolError, RemoteProtocolError


class Share:
    """See the module. Copies are known by their ledgers, bitmaps of microbatches."""

    def __init__(self, accumulator: Accumulator, codec: AllReduceCodec) -> None:
        self._accumulator = accumulator
        self._dtype = torch.bfloat16 if codec == "bf16" else accumulator.dtype
        self._num_bytes = accumulator.num_values * self._dtype.itemsize
        self.clear()

    def clear(self) -> None:
        """Forget all: what has been counted is void, or in a step."""
        self._given: memoryview | None = None
        self._ledger, self._incoming = 0, Incoming(self._num_bytes)
        self._held: dict[int, bytearray] = {}

    def file(self, *, is_begun: bool) -> memoryview:
        """Return all that has been counted, the same bytes for every range of one file."""
        if self._given is None or not is_begun:
            values = torch.from_numpy(self._accumulator.contribution()).to(self._dtype)
            self._given = values.view(torch.uint8).numpy().data
        return self._given

    def receive_untrusted(
        self, ledger: int, *, kept: int, offset_bytes: int, total_bytes: int, frames: Iterable[Any]
    ) -> None:
        """Take a range of what another worker has counted; one at offset 0 begins it anew, and ends all but what is `kept`.

        Raises:
            RemoteProtocolError: it does not fit, or does not follow the one before.

        """
        if total_bytes != self._num_bytes:
            raise RemoteProtocolError(f"a share of {total_bytes} bytes, of a stage whose have {self._num_bytes}")
        if offset_bytes == 0:
            self._ledger, self._incoming = ledger, Incoming(total_bytes)
            self._held = {kept: self._held[kept]} if kept in self._held else {}
        if ledger != self._ledger:
            raise RemoteProtocolError("a share: a range of another copy than the one before")
        self._incoming.take_untrusted("a share", offset_bytes, total_bytes, frames)
        if len(self._incoming.content) == total_bytes:
            self._held[ledger] = self._incoming.content
            self._incoming = Incoming(self._num_bytes)

    def take(self, ledger: int) -> None:
        """Add what has been received of this ledger to what has been counted.

        Raises:
            LocalProtocolError: it is not complete.

        """
        if ledger not in self._held:
            raise LocalProtocolError("a share is to be added that is not here")
        self._accumulator.add(torch.frombuffer(self._held[ledger], dtype=self._dtype))
        self._held.clear()
