"""How often the interesting things happened: a run that never resends proves nothing about resending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from zswarm.ids import JobKind, JobStatus, NackCode
from zswarm.machine import Send
from zswarm.messages import (
    Ack,
    Backward,
    Chunk,
    Commit,
    Evaluated,
    Forward,
    Job,
    Message,
    Nack,
    Prepare,
    Reject,
    Result,
    View,
)


class Census:
    """Counts by name. A thing that is sent again is counted as such when it is sent again, not when it is lost."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.num_messages = 0
        self._sent: set[tuple[object, ...]] = set()

    def count_send(self, node: int, send: Send) -> None:
        """Note a message that leaves a node."""
        message = send.message
        kind = type(message)
        self.num_messages += 1
        identity_of = _IDENTITY.get(kind)
        if identity_of is not None:
            key = (node, send.peer, kind, *identity_of(message))
            if key in self._sent:
                self.counters[f"{kind.__name__} sent again"] += 1
            self._sent.add(key)
        name_of = _NAME.get(kind)
        if name_of is not None and (name := name_of(message)):
            self.counters[name] += 1

    def count_record(self, record: dict[str, Any]) -> None:
        """Note a record of the event log."""
        self.counters[f"{record['event']} records"] += 1
        if record["event"] == "commit" and not record["apply"]:
            self.counters["steps skipped"] += 1


def _of_microbatch(message: Any) -> tuple[object, ...]:
    return tuple(message.key)


_IDENTITY: dict[type[Message], Callable[[Any], tuple[object, ...]]] = {
    Forward: _of_microbatch,
    Backward: _of_microbatch,
    Evaluated: _of_microbatch,
    Ack: lambda message: (message.direction, *message.key),
    Job: lambda message: (message.lease,),
    Result: lambda message: (message.lease,),
    Prepare: lambda message: (message.round,),
    Commit: lambda message: (message.round,),
    Chunk: lambda message: (message.round, message.phase, message.shard, message.chunk),
}
"""What is equal when a message is sent again to the same peer."""


def _job(message: Job) -> str:
    if message.kind is not JobKind.BACKWARD:
        return ""
    return "backwards with input" if message.x is not None else "backwards without input"


_NAME: dict[type[Message], Callable[[Any], str]] = {
    Nack: lambda message: "nack busy" if message.code is NackCode.BUSY else "nack stale",
    Result: lambda message: {JobStatus.NEEDS_INPUT: "needs input", JobStatus.WRONG_STEP: "wrong step"}.get(
        message.status, ""
    ),
    Job: _job,
    Reject: lambda _: "rejects",
    View: lambda _: "views",
}
"""What else is counted about a message, by name; an empty one for nothing."""
