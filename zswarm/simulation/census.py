"""How often the interesting things happened: a run that never resends proves nothing about resending."""

from __future__ import annotations

from collections import Counter
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
        self._sent: set[tuple[object, ...]] = set()

    def count_send(self, node: int, send: Send) -> None:
        """Note a message that leaves a node."""
        counters = self.counters
        message = send.message
        counters["messages"] += 1
        identity = _identity(message)
        if identity is not None:
            key = (node, send.peer, *identity)
            if key in self._sent:
                counters[f"{type(message).__name__} sent again"] += 1
            self._sent.add(key)
        match message:
            case Nack():
                counters["nack busy" if message.code is NackCode.BUSY else "nack stale"] += 1
            case Result() if message.status is JobStatus.NEEDS_INPUT:
                counters["needs input"] += 1
            case Result() if message.status is JobStatus.WRONG_STEP:
                counters["wrong step"] += 1
            case Job() if message.kind is JobKind.BACKWARD:
                counters["backwards with input" if message.x is not None else "backwards without input"] += 1
            case Reject():
                counters["rejects"] += 1
            case View():
                counters["views"] += 1
            case _:
                pass

    def count_record(self, record: dict[str, Any]) -> None:
        """Note a record of the event log."""
        self.counters[f"{record['event']} records"] += 1
        if record["event"] == "commit" and not record["apply"]:
            self.counters["steps skipped"] += 1


def _identity(message: Message) -> tuple[object, ...] | None:
    """Return what is equal when a message is sent again to the same peer; None where that says nothing."""
    match message:
        case Forward() | Backward() | Evaluated():
            return (type(message), message.key)
        case Ack():
            return (Ack, message.direction, message.key)
        case Job():
            return (Job, message.lease)
        case Result():
            return (Result, message.lease)
        case Prepare() | Commit():
            return (type(message), message.round)
        case Chunk():
            return (Chunk, message.round, message.phase, message.shard, message.chunk)
        case _:
            return None
