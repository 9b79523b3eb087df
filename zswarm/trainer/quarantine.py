"""Who is not let in again at once: a process that is cut off comes back, is cut off again, and costs as much each time.

The link between two processes may be broken for good while both reach the trainer, and a process may reach the trainer
without hearing it. Each time it is given up for that it is let in again a little later, so that the others get something
done meanwhile: at once after the first time, then after FIRST_QUARANTINE_HEARTBEATS, and twice as long after each further
time. Who has not been cut off for FORGIVEN_HEARTBEATS begins anew.
Before the first step, which all are waited for, nobody is kept out for longer than the first of these times.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from zswarm import limits
from zswarm.ids import NodeId
from zswarm.patience import patience


@dataclass(slots=True)
class _Case:
    num_times: int
    noted_at_s: float
    until_s: float


class Quarantine:
    """See the module. Nodes are remembered by their last time, MAX_ENDED_NODES of them."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._cases: dict[NodeId, _Case] = {}

    def note(self, node: NodeId, now: float) -> float:
        """A process is given up because it is cut off; returns for how long it is not let in."""
        before = self._cases.pop(node, None)
        forgiven_s = limits.FORGIVEN_HEARTBEATS * self._heartbeat_s
        num_times = before.num_times + 1 if before is not None and now - before.until_s <= forgiven_s else 1
        first_s = limits.FIRST_QUARANTINE_HEARTBEATS * self._heartbeat_s
        wait_s = patience(first_s, num_times - 1) if num_times > 1 else 0.0
        self._cases[node] = _Case(num_times, now, now + wait_s)
        if len(self._cases) > limits.MAX_ENDED_NODES:
            del self._cases[next(iter(self._cases))]
        return wait_s

    def holds(self, node: NodeId, now: float, *, at_most_s: float = inf) -> bool:
        """Is it not let in now, if nobody is kept out for longer than `at_most_s`?"""
        case = self._cases.get(node)
        return case is not None and now < min(case.until_s, case.noted_at_s + at_most_s)

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        for case in self._cases.values():
            case.noted_at_s += stall_s
            case.until_s += stall_s
