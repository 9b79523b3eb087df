from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import shards
from stages.shards import add, cut, join, pack, shard_bounds
from zswarm import limits
from zswarm.errors import RemoteProtocolError
from zswarm.wire import verify

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
CHUNK_VALUES = limits.REDUCE_CHUNK_BYTES // 4


def floats(seed, count):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@settings(max_examples=50)
@given(count=st.integers(256, 3000), participants=st.integers(1, 6), seed=st.integers(0, 100))
def test_everybody_gets_the_sum(count, participants, seed):
    """Cut, added shard by shard in one order, and joined: the sum of all, with the same bits for all."""
    buffers = [floats(seed + index, count) for index in range(participants)]
    expected = buffers[0].copy()
    for buffer in buffers[1:]:
        expected += buffer
    contributions = [cut(buffer, participants, "none") for buffer in buffers]
    summed = [add([shares[shard] for shares in contributions], FLOAT32, "none") for shard in range(participants)]
    out = np.zeros(count, np.float32)
    join(summed, out, "none")
    assert np.array_equal(out, expected)


def test_shards_are_even_and_never_empty():
    """The smallest stage among the most participants: a value for each of them."""
    bounds = shard_bounds(limits.MAX_PARTICIPANTS, limits.MAX_PARTICIPANTS)
    assert all(end - begin == 1 for begin, end in bounds)
    sizes = [end - begin for begin, end in shard_bounds(1000, 7)]
    assert sum(sizes) == 1000
    assert max(sizes) - min(sizes) <= 1


def test_chunks_are_single_checked_frames_over_the_same_memory():
    """A chunk is one frame of at most REDUCE_CHUNK_BYTES, described and checksummed, not copied."""
    values = floats(0, CHUNK_VALUES * 2 + 5)
    chunks = pack(values, "none")
    assert [chunk.parcel.size_bytes for chunk in chunks] == [limits.REDUCE_CHUNK_BYTES] * 2 + [20]
    for chunk in chunks:
        assert chunk.parcel.num_frames == len(chunk.frames) == 1
        assert verify(chunk.parcel, chunk.frames)
        assert chunk.frames[0].readonly
        assert np.shares_memory(np.frombuffer(chunk.frames[0], np.float32), values)


def test_what_is_not_finite_survives():
    """NaN and infinity in one share are in the sum."""
    first, second = floats(0, 300), floats(1, 300)
    first[3], second[5] = np.nan, np.inf
    out = np.zeros(300, np.float32)
    join([add([pack(first, "none"), pack(second, "none")], FLOAT32, "none")], out, "none")
    assert np.isnan(out[3])
    assert np.isinf(out[5])


def changed(load, **changes):
    return replace(load, parcel=replace(load.parcel, tensors=(replace(load.parcel.tensors[0], **changes),)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda load: changed(load, codec="int8"),
        lambda load: changed(load, dtype="float64"),
        lambda load: changed(load, shape=(299,)),
        lambda load: replace(load, frames=(bytes(4),)),
        lambda load: replace(load, frames=()),
        lambda load: replace(load, parcel=replace(load.parcel, tensors=())),
    ],
)
def test_chunks_that_lie_are_refused(spoil):
    """A peer's chunk that is not what it says, or does not fit the others, is the peer's fault."""
    (good,) = pack(floats(0, 300), "none")
    with pytest.raises(RemoteProtocolError):
        add([(good,), (spoil(good),)], FLOAT32, "none")
    with pytest.raises(RemoteProtocolError):
        join([(spoil(good),)], np.zeros(300, np.float32), "none")


def test_shares_of_other_sizes_are_refused():
    """Shares must have as many chunks and values as each other, and all shards as many as the gradient."""
    with pytest.raises(RemoteProtocolError, match="of 300 and of 299 values"):
        add([pack(floats(0, 300), "none"), pack(floats(0, 299), "none")], FLOAT32, "none")
    with pytest.raises(RemoteProtocolError, match=r"of \[1, 2\] chunks"):
        add([pack(floats(0, 300), "none"), pack(floats(0, CHUNK_VALUES + 1), "none")], FLOAT32, "none")
    with pytest.raises(RemoteProtocolError, match="300 values for a gradient of 301"):
        shards.join([pack(floats(0, 300), "none")], np.zeros(301, np.float32), "none")


@settings(max_examples=30)
@given(count=st.integers(256, 3000), participants=st.integers(2, 5), seed=st.integers(0, 100), data=st.data())
def test_the_sum_of_integers_has_no_order(count, participants, seed, data):
    """int64 shares are added exactly, whoever comes first."""
    rng = np.random.default_rng(seed)
    buffers = [rng.integers(-(2**60), 2**60, count) for _ in range(participants)]
    contributions = [cut(buffer, participants, "none") for buffer in buffers]
    order = data.draw(st.permutations(range(participants)))
    summed = [add([contributions[index][shard] for index in order], INT64, "none") for shard in range(participants)]
    out = np.zeros(count, np.int64)
    join(summed, out, "none")
    assert out.tolist() == [sum(column) for column in zip(*(buffer.tolist() for buffer in buffers), strict=True)]


def test_chunks_of_integers_are_as_long_in_bytes():
    """A chunk of int64 has half as many values."""
    chunks = pack(np.zeros(CHUNK_VALUES // 2 + 1, np.int64), "none")
    assert [chunk.parcel.size_bytes for chunk in chunks] == [limits.REDUCE_CHUNK_BYTES, 8]
    assert {chunk.parcel.tensors[0].dtype for chunk in chunks} == {"int64"}


@pytest.mark.parametrize(("asked", "sent"), [(FLOAT32, INT64), (INT64, FLOAT32)])
def test_only_the_dtype_of_the_run_is_taken(asked, sent):
    """Shares of a peer with another accumulation are refused, though their bytes would fit."""
    shares = pack(np.zeros(300, sent), "none")
    with pytest.raises(RemoteProtocolError, match=f"not a chunk of {asked.name} values"):
        add([shares, shares], asked, "none")
    with pytest.raises(RemoteProtocolError, match=f"not a chunk of {asked.name} values"):
        join([shares], np.zeros(300 * sent.itemsize // asked.itemsize, asked), "none")


@settings(max_examples=30)
@given(count=st.integers(256, 3000), participants=st.integers(2, 5), seed=st.integers(0, 100))
def test_what_travels_as_bfloat16_is_added_in_float32(count, participants, seed):
    """Each share is rounded to the nearest, and so is the sum: torch's own conversion says what that is."""
    buffers = [floats(seed + index, count) for index in range(participants)]
    contributions = [cut(buffer, participants, "bf16") for buffer in buffers]
    summed = [add([shares[shard] for shares in contributions], FLOAT32, "bf16") for shard in range(participants)]
    out = np.zeros(count, np.float32)
    join(summed, out, "bf16")
    rounded = [torch.from_numpy(buffer).bfloat16().float() for buffer in buffers]
    expected = rounded[0].clone()
    for values in rounded[1:]:
        expected += values
    assert torch.equal(torch.from_numpy(out), expected.bfloat16().float())


def test_bfloat16_takes_half_the_bytes_and_keeps_what_is_not_finite():
    values = floats(0, 2 * CHUNK_VALUES + 1)
    values[:4] = np.nan, np.inf, -np.inf, 3.4e38
    chunks = pack(values, "bf16")
    assert [chunk.parcel.size_bytes for chunk in chunks] == [limits.REDUCE_CHUNK_BYTES, 2]
    assert all(verify(chunk.parcel, chunk.frames) for chunk in chunks)
    out = np.zeros(len(values), np.float32)
    join([chunks], out, "bf16")
    assert np.isnan(out[0])
    assert out[1:4].tolist() == [np.inf, -np.inf, np.inf], "beyond the largest bfloat16"


@pytest.mark.parametrize(("asked", "sent"), [("none", "bf16"), ("bf16", "none")])
def test_only_the_codec_of_the_run_is_taken(asked, sent):
    shares = pack(np.zeros(300, np.float32), sent)
    with pytest.raises(RemoteProtocolError, match=f"codec {asked}"):
        add([shares, shares], FLOAT32, asked)
    with pytest.raises(RemoteProtocolError, match=f"codec {asked}"):
        join([shares], np.zeros(300, np.float32), asked)


def test_bfloat16_chunks_that_lie_are_refused():
    (good,) = pack(floats(0, 300), "bf16")
    for spoil in (lambda load: changed(load, shape=(150,)), lambda load: replace(load, frames=(bytes(601),))):
        with pytest.raises(RemoteProtocolError):
            join([(spoil(good),)], np.zeros(300, np.float32), "bf16")
