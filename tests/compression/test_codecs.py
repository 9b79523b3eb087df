from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zswarm import limits
from zswarm.compression import decode_untrusted, encode, load_size_bytes, size_bytes
from zswarm.compression.codecs import BLOCK, BNB_BLOCK
from zswarm.compression.tensors import DTYPES
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.messages import Load, Parcel, TensorSpec
from zswarm.wire import checksum, split, verify

LOSSY = ("bf16", "int8", "bnb8")
FLOAT_CODECS = ("none", *LOSSY)
WORST_STEP = {"bf16": 2**-8, "int8": 0.5 / 127, "bnb8": 0.05}
"""Largest error of a value relative to the largest value of its block; for bf16, to the value itself."""
BLOCKS = {"int8": BLOCK, "bnb8": BNB_BLOCK}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def travel(tensor: torch.Tensor, codec: str) -> torch.Tensor:
    (decoded,) = decode_untrusted(encode([tensor], codec))
    return decoded


def values(seed: int, count: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) * scale


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 1000),
    exponent=st.integers(-30, 30),
    codec=st.sampled_from(LOSSY),
)
def test_error_is_bounded_by_the_largest_of_the_block(seed, count, exponent, codec):
    """Whatever the magnitude and the length, no value is off by more than its codec promises."""
    original = values(seed, count, 10.0**exponent)
    error = (travel(original, codec) - original).abs()
    if codec == "bf16":
        bound = original.abs() * WORST_STEP[codec]
    else:
        block = BLOCKS[codec]
        maxima = torch.cat([part.abs().amax().expand(len(part)) for part in original.split(block)])
        bound = maxima * WORST_STEP[codec]
    assert (error <= bound * 1.001 + 1e-36).all()


@pytest.mark.parametrize(
    ("codec", "least", "most"), [("bf16", 1e-3, 3e-3), ("int8", 3e-3, 8e-3), ("bnb8", 3e-3, 0.015)]
)
def test_relative_error_of_normal_values(codec, least, most):
    """The error that a user reads in the documentation is the one that the codec makes."""
    original = values(0, 1 << 16, 1e-8)
    error = (travel(original, codec) - original).norm() / original.norm()
    assert least < error < most


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4), ()], ids=str)
def test_none_and_raw_are_exact(dtype, shape):
    """Integers, and floats with codec none, arrive bit for bit, with their shape and dtype."""
    original = (torch.arange(math.prod(shape)).view(shape) % 100).to(dtype)
    ballast = torch.zeros(1, dtype=torch.uint8)
    decoded, _ = decode_untrusted(encode([original, ballast], "none"))
    assert decoded.dtype == dtype
    assert torch.equal(decoded, original)


@pytest.mark.parametrize("codec", FLOAT_CODECS)
@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 255, 256, 257, 5000])
def test_size_is_known_without_the_tensor(codec, count):
    """`size_bytes` says what `encode` then makes, for lengths around the block sizes too."""
    load = encode([values(1, count, 1.0), torch.zeros(3, dtype=torch.uint8)], codec)
    assert load.parcel.tensors[0].size_bytes == size_bytes((count,), torch.float32, codec)
    assert load.parcel.size_bytes == load_size_bytes([((count,), torch.float32), ((3,), torch.uint8)], codec)
    assert sum(len(frame) for frame in load.frames) == load.parcel.size_bytes
    assert decode_untrusted(load)[0].shape == (count,)


@pytest.mark.parametrize("codec", FLOAT_CODECS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 130, 299])
def test_what_is_not_finite_stays_so(codec, poison, position):
    """A codec that turns NaN into a number would hide a broken step; none does, nor does it spread far."""
    original = values(2, 300, 1.0)
    original[position] = poison
    decoded = travel(original, codec)
    assert not torch.isfinite(decoded[position])
    block = BLOCKS.get(codec, 1)
    own_block = torch.arange(300) // block == position // block
    assert torch.isfinite(decoded[~own_block]).all()


@pytest.mark.parametrize("codec", LOSSY)
def test_zeros_stay_zero(codec):
    """A block without values has no scale to divide by."""
    assert torch.equal(travel(torch.zeros(300), codec), torch.zeros(300))


@pytest.mark.parametrize(("codec", "most"), [("int8", 0.25), ("bnb8", 0.05)])
def test_an_outlier_costs_its_own_block_only(codec, most):
    """A value 100 times the others makes the rest of its block coarse, and no other block."""
    original = values(3, 4 * BNB_BLOCK, 1.0)
    original[0] = 100.0
    decoded = travel(original, codec)
    error = (decoded - original).abs()
    assert (error[BNB_BLOCK:].norm() / original[BNB_BLOCK:].norm()) < 0.015
    assert (error[1 : BLOCKS[codec]].norm() / original[1 : BLOCKS[codec]].norm()) < most


@pytest.mark.parametrize("codec", FLOAT_CODECS)
def test_other_float_dtypes_travel(codec):
    """The dtype that goes in comes out."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        original = values(4, 500, 1.0).to(dtype)
        decoded = travel(original, codec)
        assert decoded.dtype == dtype
        assert ((decoded.double() - original.double()).norm() / original.double().norm()) < 0.02


def test_tensors_ride_together_whatever_their_alignment():
    """Labels behind an odd number of bytes decode as well as in front."""
    activation = values(5, 33, 1.0).view(3, 11)
    labels = torch.arange(7)
    odd = torch.arange(3, dtype=torch.uint8)
    load = encode([odd, activation, labels, activation], "int8")
    first, x, second, again = decode_untrusted(load)
    assert torch.equal(first, odd)
    assert torch.equal(second, labels)
    assert torch.equal(x, again)
    assert x.shape == (3, 11)


def test_large_tensors_are_cut_into_frames_and_checksummed():
    """Frames are of 1 MiB at most; a flipped bit in any of them fails the checksum."""
    original = values(6, 700_000, 1.0)
    load = encode([original], "none")
    assert [len(frame) for frame in load.frames] == [1 << 20, 1 << 20, 700_000 * 4 - (2 << 20)]
    assert verify(load.parcel, load.frames)
    broken = bytearray(load.frames[2])
    broken[100] ^= 4
    assert not verify(load.parcel, (*load.frames[:2], broken))
    assert torch.equal(decode_untrusted(load)[0], original)


def test_decoded_tensors_own_their_memory():
    """A layer may write to what it received; the frames, which others may still send, do not change."""
    load = encode([torch.ones(10)], "none")
    decode_untrusted(load)[0].zero_()
    assert verify(load.parcel, load.frames)


def spec(**changes) -> TensorSpec:
    fields = {"codec": "none", "dtype": "float32", "shape": (2, 3), "size_bytes": 24}
    return TensorSpec(**fields | changes)


@pytest.mark.parametrize(
    "wrong",
    [
        spec(codec="zip"),
        spec(codec="none", dtype="complex64"),
        spec(codec="none", dtype="int32"),
        spec(codec="raw"),
        spec(dtype="uint8", codec="int8", size_bytes=24, shape=(20,)),
        spec(size_bytes=20),
        spec(size_bytes=-24),
        spec(shape=(3, 3)),
        spec(shape=(-2, -3)),
        spec(shape=(1 << 21, 0), size_bytes=0),
        spec(shape=(2, 3, 1, 1, 1)),
        spec(codec="int8", size_bytes=6),
        spec(codec="bnb8", size_bytes=9),
        spec(codec="bf16", size_bytes=24),
    ],
    ids=str,
)
def test_a_parcel_that_lies_is_refused(wrong):
    """What does not add up never reaches torch."""
    content = bytes(max(1, wrong.size_bytes))
    parcel = Parcel(tensors=(wrong,), size_bytes=len(content), crc=0)
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(Load(parcel=parcel, frames=split(content)))


@pytest.mark.parametrize("content", [bytes(23), bytes(25), b""])
def test_frames_of_another_size_are_refused(content):
    """Frames that were cut short or grew do not decode."""
    parcel = Parcel(tensors=(spec(),), size_bytes=24, crc=0)
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(Load(parcel=parcel, frames=split(content)))


def test_too_many_tensors_are_refused():
    """The bound on what rides along holds on both sides."""
    many = [torch.zeros(1)] * (limits.MAX_TENSORS + 1)
    with pytest.raises(LocalProtocolError, match="at most 4 tensors"):
        encode(many, "none")
    one = TensorSpec(codec="none", dtype="float32", shape=(1,), size_bytes=4)
    parcel = Parcel(tensors=(one,) * len(many), size_bytes=20, crc=0)
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(Load(parcel=parcel, frames=split(bytes(20))))


def test_our_own_mistakes_are_called_so():
    """Sending what cannot travel is a bug of ours, found before it is sent."""
    for tensors, codec in (
        ([torch.zeros(2)], "zip"),
        ([torch.zeros(2, dtype=torch.complex64)], "none"),
        ([torch.zeros(1, 1, 1, 1, 1)], "none"),
        ([torch.zeros(0)], "none"),
        ([], "none"),
    ):
        with pytest.raises(LocalProtocolError):
            encode(tensors, codec)


@settings(max_examples=300)
@given(
    content=st.binary(min_size=1, max_size=64),
    codec=st.sampled_from(["none", "bf16", "int8", "bnb8", "raw"]),
    dtype=st.sampled_from(["float32", "uint8", "float16"]),
    shape=st.lists(st.integers(0, 40), max_size=4),
)
def test_any_bytes_decode_or_are_refused(content, codec, dtype, shape):
    """Garbage gives tensors of the promised shape or RemoteProtocolError, nothing else."""
    described = TensorSpec(codec=codec, dtype=dtype, shape=tuple(shape), size_bytes=len(content))
    frames = split(content)
    parcel = Parcel(tensors=(described,), size_bytes=len(content), crc=checksum(frames))
    try:
        (decoded,) = decode_untrusted(Load(parcel=parcel, frames=frames))
    except RemoteProtocolError:
        return
    assert list(decoded.shape) == shape
