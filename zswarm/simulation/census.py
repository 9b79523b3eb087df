"""How often the interesting things happened: a run that never resends proves nothing about resending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from zswarm.ids import TRAINER, JobKind, JobStatus, NackCode, Purpose, StatePart
from zswarm.ledger import from_bytes
from zswarm.machine import Send
from zswarm.messages import (
    Abort,
    Ack,
    Backward,
    Chunk,
    Commit,
    Drained,
    Evaluated,
    Fence,
    Forward,
    Job,
    Message,
    Nack,
    Prepare,
    Pull,
    Register,
    Reject,
    Restore,
    Result,
    Revoke,
    State,
    View,
    Void,
)
from zswarm.trainer.departures import DRAINED

_REASONS = {
    "silent": "given up: silent",
    "its connection": "given up: gone",
    "stuck": "given up: stuck",
    "cut off": "given up: cut off",
    "it has started again": "given up: started again",
    "drained": "given up: drained",
    "asked to leave": "given up: asked to leave",
    "moved": "given up: moved",
    "stage": "given up: needed elsewhere",
    "a layer": "given up: failed",
}
"""How the reason of a leave record begins, and how that is counted."""


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
        event = record["event"]
        self.counters[f"{event} records"] += 1
        if event == "commit" and not record["apply"]:
            self.counters["steps skipped"] += 1
        elif event == "start" and record["generation"] > 1:
            self.counters["trainers that took a run up"] += 1
        elif event == "checkpoint" and record.get("problem"):
            self.counters["checkpoints that failed"] += 1
        elif event == "plan" and record["moves"]:
            self.counters["plans with moves"] += 1
        elif event == "leave":
            reason = record.get("reason", "")
            names = (name for beginning, name in _REASONS.items() if reason.startswith(beginning))
            self.counters[next(names, "given up: other")] += 1
            if "heir" in record:
                self.counters["shares handed over" if reason == DRAINED else "shares left in a copy"] += 1


def _of_microbatch(message: Any) -> tuple[object, ...]:
    return tuple(message.key)


_IDENTITY: dict[type[Message], Callable[[Any], tuple[object, ...]]] = {
    Register: lambda message: (message.boot_nonce,),
    Forward: _of_microbatch,
    Backward: _of_microbatch,
    Evaluated: _of_microbatch,
    Ack: lambda message: (message.direction, *message.key),
    Job: lambda message: (message.lease,),
    Result: lambda message: (message.lease,),
    Prepare: lambda message: (message.round,),
    Abort: lambda message: (message.round,),
    Commit: lambda message: (message.round,),
    Chunk: lambda message: (message.round, message.phase, message.shard, message.chunk),
    Fence: lambda message: (message.fenced,),
    Restore: lambda message: (message.branch, message.step, message.donor),
    Void: lambda message: (message.attempt,),
    Revoke: lambda message: (message.lease,),
    Drained: lambda message: (message.worker,),
    Pull: lambda message: (message.branch, message.step, message.part, message.layer, message.offset_bytes),
}
"""What is equal when a message is sent again to the same peer."""


def is_done_again(message: Job) -> bool:
    """Is it done for a count that was lost? Then its gradient has been sent on long ago; not told at stage 0."""
    below = (1 << len(message.route) - 1) - 1
    is_counted = message.purpose is Purpose.TRAIN and message.accumulate
    return is_counted and not message.emit and from_bytes(message.mask) & below != 0


def _job(message: Job) -> str:
    if message.purpose is not Purpose.TRAIN:
        return ""
    if is_done_again(message):
        return "jobs done again for a count that was lost"
    if not message.accumulate:
        return "jobs that are not counted"
    if message.kind is not JobKind.BACKWARD:
        return ""
    return "backwards with input" if message.x is not None else "backwards without input"


def _forward(message: Forward) -> str:
    is_replay = message.session == TRAINER and message.attempt % 2**32 and message.purpose is Purpose.TRAIN
    return "microbatches admitted again" if is_replay else ""


def _restore(message: Restore) -> str:
    if message.step == 0:
        return "restores by making parameters anew"
    return "restores from the checkpoint" if message.donor == TRAINER else "restores from a worker"


def _state(message: State) -> str:
    return "steps given to who came late" if message.part is StatePart.GRADIENT else ""


_STATUS = {
    JobStatus.NEEDS_INPUT: "needs input",
    JobStatus.WRONG_STEP: "wrong step",
    JobStatus.REVOKED: "jobs left to others",
    JobStatus.FAILED: "jobs that failed",
}

_NAME: dict[type[Message], Callable[[Any], str]] = {
    Nack: lambda message: "nack busy" if message.code is NackCode.BUSY else "nack stale",
    Result: lambda message: _STATUS.get(message.status, ""),
    Job: _job,
    Forward: _forward,
    Restore: _restore,
    State: _state,
    Reject: lambda _: "rejects",
    View: lambda _: "views",
    Void: lambda _: "voids",
    Fence: lambda _: "fences",
    Revoke: lambda _: "revokes",
}
"""What else is counted about a message, by name; an empty one for nothing."""
