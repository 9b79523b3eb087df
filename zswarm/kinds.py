"""The kinds of messages: their numbers on the wire, and which of them carry payload."""

from __future__ import annotations

from zswarm.messages import (
    Abort,
    Ack,
    Attach,
    Backward,
    BrokerHeartbeat,
    Chunk,
    ChunkAck,
    Commit,
    Credit,
    Evaluated,
    Failure,
    Fence,
    Forward,
    HeartbeatAck,
    Job,
    Message,
    Move,
    Moved,
    Nack,
    Parcel,
    Prepare,
    Prepared,
    Pull,
    Ready,
    Register,
    Reject,
    Restore,
    Result,
    Revoke,
    State,
    Stop,
    View,
    Void,
    Welcome,
    WorkerHeartbeat,
)

KINDS: dict[int, type[Message]] = {
    1: Register,
    2: Welcome,
    3: Reject,
    4: WorkerHeartbeat,
    5: BrokerHeartbeat,
    6: HeartbeatAck,
    7: View,
    8: Failure,
    9: Stop,
    10: Fence,
    11: Restore,
    12: Void,
    13: Move,
    14: Moved,
    16: Prepare,
    17: Prepared,
    18: Abort,
    19: Commit,
    20: Evaluated,
    32: Attach,
    33: Credit,
    34: Forward,
    35: Backward,
    36: Ack,
    37: Nack,
    48: Ready,
    49: Job,
    50: Result,
    51: Revoke,
    64: Chunk,
    65: ChunkAck,
    66: Pull,
    67: State,
}
"""The number of each kind on the wire. A number is never reused."""


def payload_parcels(message: Message) -> tuple[Parcel, ...]:
    """The parcels of this message's payload, in the order of their frames."""
    if isinstance(message, Job):
        x = () if message.x is None else (message.x,)
        return x if message.dy is None else (*x, message.dy)
    return (message.parcel,) if isinstance(message, (Forward, Backward, Chunk, State)) else ()
