"""The arithmetic of an all-reduce, on the host: a buffer to shards of chunks, sums, and back.

    buffer  |----- shard 0 -----|----- shard 1 -----|  as even as possible
    shard   |chunk|chunk|chunk|.|                      REDUCE_CHUNK_BYTES each, the last one shorter

Values are float32 or, with `accumulation = "exact"`, int64, and no others than those that are asked for. They are added
in the order given, so equal contributions give equal bits wherever they are summed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zswarm import limits
from zswarm.errors import RemoteProtocolError
from zswarm.messages import Load, TensorSpec
from zswarm.wire import parcelled

Values = NDArray[Any]


def shard_bounds(num_values: int, num_shards: int) -> list[tuple[int, int]]:
    """Return where each shard begins and ends."""
    edges = [num_values * shard // num_shards for shard in range(num_shards + 1)]
    return list(itertools.pairwise(edges))


def cut(buffer: Values, num_shards: int) -> tuple[tuple[Load, ...], ...]:
    """Return the shards of a flat buffer; the loads share its memory."""
    return tuple(pack(buffer[begin:end]) for begin, end in shard_bounds(len(buffer), num_shards))


def pack(values: Values) -> tuple[Load, ...]:
    """Return flat values as chunks that share their memory."""
    count = limits.REDUCE_CHUNK_BYTES // values.itemsize
    return tuple(_chunk(values[begin : begin + count]) for begin in range(0, len(values), count))


def add(contributions: Sequence[Sequence[Load]], dtype: np.dtype[Any]) -> tuple[Load, ...]:
    """Return the sum of several participants' chunks of one shard.

    Raises:
        RemoteProtocolError: the contributions are not of this dtype, or not of the same sizes.

    """
    if len(contributions) == 1:
        return tuple(contributions[0])
    sums = []
    for chunks in zip(*_of_equal_length(contributions), strict=True):
        total = _values(chunks[0], dtype).copy()
        for chunk in chunks[1:]:
            values = _values(chunk, dtype)
            if values.shape != total.shape:
                raise RemoteProtocolError(f"chunks of {len(total)} and of {len(values)} values are to be added")
            np.add(total, values, out=total)
        sums.append(_chunk(total))
    return tuple(sums)


def join(shards: Sequence[Sequence[Load]], out: Values) -> None:
    """Put all shards into a flat buffer.

    Raises:
        RemoteProtocolError: they are not of the buffer's dtype, or not as many values as it has.

    """
    parts = [_values(chunk, out.dtype) for shard in shards for chunk in shard]
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


def _chunk(values: Values) -> Load:
    spec = TensorSpec(codec="none", dtype=values.dtype.name, shape=(len(values),), size_bytes=values.nbytes)
    return parcelled(values.data.toreadonly(), (spec,))


def _values(chunk: Load, dtype: np.dtype[Any]) -> Values:
    specs = chunk.parcel.tensors
    size_bytes = sum(memoryview(frame).nbytes for frame in chunk.frames)
    if (
        len(specs) != 1
        or (specs[0].codec, specs[0].dtype) != ("none", dtype.name)
        or not math.prod(specs[0].shape) * dtype.itemsize == specs[0].size_bytes == size_bytes
        or len(chunk.frames) != 1
    ):
        raise RemoteProtocolError(f"not a chunk of {dtype.name} values in one frame: {chunk.parcel}")
    return np.frombuffer(chunk.frames[0], dtype=dtype)
