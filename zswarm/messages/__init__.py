"""Every message of the protocol: one frozen dataclass per kind.

The fields' annotations are the contract: the wire codec (`zswarm.wire`) checks type and range of each
of them on arrival. Integers are bounded by `U32`, `U64` and friends, sequences by `Length`. A field
with a default may be missing on the wire (older peer); unknown fields are ignored (newer peer).

Sockets (see docs/protocol.md): `coordinator` (a ROUTER at the trainer, everybody dials), `control` and
`work` (two ROUTERs at each broker, so that small messages never wait behind payloads), `peer` (a
ROUTER at each worker, the workers of its own stage and the trainer dial), `beacon` (a ROUTER at each machine, those
who look for machines and runs dial).
"""

from __future__ import annotations

from zswarm.messages.base import (
    Key,
    Length,
    Load,
    Mask,
    Message,
    MicrobatchMessage,
    Parcel,
    Range,
    Route,
    StepMessage,
    TensorSpec,
    key_fields,
)
from zswarm.messages.beacon import (
    ContactReport,
    Greet,
    Greeted,
    Inspect,
    Inspection,
    Measure,
    Measured,
    Offer,
    Probe,
    Probed,
)
from zswarm.messages.commit import Abort, Commit, Evaluated, Prepare, Prepared
from zswarm.messages.membership import (
    BrokerHeartbeat,
    Failure,
    Fence,
    HeartbeatAck,
    Member,
    Move,
    Moved,
    Register,
    Reject,
    Restore,
    Source,
    Stop,
    View,
    Void,
    Welcome,
    WorkerHeartbeat,
)
from zswarm.messages.peer import Chunk, ChunkAck, Pull, State
from zswarm.messages.work import (
    Ack,
    Attach,
    Backward,
    Credit,
    Drained,
    Forward,
    Job,
    Nack,
    Ready,
    Result,
    Revoke,
    Room,
)

__all__ = [
    "Abort",
    "Ack",
    "Attach",
    "Backward",
    "BrokerHeartbeat",
    "Chunk",
    "ChunkAck",
    "Commit",
    "ContactReport",
    "Credit",
    "Drained",
    "Evaluated",
    "Failure",
    "Fence",
    "Forward",
    "Greet",
    "Greeted",
    "HeartbeatAck",
    "Inspect",
    "Inspection",
    "Job",
    "Key",
    "Length",
    "Load",
    "Mask",
    "Measure",
    "Measured",
    "Member",
    "Message",
    "MicrobatchMessage",
    "Move",
    "Moved",
    "Nack",
    "Offer",
    "Parcel",
    "Prepare",
    "Prepared",
    "Probe",
    "Probed",
    "Pull",
    "Range",
    "Ready",
    "Register",
    "Reject",
    "Restore",
    "Result",
    "Revoke",
    "Room",
    "Route",
    "Source",
    "State",
    "StepMessage",
    "Stop",
    "TensorSpec",
    "View",
    "Void",
    "Welcome",
    "WorkerHeartbeat",
    "key_fields",
]
