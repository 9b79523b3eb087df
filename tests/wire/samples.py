"""One message of every kind, with awkward values in it: what the recorded corpus holds.

The messages are those of `tests.letters`; here each gets the values that are most likely to break on the wire.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

from tests import letters
from zswarm import limits
from zswarm.ids import (
    Address,
    Direction,
    JobKind,
    JobStatus,
    Leaving,
    NackCode,
    Purpose,
    ReducePhase,
    RejectCode,
    Role,
    Session,
    StatePart,
)
from zswarm.kinds import payload_parcels
from zswarm.messages import Bequest, Message, Parcel, Room, Source, TensorSpec
from zswarm.wire import split

CONTENT = bytes(range(24))
PARCEL = Parcel(
    tensors=(TensorSpec(codec="none", dtype="float32", shape=(2, 3), size_bytes=24),),
    size_bytes=24,
    crc=zlib.crc32(CONTENT),
)
LABELLED = Parcel(
    tensors=(
        TensorSpec(codec="int8", dtype="bfloat16", shape=(1, 2, 2, 2), size_bytes=12),
        TensorSpec(codec="none", dtype="int64", shape=(1,), size_bytes=8),
    ),
    size_bytes=20,
    crc=zlib.crc32(CONTENT[:20]),
)

ROOM = Room(
    producer=0,
    trainer=2**32 - 1,
    received_bytes=7,
    granted_bytes=2**53,
    free_bytes=2**30,
    depth=2**32 - 1,
    response_s=0.1,
    closes=True,
)

_LETTERS: tuple[Message, ...] = (
    *letters.one_of_each(2**40, step=200),
    letters.welcome(2**40, step=200),
    letters.reject(),
    letters.failure(2**40, "ValueError: no"),
    letters.stop(),
    *letters.between_machines(),
)
_SAME: dict[str, Any] = {
    "run": 2**64 - 1,
    "generation": 3,
    "branch": 1,
    "microbatch": limits.MAX_MICROBATCHES - 1,
    "attempt": 2**33,
    "route": (17, 2**64 - 1),
    "mask": b"\x00\xff",
    "parcel": PARCEL,
    "room": ROOM,
}
"""What every message with such a field says in it, unless it says something of its own."""
_OWN: dict[str, dict[str, Any]] = {
    "Register": {
        "node": "worker-ü3",
        "boot_nonce": 2**63,
        "role": Role.BROKER,
        "addresses": ("tcp://127.0.0.1:4711", "tcp://127.0.0.1:4712"),
        "stage": 255,
    },
    "Welcome": {
        "boot_nonce": 2**64 - 1,
        "stage": 255,
        "num_stages": 256,
        "first_layer": limits.MAX_LAYERS - 1,
        "num_layers": limits.MAX_LAYERS,
        "heartbeat_s": 0.25,
        "unit_bytes": limits.MAX_PAYLOAD_BYTES,
        "size_bytes": 24,
    },
    "Reject": {"code": RejectCode.WRONG_RUN, "text": "another run"},
    "WorkerHeartbeat": {
        "report": 2**32,
        "ledger": b"\x01\x00\xff",
        "pending": b"\x00\x02",
        "passed": b"\x04",
        "voided": 2**64 - 1,
        "accused": (1, 2**64 - 1),
        "busy_s": 1.5,
        "job_s": 1e9,
        "usual_s": 0.75,
        "parameter_digest": 2**64 - 1,
        "sent_bytes": 2**53,
        "leaving": Leaving.IDLE,
        "loss_sum": None,
        "num_targets": 512,
        "inherits": 2**64 - 1,
        "inherited": b"\x10",
    },
    "BrokerHeartbeat": {
        "active": b"\x80",
        "passed": b"\x7f",
        "ahead": b"",
        "accused": (9,),
        "sent_bytes": 1,
        "leaving": Leaving.DRAINING,
    },
    "HeartbeatAck": {"view": 9},
    "View": {
        "view": 8,
        "size_bytes": 24,
        "bequests": (Bequest(leaver=Session(17), heir=Session(2**64 - 1)),),
        "left": b"\x06",
    },
    "Inherit": {
        "owner": 2**64 - 1,
        "address": "tcp://127.0.0.1:4713",
        "attempt": 2**33,
        "ledger": b"\x01\x80",
    },
    "Fence": {"fenced": 2**64 - 1, "is_spare": True},
    "Restore": {
        "donor": 0,
        "address": "tcp://127.0.0.1:4713",
        "others": (Source(donor=Session(2**64 - 1), address=Address("tcp://127.0.0.1:4714")),),
    },
    "Move": {"node": "worker-ü3", "stage": 255},
    "Moved": {"node": "worker-ü3", "stage": 255, "is_accepted": True, "text": "it goes"},
    "Void": {"ledger": b"\x00" * (limits.MAX_LEDGER_BYTES - 1) + b"\x80"},
    "Failure": {"stage": 2, "layer": "block 3"},
    "Prepare": {"participants": (17, 2**64 - 1), "ledger": bytes(limits.MAX_LEDGER_BYTES)},
    "Prepared": {"digest": 2**64 - 1, "square_norm": 1e300, "ledger": b"", "loss_sum": -0.0, "num_targets": 512},
    "Abort": {"round": 2**64 - 1},
    "Commit": {"digest": 5, "scale": 0.125, "lr": 3e-4, "apply": False, "snapshot": True},
    "Evaluated": {"purpose": Purpose.EVALUATE, "loss_sum": 5e-324},
    "Backward": {"route": (), "parcel": LABELLED},
    "Ack": {"direction": Direction.LOSS, "room": None},
    "Nack": {"code": NackCode.STALE},
    "Ready": {"slots": limits.MAX_LEASES_PER_WORKER, "held": (1, 2**64 - 1), "leaves": True},
    "Attach": {"is_done": True},
    "Job": {"kind": JobKind.BACKWARD, "lease": 77, "emit": False, "x": PARCEL, "dy": LABELLED},
    "Drained": {"worker": 2**64 - 1},
    "Revoke": {"worker": 2**64 - 1, "lease": 77},
    "Result": {"status": JobStatus.NEEDS_INPUT, "lease": 77, "compute_s": 0.01, "slots": 0},
    "Chunk": {"phase": ReducePhase.GATHER, "shard": 255, "chunk": 2, "num_chunks": 3},
    "ChunkAck": {"chunk": 2},
    "Pull": {"layer": 4, "offset_bytes": 2**53},
    "Greet": {"run": 0, "machine": "lab-ü2", "boot_nonce": 2**64 - 1, "address": "", "offer": None},
    "Greeted": {"known": ("tcp://[fe80::1]:65535",) * limits.MAX_KNOWN},
    "Inspect": {"first": 2**32 - 1},
    "Measured": {"bytes_per_s": 0.0, "problem": "it took too long"},
    "Probe": {"number": 2**64 - 1},
    "State": {"part": StatePart.OPTIMIZER, "layer": 4, "total_bytes": 2**40},
}


def _awkward(message: Message) -> Message:
    own = _OWN.get(type(message).__name__, {})
    names = {field.name for field in dataclasses.fields(message)}
    return dataclasses.replace(message, **{name: value for name, value in _SAME.items() if name in names} | own)


SAMPLES: dict[str, Message] = {type(message).__name__: _awkward(message) for message in _LETTERS}
"""A message of every kind by the name of its class."""


def payload_for(message: Message) -> tuple[memoryview, ...]:
    """Return payload frames of the sizes that `message` announces."""
    parcels = payload_parcels(message)
    wholes = [parcel.size_bytes for parcel in parcels] if parcels else [getattr(message, "size_bytes", 0)]
    return tuple(frame for size_bytes in wholes for frame in split((CONTENT * (size_bytes // 24 + 1))[:size_bytes]))
