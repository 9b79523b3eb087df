"""What a worker that leaves has counted, given in ranges; and what another one has got of it, until it is added.

the leaver   file: a copy of the accumulator, from the first range on that is asked for
the heir     receive_untrusted, range by range --all of it--> take: added --or clear: forgotten
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stages.accumulation import Accumulator
from stages.state import Incoming
from zswarm.errors import LocalProtocolError, RemoteProtocolError


class Share:
    """See the module."""

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        self._num_bytes = accumulator.num_values * accumulator.dtype.itemsize
        self.clear()

    def clear(self) -> None:
        """Forget both: what has been counted is void, or in a step."""
        self._given: memoryview | None = None
        self._incoming = Incoming(self._num_bytes)

    def file(self, *, is_begun: bool) -> memoryview:
        """Return all that has been counted, the same bytes for every range of one file."""
        if self._given is None or not is_begun:
            self._given = self._accumulator.contribution().data.cast("B")
        return self._given

    def receive_untrusted(self, *, offset_bytes: int, total_bytes: int, frames: Iterable[Any]) -> None:
        """Take a range of what another worker has counted; one at offset 0 begins it anew.

        Raises:
            RemoteProtocolError: it does not fit, or does not follow the one before.

        """
        if total_bytes != self._num_bytes:
            raise RemoteProtocolError(f"a share of {total_bytes} bytes, of a stage whose have {self._num_bytes}")
        if offset_bytes == 0:
            self._incoming = Incoming(total_bytes)
        self._incoming.take_untrusted("a share", offset_bytes, total_bytes, frames)

    def take(self) -> None:
        """Add what has been received to what has been counted.

        Raises:
            LocalProtocolError: it is not complete.

        """
        content = self._incoming.content
        if len(content) != self._num_bytes:
            raise LocalProtocolError(f"a share is to be added of which {len(content)} bytes are here")
        self._accumulator.add(torch.frombuffer(content, dtype=self._accumulator.dtype))
        self._incoming = Incoming(self._num_bytes)
