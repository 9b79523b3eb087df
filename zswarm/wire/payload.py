"""Payloads: what follows a header, cut into frames, checksummed, and held against what the header says.

message        payload                        frames
Forward, ...   one parcel                     all of MAX_FRAME_BYTES, but for the last
Job            x, then dy, where present      each parcel starts a new frame
Welcome, View  `size_bytes` without a parcel  as one parcel
others         none                           none
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zswarm import limits
from zswarm.kinds import payload_parcels
from zswarm.messages import Load, Message, Parcel, State, TensorSpec, View, Welcome
from zswarm.wire.crc import crc32

if TYPE_CHECKING:
    from typing_extensions import Buffer

ITEM_BYTES = {
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
"""The dtypes that may travel, by torch's names, and the bytes of one item."""
IDENTITY_CODEC = "none"
"""The codec whose encoding is the tensor itself, byte for byte."""


def split(content: Buffer) -> tuple[memoryview, ...]:
    """Cut `content` into frames of MAX_FRAME_BYTES (the last one shorter) that share its memory."""
    view = memoryview(content).cast("B")
    return tuple(view[start : start + limits.MAX_FRAME_BYTES] for start in range(0, len(view), limits.MAX_FRAME_BYTES))


def checksum(frames: Iterable[Buffer]) -> int:
    """Return the CRC-32 over the bytes of all frames in their order."""
    crc = 0
    for frame in frames:
        crc = crc32(frame, crc)
    return crc


def parcelled(content: Buffer, tensors: tuple[TensorSpec, ...]) -> Load:
    """Return `content` as a load that shares its memory; `tensors` say what lies in it, in order."""
    frames = split(content)
    size_bytes = sum(len(frame) for frame in frames)
    return Load(parcel=Parcel(tensors=tensors, size_bytes=size_bytes, crc=checksum(frames)), frames=frames)


def verify(parcel: Parcel, frames: Iterable[Buffer]) -> bool:
    """Return whether `frames` hold exactly the bytes that `parcel` was made for."""
    return checksum(frames) == parcel.crc


def intact(message: Message, frames: Sequence[Buffer]) -> bool:
    """Return whether the payload of a decoded message holds the bytes that its parcels were made for."""
    at = 0
    for parcel in payload_parcels(message):
        if not verify(parcel, frames[at : at + parcel.num_frames]):
            return False
        at += parcel.num_frames
    return True


def payload_fault(message: Message, sizes_bytes: list[int]) -> str | None:
    """Return what is wrong with a message's parcels or with the sizes of its payload frames, or None."""
    wholes = []
    for parcel in payload_parcels(message):
        fault = _parcel_fault(parcel, opaque=type(message) is State)
        if fault is not None:
            return fault
        wholes.append(parcel.size_bytes)
    if isinstance(message, Welcome | View):
        if message.size_bytes > limits.MAX_VIEW_BYTES and type(message) is View:
            return f"a view of {message.size_bytes} bytes, more than {limits.MAX_VIEW_BYTES}"
        wholes.append(message.size_bytes)
    in_all = sum(wholes)
    if in_all > limits.MAX_PAYLOAD_BYTES:
        return f"a payload of {in_all} bytes, more than {limits.MAX_PAYLOAD_BYTES}"
    if sizes_bytes != _layout(wholes) or len(sizes_bytes) > limits.MAX_FRAMES:
        return f"{len(sizes_bytes)} frames of together {sum(sizes_bytes)} bytes do not carry {in_all} bytes"
    return None


def _layout(wholes: list[int]) -> list[int]:
    """Return the sizes of the frames that carry blobs of these sizes."""
    sizes_bytes = []
    for whole in wholes:
        if 0 < whole <= limits.MAX_FRAME_BYTES:
            sizes_bytes.append(whole)
            continue
        num_full, rest = divmod(whole, limits.MAX_FRAME_BYTES)
        sizes_bytes += [limits.MAX_FRAME_BYTES] * num_full
        if rest:
            sizes_bytes.append(rest)
    return sizes_bytes


def _parcel_fault(parcel: Parcel, *, opaque: bool) -> str | None:
    """Return what is wrong with a parcel, or None; an opaque one may name no tensor at all."""
    tensors = parcel.tensors
    if opaque and not tensors:
        return None
    described_bytes = 0
    for spec in tensors:
        dtype, shape, size_bytes = spec.dtype, spec.shape, spec.size_bytes
        item_bytes = ITEM_BYTES.get(dtype)
        if item_bytes is None:
            return f"dtype {dtype!r} is not one of {', '.join(ITEM_BYTES)}"
        num_items = math.prod(shape)
        if spec.codec == IDENTITY_CODEC and num_items * item_bytes != size_bytes:
            return f"{dtype} {shape} takes {num_items * item_bytes} bytes, not {size_bytes}"
        if num_items > limits.MAX_ITEMS_PER_BYTE * size_bytes:
            return f"{size_bytes} bytes cannot hold the {num_items} items of {shape}"
        described_bytes += size_bytes
    if described_bytes != parcel.size_bytes:
        return f"tensors of {described_bytes} bytes in a parcel of {parcel.size_bytes}"
    return None
