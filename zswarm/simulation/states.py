"""A layer's state as bytes, in place of a safetensors file: its version again and again, so that a mixture shows."""

from __future__ import annotations

import struct

from stages import tasks
from zswarm.ids import StatePart
from zswarm.messages import Load, Parcel
from zswarm.simulation.violation import Violation, require

STATE_BYTES = 40
STATE_RANGE_BYTES = 16
_HEAD = struct.Struct("<QBI")


def content_of(version: int, part: StatePart, layer: int) -> bytes:
    """Return the file of one part of one layer of a stage whose parameters are that version."""
    head = _HEAD.pack(version, part, layer)
    return (head * STATE_BYTES)[:STATE_BYTES]


def version_of(content: bytes, part: StatePart, layer: int) -> int:
    """Return the version that a file is of; Violation if it is of several, or of another part or layer."""
    if len(content) != STATE_BYTES:
        raise Violation("I3", f"{part.name} of layer {layer} has {len(content)} bytes")
    version = int(_HEAD.unpack_from(content)[0])
    if content != content_of(version, part, layer):
        raise Violation("I3", f"{part.name} of layer {layer} is a mixture: {content!r}")
    return version


def range_of(content: bytes, offset_bytes: int) -> Load:
    """Return the range of a file that begins at `offset_bytes`."""
    chunk = content[offset_bytes : offset_bytes + STATE_RANGE_BYTES]
    require(chunk, "I3", f"a range from {offset_bytes} on was asked for, of {len(content)} bytes")
    return Load(parcel=Parcel(tensors=(), size_bytes=len(chunk), crc=0), frames=(chunk,))


class Imports:
    """What a compute thread has been given of a state that it may adopt."""

    def __init__(self) -> None:
        self._files: dict[tuple[StatePart, int], bytes] = {}

    def put(self, task: tasks.Import) -> None:
        """Keep a range; Violation if it leaves a gap or overlaps."""
        file = (task.part, task.layer)
        before = self._files.get(file, b"") if task.offset_bytes else b""
        if len(before) != task.offset_bytes:
            file_name = f"{task.part.name} of layer {task.layer}"
            raise Violation("I3", f"{file_name} is imported from {task.offset_bytes} on after {len(before)} bytes")
        (content,) = task.load.frames
        self._files[file] = before + content

    def adopt(self, layers: range) -> int:
        """Return the one version that all parts of these layers are of, and forget them; Violation otherwise."""
        versions = {
            version_of(self._files.get((part, layer), b""), part, layer) for layer in layers for part in StatePart
        }
        require(len(versions) == 1, "I3", f"a state is adopted that is a mixture of the versions {sorted(versions)}")
        self._files.clear()
        return versions.pop()
