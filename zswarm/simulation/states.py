"""A layer's state as bytes, in place of a safetensors file: its version again and again, so that a mixture shows."""

from __future__ import annotations

import struct

from stages import tasks
from zswarm.ids import STATE_FILES, StatePart
from zswarm.messages import Load, Parcel
from zswarm.simulation.violation import Violation, require

STATE_BYTES = 40
STATE_RANGE_BYTES = 16
_HEAD = struct.Struct("<QBI")
_STEP = struct.Struct("<QQI")


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


def step_of(before: int, after: int, layer: int) -> bytes:
    """Return the file of what a step has done to a layer: from which version it leads to which."""
    return (_STEP.pack(before, after, layer) * STATE_BYTES)[:STATE_BYTES]


class Imports:
    """What a compute thread has been given of a state that it may adopt."""

    def __init__(self) -> None:
        self._files: dict[tuple[StatePart, int], bytes] = {}
        self._versions: dict[int, int] = {}
        """Of the layers that are no longer of the version that the whole stage has been of."""

    def put(self, task: tasks.Import, present: int) -> None:
        """Keep a range, and make a layer what it says that is whole then; `present` is the stage's version.

        Violation if the range leaves a gap or overlaps, or if a step is taken that does not begin where the layer is.
        """
        file = (task.part, task.layer)
        before = self._files.get(file, b"") if task.offset_bytes else b""
        if len(before) != task.offset_bytes:
            file_name = f"{task.part.name} of layer {task.layer}"
            raise Violation("I3", f"{file_name} is imported from {task.offset_bytes} on after {len(before)} bytes")
        (content,) = task.load.frames
        self._files[file] = before + content
        if len(self._files[file]) < task.total_bytes:
            return
        if task.part is StatePart.GRADIENT:
            self._step(task.layer, self._files.pop(file), self._versions.get(task.layer, present))
        elif all(len(self._files.get((part, task.layer), b"")) == STATE_BYTES for part in STATE_FILES):
            self._replace(task.layer)

    def _step(self, layer: int, content: bytes, present: int) -> None:
        before, after, _ = _STEP.unpack_from(content)
        require(content == step_of(before, after, layer), "I3", f"a step of layer {layer} is a mixture: {content!r}")
        require(before == present, "I3", f"layer {layer} of version {present} takes a step that leads on from {before}")
        self._versions[layer] = after

    def _replace(self, layer: int) -> None:
        versions = {version_of(self._files.pop((part, layer)), part, layer) for part in STATE_FILES}
        require(len(versions) == 1, "I3", f"layer {layer} is made of two versions, {sorted(versions)}")
        self._versions[layer] = versions.pop()

    def adopt(self, layers: range, present: int) -> int:
        """Return the one version that all of these layers are of by now; Violation otherwise."""
        versions = {self._versions.get(layer, present) for layer in layers}
        require(len(versions) == 1, "I3", f"a state is adopted that is a mixture of the versions {sorted(versions)}")
        self._versions.clear()
        return versions.pop()
