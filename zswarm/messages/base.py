"""What messages are made of: bounded fields, payloads, and what every message says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

from zswarm import limits
from zswarm.ids import Attempt, Branch, Generation, Microbatch, Purpose, RunId, Session, Stage, Step


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    low: float
    high: float


class Length(NamedTuple):
    """Most elements of a sequence, characters of a text or bytes of a blob."""

    most: int


U32 = Range(0, 2**32 - 1)
U64 = Range(0, 2**64 - 1)
FINITE = Range(-1.8e308, 1.8e308)
SECONDS = Range(0.0, 1e9)
TEXT = Length(limits.MAX_TEXT_CHARS)

Bytes = Annotated[int, Range(0, 2**53)]
Seconds = Annotated[float, SECONDS]
Text = Annotated[str, TEXT]
Crc = Annotated[int, U32]
StepField = Annotated[Step, U64]
MicrobatchField = Annotated[Microbatch, Range(0, limits.MAX_MICROBATCHES - 1)]
StageField = Annotated[Stage, Range(0, limits.MAX_STAGES - 1)]
SessionField = Annotated[Session, U64]
Ledger = Annotated[bytes, Length(limits.MAX_LEDGER_BYTES)]
"""Set of microbatches as a little-endian bitmap: bit m is set when microbatch m is in it."""
Route = Annotated[tuple[SessionField, ...], Length(limits.MAX_STAGES)]
"""Sessions of the home brokers, stage 0 first."""
Mask = Annotated[bytes, Length(limits.MAX_STAGES // 8)]
"""Set of stages as a little-endian bitmap: the stages that count an attempt's gradient; set by the coordinator."""
Accused = Annotated[tuple[SessionField, ...], Length(limits.MAX_ACCUSED)]
"""Sessions that owe the sender an answer and have been silent towards it for too long; TRAINER: it does not hear the
trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """How one tensor lies in a payload: `codec` names its encoding, `shape` and `dtype` what it decodes to."""

    codec: Annotated[str, Length(16)]
    dtype: Annotated[str, Length(16)]
    shape: Annotated[tuple[Annotated[int, Range(0, limits.MAX_DIMENSION)], ...], Length(limits.MAX_DIMENSIONS)]
    size_bytes: Annotated[int, Range(0, limits.MAX_PAYLOAD_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Description of a payload: its tensors in order, its size, and CRC-32 over all of its bytes."""

    tensors: Annotated[tuple[TensorSpec, ...], Length(limits.MAX_TENSORS)]
    size_bytes: Annotated[int, Range(1, limits.MAX_PAYLOAD_BYTES)]
    crc: Crc

    @property
    def num_frames(self) -> int:
        """Frames that carry this parcel: all of `MAX_FRAME_BYTES`, but for the last."""
        return -(-self.size_bytes // limits.MAX_FRAME_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A parcel together with the frames that hold it.

    The frames are opaque to every machine: buffers in production, symbols in the simulator.
    """

    parcel: Parcel
    frames: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every message says: whose run it is, and who speaks."""

    run: Annotated[RunId, U64]
    generation: Annotated[Generation, U32]
    session: SessionField


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMessage(Message):
    """A message about one optimizer step; a receiver drops what is older than its own (branch, step)."""

    branch: Annotated[Branch, U32]
    step: StepField


Key = tuple[Branch, Step, Purpose, Microbatch, Attempt]
"""What names one attempt of one microbatch everywhere."""


class KeyFields(TypedDict):
    """The fields that every message about a microbatch has."""

    branch: Branch
    step: Step
    purpose: Purpose
    microbatch: Microbatch
    attempt: Attempt


def key_fields(key: Key) -> KeyFields:
    """Return a key as the fields of a message."""
    branch, step, purpose, microbatch, attempt = key
    return {"branch": branch, "step": step, "purpose": purpose, "microbatch": microbatch, "attempt": attempt}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrobatchMessage(StepMessage):
    """A message about one attempt of one microbatch."""

    microbatch: MicrobatchField
    attempt: Annotated[Attempt, U64]
    purpose: Purpose

    @property
    def key(self) -> Key:
        """Messages of one kind with equal keys are duplicates."""
        return (self.branch, self.step, self.purpose, self.microbatch, self.attempt)
