"""Sets of microbatches as bitmaps: bit m is set when microbatch m is in the set."""

from __future__ import annotations

from collections.abc import Iterator

from zswarm.ids import Microbatch


def to_bytes(bitmap: int) -> bytes:
    """Pack a bitmap for a message header, least significant byte first."""
    return bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "little")


def from_bytes(packed: bytes) -> int:
    """Unpack a bitmap from a message header; any bytes are a valid bitmap."""
    return int.from_bytes(packed, "little")


def members(bitmap: int) -> Iterator[Microbatch]:
    """Yield the microbatches in the bitmap in increasing order."""
    while bitmap:
        lowest = bitmap & -bitmap
        yield Microbatch(lowest.bit_length() - 1)
        bitmap ^= lowest


def full(num_microbatches: int) -> int:
    """Return the bitmap of all microbatches of a step."""
    return (1 << num_microbatches) - 1
