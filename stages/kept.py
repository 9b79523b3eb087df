"""What a worker keeps of the microbatches whose backward is still to come.

    recompute   kept for each microbatch
    always      the stage input, as it was received
    never       autograd's graph while 5 % of the memory stays free, else the input
    auto        autograd's graph while half of the memory stays free, else the input

A graph saves the second forward, a quarter of all computing; an input saves the broker sending it again.
Inputs are kept up to INPUT_BYTES, the oldest dropped first; a backward that finds neither asks for the
input.
"""

from __future__ import annotations

from collections import OrderedDict

from stages.engine import Graph
from stages.memory import MemoryGauge
from zswarm.errors import LocalProtocolError
from zswarm.messages import Key, Load

FREE_SHARE = {"always": 2.0, "never": 0.05, "auto": 0.5}
"""Share of the memory that stays free; more than all of it keeps no graph."""
INPUT_BYTES = 256 << 20


class Kept:
    """See the module."""

    def __init__(self, recompute: str, gauge: MemoryGauge, *, input_bytes: int = INPUT_BYTES) -> None:
        if recompute not in FREE_SHARE:
            raise LocalProtocolError(f"recompute {recompute!r} is not one of {', '.join(FREE_SHARE)}")
        self._share = FREE_SHARE[recompute]
        self._gauge = gauge
        self._most_input_bytes = input_bytes
        self._input_bytes = 0
        self._graphs: dict[Key, Graph] = {}
        self._inputs: OrderedDict[Key, Load] = OrderedDict()
        self.graph_bytes = 0
        """Size of one graph, once known: the room that is needed for another one."""

    def has_room(self) -> bool:
        """Is there memory for one more graph?"""
        if self._share > 1.0:
            return False
        memory = self._gauge()
        return memory.free_bytes - self.graph_bytes >= self._share * memory.total_bytes

    def put(self, key: Key, x: Load, graph: Graph | None) -> bool:
        """Keep a microbatch; return whether its backward can do without its input."""
        if graph is not None:
            self._graphs[key] = graph
        size_bytes = x.parcel.size_bytes
        if size_bytes <= self._most_input_bytes and key not in self._inputs:
            self._inputs[key] = x
            self._input_bytes += size_bytes
        while self._input_bytes > self._most_input_bytes:
            _, dropped = self._inputs.popitem(last=False)
            self._input_bytes -= dropped.parcel.size_bytes
        return key in self._graphs or key in self._inputs

    def take(self, key: Key) -> tuple[Graph | None, Load | None]:
        """Give up what is kept of a microbatch."""
        x = self._inputs.pop(key, None)
        if x is not None:
            self._input_bytes -= x.parcel.size_bytes
        return self._graphs.pop(key, None), x

    def clear(self) -> None:
        """Give up everything."""
        self._graphs.clear()
        self._inputs.clear()
        self._input_bytes = 0
