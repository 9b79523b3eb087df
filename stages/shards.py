"""The arithmetic of an all-reduce, on the host: a buffer to shards of chunks, sums, and back.

    buffer  |----- shard 0 -----|----- shard 1 -----|  as even as possible
    shard   |chunk|chunk|chunk|.|                      REDUCE_CHUNK_BYTES each, the last one shorter

Values are float32 or, with `accumulation = "exact"`, int64, and no others than those that are asked for. They are added
in the order given, so equal contributions give equal bits wherever they are summed. float32 may travel as bfloat16, the
upper half of its bits (the codec `bf16`): each share is rounded, they are added in float32, and the sum is rounded, which
its owner, too, takes as it was sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zswarm import limits
from zswarm.config import GradientCodec
from zswarm.errors import RemoteProtocolError
from zswarm.messages import Load, TensorSpec
from zswarm.wire import parcelled

Values = NDArray[Any]


def shard_bounds(num_values: int, num_shards: int) -> list[tuple[int, int]]:
    """Return where each shard begins and ends."""
    edges = [num_values * shard // num_shards for shard in range(num_shards + 1)]
    return list(itertools.pairwise(edges))


def cut(buffer: Values, num_shards: int, codec: GradientCodec) -> tuple[tuple[Load, ...], ...]:
    """Return the shards of a flat buffer; with the codec `none` the loads share its memory."""
    return tuple(pack(buffer[begin:end], codec) for begin, end in shard_bounds(len(buffer), num_shards))


def pack(values: Values, codec: GradientCodec) -> tuple[Load, ...]:
    """Return flat values as chunks; with the codec `none` they share their memory."""
    count = limits.REDUCE_CHUNK_BYTES // _width(values.dtype, codec)
    return tuple(_chunk(values[begin : begin + count], codec) for begin in range(0, len(values), count))


def add(contributions: Sequence[Sequence[Load]], dtype: np.dtype[Any], codec: GradientCodec) -> tuple[Load, ...]:
    """Return the sum of several participants' chunks of one shard.

    Raises:
        RemoteProtocolError: the contributions are not of this dtype and codec, or not of the same sizes.

    """
    if len(contributions) == 1:
        return tuple(contributions[0])
    sums = []
    for chunks in zip(*_of_equal_length(contributions), strict=True):
        total = _values(chunks[0], dtype, codec).copy()
        for chunk in chunks[1:]:
            values = _values(chunk, dtype, codec)
            if values.shape != total.shape:
                raise RemoteProtocolError(f"chunks of {len(total)} and of {len(values)} values are to be added")
            np.add(total, values, out=total)
        sums.append(_chunk(total, codec))
    return tuple(sums)


def join(shards: Sequence[Sequence[Load]], out: Values, codec: GradientCodec) -> None:
    """Put all shards into a flat buffer.

    Raises:
        RemoteProtocolError: they are not of the buffer's dtype and this codec, or not as many values as it has.

    """
    parts = [_values(chunk, out.dtype, codec) for shard in shards for chunk in shard]
    num_values = sum(len(part) for part in parts)
    if num_values != len(out):
        raise RemoteProtocolError(f"shards of {num_values} values for a gradient of {len(out)}")
    offset = 0
    for part in parts:
        out[offset : offset + len(part)] = part
        offset += len(part)


def _of_equal_length(contributions: Sequence[Sequence[Load]]) -> Sequence[Sequence[Load]]:
    lengths = {len(chunks) for chunks in contributions}
    if len(lengths) != 1:
        raise RemoteProtocolError(f"contributions of {sorted(lengths)} chunks are to be added")
    return contributions


def _width(dtype: np.dtype[Any], codec: GradientCodec) -> int:
    """Return the bytes of a value that travels."""
    return 2 if codec == "bf16" else dtype.itemsize


def _chunk(values: Values, codec: GradientCodec) -> Load:
    sent = torch.from_numpy(values).bfloat16().view(torch.int16).numpy() if codec == "bf16" else values
    spec = TensorSpec(codec=codec, dtype=values.dtype.name, shape=(len(values),), size_bytes=sent.nbytes)
    return parcelled(sent.data.toreadonly(), (spec,))


def _values(chunk: Load, dtype: np.dtype[Any], codec: GradientCodec) -> Values:
    specs = chunk.parcel.tensors
    size_bytes = sum(memoryview(frame).nbytes for frame in chunk.frames)
    if (
        len(specs) != 1
        or (specs[0].codec, specs[0].dtype) != (codec, dtype.name)
        or not math.prod(specs[0].shape) * _width(dtype, codec) == specs[0].size_bytes == size_bytes
        or len(chunk.frames) != 1
    ):
        raise RemoteProtocolError(f"not a chunk of {dtype.name} values in one frame, codec {codec}: {chunk.parcel}")
    if codec == "bf16":
        upper = np.frombuffer(chunk.frames[0], np.uint16).astype(np.uint32)
        return np.left_shift(upper, 16, out=upper).view(np.float32)
    return np.frombuffer(chunk.frames[0], dtype=dtype)
