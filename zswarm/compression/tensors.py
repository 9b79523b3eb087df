"""Tensors to parcels and back.

The encodings lie one after the other without gaps. Decoding copies the frames into memory of its own,
so the tensors may be written to and outlive the frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zswarm import limits
from zswarm.compression.codecs import CODECS, codec_named
from zswarm.compression.host import CPU, host_memory, to_host
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.messages import Load, Parcel, TensorSpec
from zswarm.wire import parcelled

FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
INTEGERS = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
}
DTYPES = FLOATS | INTEGERS
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT_BYTES = 8


def size_bytes(shape: Sequence[int], dtype: torch.dtype, codec: str) -> int:
    """Return how many bytes a tensor takes in a payload; integers are `raw` whatever the codec.

    Raises:
        LocalProtocolError: no such codec, or a dtype that does not travel.

    """
    return codec_named(_codec_of(dtype, codec)).size_bytes(math.prod(shape), dtype)


def load_size_bytes(tensors: Iterable[tuple[Sequence[int], torch.dtype]], codec: str) -> int:
    """Return the size of a payload that carries tensors of these shapes and dtypes."""
    return sum(size_bytes(shape, dtype, codec) for shape, dtype in tensors)


def encode(tensors: Sequence[Tensor], codec: str) -> Load:
    """Put up to MAX_TENSORS tensors into a parcel; the frames share one buffer of their own.

    Tensors are encoded on the first one's device, so what leaves a GPU is small already.

    Raises:
        LocalProtocolError: the tensors do not fit the bounds of a parcel.

    """
    tensors = [tensor.detach() for tensor in tensors]
    specs = tuple(_spec(tensor, codec) for tensor in tensors)
    total_bytes = sum(spec.size_bytes for spec in specs)
    if len(specs) > limits.MAX_TENSORS or not 1 <= total_bytes <= limits.MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(
            f"{len(specs)} tensors of {total_bytes} bytes: a parcel has at most {limits.MAX_TENSORS} tensors "
            f"and from 1 to {limits.MAX_PAYLOAD_BYTES} bytes"
        )
    buffer = torch.empty(total_bytes, dtype=torch.uint8, device=tensors[0].device)
    offset = 0
    for tensor, spec in zip(tensors, specs, strict=True):
        out = buffer[offset : offset + spec.size_bytes]
        codec_named(spec.codec).encode(tensor.to(buffer.device).contiguous().flatten(), out)
        offset += spec.size_bytes
    host = buffer if buffer.device.type == "cpu" else to_host(buffer)
    return parcelled(host.numpy().data.toreadonly(), specs)


def decode_untrusted(load: Load, device: torch.device = CPU) -> list[Tensor]:
    """Take the tensors out of a parcel, onto a device; its checksum is not looked at.

    Raises:
        RemoteProtocolError: the parcel does not describe its frames, or names what does not exist.

    """
    parcel = load.parcel
    views = [memoryview(frame).cast("B") for frame in load.frames]
    sizes = [_checked_size_bytes(spec) for spec in parcel.tensors]
    found_bytes = sum(len(view) for view in views)
    if len(sizes) > limits.MAX_TENSORS or not sum(sizes) == parcel.size_bytes == found_bytes:
        raise RemoteProtocolError(
            f"{len(sizes)} tensors of {sum(sizes)} bytes in a parcel of {parcel.size_bytes}, with {found_bytes} there"
        )
    if found_bytes > limits.MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError(f"a parcel of {found_bytes} bytes, more than {limits.MAX_PAYLOAD_BYTES}")
    buffer = host_memory(found_bytes, torch.uint8, device)
    target = buffer.numpy().data
    offset = 0
    for view in views:
        target[offset : offset + len(view)] = view
        offset += len(view)
    return _cut(buffer.to(device), parcel)


def _cut(buffer: Tensor, parcel: Parcel) -> list[Tensor]:
    tensors = []
    offset = 0
    for spec in parcel.tensors:
        encoded = buffer[offset : offset + spec.size_bytes]
        if offset % ALIGNMENT_BYTES:
            encoded = encoded.clone()
        flat = codec_named(spec.codec).decode(encoded, math.prod(spec.shape), DTYPES[spec.dtype])
        tensors.append(flat.view(spec.shape))
        offset += spec.size_bytes
    return tensors


def _codec_of(dtype: torch.dtype, codec: str) -> str:
    name = NAMES.get(dtype)
    if name is None:
        raise LocalProtocolError(f"tensors of {dtype} do not travel; these do: {', '.join(DTYPES)}")
    return codec if name in FLOATS else "raw"


def _spec(tensor: Tensor, codec: str) -> TensorSpec:
    shape = tuple(tensor.shape)
    if len(shape) > limits.MAX_DIMENSIONS or any(size > limits.MAX_DIMENSION for size in shape):
        raise LocalProtocolError(
            f"a tensor of shape {list(shape)}: at most {limits.MAX_DIMENSIONS} dimensions travel, "
            f"each up to {limits.MAX_DIMENSION}"
        )
    return TensorSpec(
        codec=_codec_of(tensor.dtype, codec),
        dtype=NAMES[tensor.dtype],
        shape=shape,
        size_bytes=size_bytes(shape, tensor.dtype, codec),
    )


def _checked_size_bytes(spec: TensorSpec) -> int:
    if spec.codec not in CODECS:
        raise RemoteProtocolError(f"codec {spec.codec!r} is not one of {', '.join(CODECS)}")
    if spec.dtype not in (INTEGERS if spec.codec == "raw" else FLOATS):
        raise RemoteProtocolError(f"dtype {spec.dtype!r} does not travel as {spec.codec}")
    if len(spec.shape) > limits.MAX_DIMENSIONS or not all(0 <= size <= limits.MAX_DIMENSION for size in spec.shape):
        raise RemoteProtocolError(f"shape {spec.shape} is out of bounds")
    expected = codec_named(spec.codec).size_bytes(math.prod(spec.shape), DTYPES[spec.dtype])
    if spec.size_bytes != expected:
        raise RemoteProtocolError(
            f"{spec.codec} {spec.dtype} {spec.shape} takes {expected} bytes, not {spec.size_bytes}"
        )
    return expected
