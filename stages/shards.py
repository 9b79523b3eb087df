"""The arithmetic of an all-reduce, on the host: a buffer to shards of chunks, sums, and back.

    buffer  |----- shard 0 -----|----- shard 1 -----|  as even as possible
    shard   |chunk|chunk|chunk|.|                      REDUCE_CHUNK_BYTES each, the last one shorter

Values are float32 or, with `accumulation = "exact"`, int64, and no others than those that are asked for. They are added
in the order given, so equal contributions give equal bits wherever they are summed. float32 may travel as
bfloat16: each share is rounded, they are added in float32, and the sum is rounded, which its owner, too, takes as it was sent.
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
from zswarm.compression import codec_named, decode_untrusted, encode
from zswarm.config import AllReduceCodec
from zswarm.errors import RemoteProtocolError
from zswarm.messages import Load, TensorSpec
from zswarm.wire import parcelled

Values = NDArray[Any]


def shard_bounds(num_values: int, num_shards: int) -> list[tuple[int, int]]:
    """Return where each shard begins and ends."""
    edges = [num_values * shard // num_shards for shard in range(num_shards + 1)]
    return list(itertools.pairwise(edges))


def cut(buffer: Values, num_shards: int, codec: AllReduceCodec) -> tuple[tuple[Load, ...], ...]:
    """Return the shards of a flat buffer; with the codec `none` the loads share its memory."""
    return tuple(pack(buffer[begin:end], codec) for begin, end in shard_bounds(len(buffer), num_shards))


def pack(values: Values, codec: AllReduceCodec) -> tuple[Load, ...]:
    """Return flat values as chunks; with the codec `none` they share their memory."""
    count = limits.REDUCE_CHUNK_BYTES // _width_bytes(values.dtype, codec)
    return tuple(_chunk(values[begin : begin + count], codec) for begin in range(0, len(values), count))


def add(contributions: Sequence[Sequence[Load]], dtype: np.dtype[Any], codec: AllReduceCodec) -> tuple[Load, ...]:
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


def join(shards: Sequence[Sequence[Load]], out: Values, codec: AllReduceCodec) -> None:
    """Put all shards into a flat buffer.

    Raises:
        RemoteProtocolError: they are not of the buffer's dtype and this codec, or not as many values as it has.

    """
    chunks = [chunk for shard in shards for chunk in shard]
    num_values = sum(_num_values(chunk, out.dtype, codec) for chunk in chunks)
    if num_values != len(out):
        raise RemoteProtocolError(f"shards of {num_values} values for a gradient of {len(out)}")
    offset = 0
    for chunk in chunks:
        values = _values(chunk, out.dtype, codec)
        out[offset : offset + len(values)] = values
        offset += len(values)


def _of_equal_length(contributions: Sequence[Sequence[Load]]) -> Sequence[Sequence[Load]]:
    lengths = {len(chunks) for chunks in contributions}
    if len(lengths) != 1:
        raise RemoteProtocolError(f"contributions of {sorted(lengths)} chunks are to be added")
    return contributions


def _chunk(values: Values, codec: AllReduceCodec) -> Load:
    if codec != "none":
        return encode([torch.from_numpy(values)], codec)
    spec = TensorSpec(codec=codec, dtype=values.dtype.name, shape=(len(values),), size_bytes=values.nbytes)
    return parcelled(values.data.toreadonly(), (spec,))


def _num_values(chunk: Load, dtype: np.dtype[Any], codec: AllReduceCodec) -> int:
    """Return how many values a chunk has.

    Raises:
        RemoteProtocolError: it is not one of this dtype and codec.

    """
    specs = chunk.parcel.tensors
    width_bytes = _width_bytes(dtype, codec)
    size_bytes = sum(memoryview(frame).nbytes for frame in chunk.frames)
    if (
        len(specs) != 1
        or (specs[0].codec, specs[0].dtype) != (codec, dtype.name)
        or not math.prod(specs[0].shape) * width_bytes == specs[0].size_bytes == size_bytes
        or len(chunk.frames) != 1
    ):
        raise RemoteProtocolError(f"not a chunk of {dtype.name} values in one frame, codec {codec}: {chunk.parcel}")
    return size_bytes // width_bytes


def _values(chunk: Load, dtype: np.dtype[Any], codec: AllReduceCodec) -> Values:
    """Return a chunk's values, flat, read-only with the codec `none`; errors as those of `_num_values`."""
    _num_values(chunk, dtype, codec)
    if codec != "none":
        (tensor,) = decode_untrusted(chunk)
        decoded: Values = tensor.flatten().numpy()
        return decoded
    return np.frombuffer(chunk.frames[0], dtype=dtype)


def _width_bytes(dtype: np.dtype[Any], codec: AllReduceCodec) -> int:
    return dtype.itemsize if codec == "none" else codec_named(codec).size_bytes(1, torch.float32)
