"""A seeded enemy: takes recorded messages and changes them in ways that get ever further into the codec."""

from __future__ import annotations

import random
import zlib
from typing import Any

import msgpack

from tests.wire.corpus import recorded_frames
from tests.wire.samples import SAMPLES
from zswarm import limits
from zswarm.kinds import KINDS
from zswarm.wire.codec import MAGIC, MAJOR, PRELUDE

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    255,
    256,
    2**31,
    2**32 - 1,
    2**32,
    2**53 + 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    1.5,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "worker",
    "none",
    "float32",
    "x" * (limits.MAX_TEXT_CHARS + 1),
    b"",
    b"\xff" * 16,
    b"\x00" * (limits.MAX_LEDGER_BYTES + 1),
    [],
    [1],
    [0] * (limits.MAX_PARTICIPANTS + 1),
    [[[[[]]]]],
    [limits.MAX_DIMENSION] * 4,
    {},
    {"": None},
    {"size_bytes": 2**64 - 1},
    msgpack.Timestamp(0),
    msgpack.ExtType(5, b"12345"),
)


class Enemy:
    """Makes mutants of the recorded corpus; equal seeds make equal mutants."""

    def __init__(self, seed: int) -> None:
        """Load the corpus."""
        self._random = random.Random(seed)
        self._originals = [recorded_frames(name) for name in SAMPLES]
        self._headers = [frames[0][PRELUDE.size :] for frames in self._originals]

    def mutant(self) -> list[bytes]:
        """Return the frames of one changed message."""
        index = self._random.randrange(len(self._originals))
        first, *payload = self._originals[index]
        draw = self._random.random()
        if draw < 0.2:
            return [self.scribbled(first), *payload]
        if draw < 0.4:
            return [sealed(first[5], self.scribbled(self._headers[index]), payload), *payload]
        if draw < 0.5:
            return [sealed(self._random.choice(tuple(KINDS)), self._headers[index], payload), *payload]
        if draw < 0.6:
            payload = self._reshaped(payload)
            return [sealed(first[5], self._headers[index], payload), *payload]
        mapping = msgpack.unpackb(self._headers[index])
        self._spoil(mapping)
        return [sealed(first[5], msgpack.packb(mapping), payload), *payload]

    def scribbled(self, content: bytes) -> bytes:
        """Return `content` with a few bytes set, inserted, removed or repeated."""
        changed = bytearray(content)
        for _ in range(self._random.randrange(1, 4)):
            at = self._random.randrange(len(changed) + 1)
            match self._random.randrange(4):
                case 0:
                    changed[at : at + 1] = self._random.randbytes(1)
                case 1:
                    changed[at:at] = self._random.randbytes(2)
                case 2:
                    del changed[at : at + self._random.randrange(1, 9)]
                case _:
                    changed[at:at] = changed[at : at + 8]
        return bytes(changed)

    def _reshaped(self, payload: list[bytes]) -> list[bytes]:
        match self._random.randrange(4):
            case 0:
                return payload[:-1]
            case 1:
                return [*payload, b"\0"]
            case 2:
                return [frame[1:] for frame in payload]
            case _:
                return [b""] * self._random.randrange(limits.MAX_FRAMES + 2)

    def _spoil(self, mapping: dict[str, Any]) -> None:
        """Put a hostile value somewhere into a header, however deep, or leave something out."""
        name = self._random.choice(tuple(mapping))
        value = mapping[name]
        draw = self._random.random()
        if isinstance(value, dict) and value and draw < 0.8:
            self._spoil(value)
        elif isinstance(value, list) and value and draw < 0.8:
            at = self._random.randrange(len(value))
            if isinstance(value[at], dict):
                self._spoil(value[at])
            else:
                value[at] = self._random.choice(HOSTILE)
        elif draw < 0.05:
            del mapping[name]
        elif draw < 0.1:
            mapping[name + "_more"] = self._random.choice(HOSTILE)
        else:
            mapping[name] = self._random.choice(HOSTILE)


def sealed(kind: int, header: bytes, payload: list[bytes]) -> bytes:
    """Return frame 0 for any header, its length, checksum and flags being right."""
    crc = zlib.crc32(MAGIC + bytes((MAJOR, kind)) + header)
    return PRELUDE.pack(MAGIC, MAJOR, kind, 1 if payload else 0, len(header), crc, 0) + header
