"""Messages recorded as they stood on the wire: one file per kind, the frames of one multipart.

    file    any number of: length of a frame (u32, network order), frame

Peers one version apart must understand each other, so what was recorded has to be read for ever. After
a deliberate change of the wire, `python -m tests.wire.corpus` records what the samples look like now.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.wire.samples import SAMPLES, payload_for
from zswarm.wire import MAJOR, encode

FOLDER = Path(__file__).parent / "corpus" / f"v{MAJOR}"
SEQUENCE = 2**33 + 1
_LENGTH = struct.Struct("!I")


def sample_frames(name: str) -> list[bytes]:
    """Return the frames that the sample of this kind has today."""
    message = SAMPLES[name]
    return [bytes(frame) for frame in encode(message, payload_for(message), sequence=SEQUENCE)]


def recorded_frames(name: str) -> list[bytes]:
    """Return the frames that were recorded for this kind."""
    recording = (FOLDER / f"{name}.bin").read_bytes()
    frames = []
    at = 0
    while at < len(recording):
        (size_bytes,) = _LENGTH.unpack_from(recording, at)
        at += _LENGTH.size
        frames.append(recording[at : at + size_bytes])
        at += size_bytes
    return frames


def record() -> None:
    """Write the corpus of the current version anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in SAMPLES:
        content = b"".join(_LENGTH.pack(len(frame)) + frame for frame in sample_frames(name))
        (FOLDER / f"{name}.bin").write_bytes(content)


if __name__ == "__main__":
    record()
