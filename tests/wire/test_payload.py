"""Payloads: cutting, checksums."""

from __future__ import annotations

import array
import zlib

import pytest

from tests.wire.samples import CONTENT, LABELLED, PARCEL, SAMPLES
from zswarm import limits
from zswarm.wire import checksum, intact, split, verify


@pytest.mark.parametrize("size_bytes", [0, 1, limits.MAX_FRAME_BYTES, limits.MAX_FRAME_BYTES + 1])
def test_split_yields_full_frames_and_a_rest(size_bytes: int) -> None:
    """All frames but the last are full, none is empty, and together they are the content."""
    content = bytes(size_bytes)
    frames = split(content)
    assert [len(frame) for frame in frames[:-1]] == [limits.MAX_FRAME_BYTES] * (len(frames) - 1)
    assert all(frames)
    assert b"".join(frames) == content
    assert all(frame.obj is content for frame in frames)


def test_split_counts_bytes_not_items() -> None:
    """A buffer of wider items is cut by bytes."""
    assert [len(frame) for frame in split(array.array("d", [1.0, 2.0]))] == [16]


def test_a_checksum_runs_over_all_frames() -> None:
    """How a payload is cut does not matter to its checksum."""
    assert checksum([CONTENT[:5], memoryview(CONTENT)[5:]]) == zlib.crc32(CONTENT)
    assert checksum([]) == 0


def test_verify_sees_a_flipped_bit() -> None:
    """Only the bytes that the parcel was made for pass."""
    assert verify(PARCEL, [CONTENT])
    assert verify(LABELLED, [CONTENT[:7], CONTENT[7:20]])
    assert not verify(PARCEL, [bytes([CONTENT[0] ^ 1]) + CONTENT[1:]])


def test_a_job_is_intact_when_both_its_parcels_are() -> None:
    """Each parcel has frames of its own."""
    job = SAMPLES["Job"]
    assert intact(job, [CONTENT, CONTENT[:20]])
    assert not intact(job, [CONTENT, CONTENT[1:21]])
    assert not intact(job, [CONTENT[::-1], CONTENT[:20]])
    assert intact(SAMPLES["Ready"], [])
