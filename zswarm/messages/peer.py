"""On the workers' sockets, and the trainer's: the all-reduce, and the state of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from zswarm import limits
from zswarm.ids import ReducePhase, Round, StatePart
from zswarm.messages.base import FINITE, U32, U64, Bytes, Ledger, Parcel, Range, StepMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(StepMessage):
    """Worker -> worker, with payload: part of a shard of the gradient in an all-reduce."""

    round: Annotated[Round, U64]
    phase: ReducePhase
    shard: Annotated[int, Range(0, limits.MAX_PARTICIPANTS - 1)]
    chunk: Annotated[int, U32]
    num_chunks: Annotated[int, Range(1, limits.MAX_CHUNKS)]
    parcel: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAck(StepMessage):
    """Worker -> worker: the chunk is in my memory."""

    round: Annotated[Round, U64]
    phase: ReducePhase
    shard: Annotated[int, Range(0, limits.MAX_PARTICIPANTS - 1)]
    chunk: Annotated[int, U32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull(StepMessage):
    """Anybody with a session -> worker, or worker -> trainer: send me `layer`'s state from `offset_bytes` on.

    Of (branch, step); a GRADIENT is what led from there to the next step, a SHARE what has been counted in it.
    """

    part: StatePart
    layer: Annotated[int, U32]
    offset_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class State(StepMessage):
    """Worker or trainer -> asker, with payload: a range of the layer's state, a safetensors file of `total_bytes`.

    A worker that does not hold what another one asks for answers with the beginning of what it holds.
    """

    part: StatePart
    layer: Annotated[int, U32]
    offset_bytes: Bytes
    total_bytes: Bytes
    parcel: Parcel
    ledger: Ledger = b""
    """Of a SHARE: what has been counted in it, the same in all ranges of one copy."""
    loss_sum: Annotated[float, FINITE] | None = 0.0
    """Over that; None where it is not finite, 0 but for the last stage."""
    num_targets: Annotated[int, U64] = 0
    """Likewise."""
