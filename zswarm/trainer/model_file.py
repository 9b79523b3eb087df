"""The trained model as one safetensors file, put together from the layers' files without holding them in memory.

    8 bytes   length of the header, little-endian
    header    JSON: name -> dtype, shape, data_offsets; padded with blanks to a multiple of 8
    data      the tensors one after the other, no gaps

Empty tensors come first, then those with the widest items, so that each lies where its items can be read in
place.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zswarm.errors import RunFailed
from zswarm.trainer.run_folder import replace_whole

MAX_HEADER_BYTES = 100_000_000
"""The library's own bound."""
COPIED_AT_ONCE_BYTES = 1 << 20
SYNCED_AT_ONCE_BYTES = 1 << 28
"""The last sync takes a while, in which nobody hears of this process: little is left for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """One tensor, and where it lies."""

    name: str
    dtype: str
    shape: list[int]
    path: Path
    begin: int
    """In the file."""
    size_bytes: int

    @property
    def item_bytes(self) -> int:
        """Size of one item, 0 for a tensor without any."""
        return self.size_bytes // max(1, math.prod(self.shape))


def write_model(path: Path, layers: Sequence[Path], *, turned: Callable[[], None] = lambda: None) -> None:
    """Write all layers as one file, tensors named `layers.<index>.<parameter>`; `turned` is called now and then.

    Raises:
        RunFailed: a layer's file is none, or the model cannot be written.

    """
    tensors = []
    for index, layer in enumerate(layers):
        try:
            tensors += _tensors_of(layer, prefix=f"layers.{index}.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunFailed(f"{layer}: is no safetensors file: {error}") from None
    tensors.sort(key=lambda tensor: (tensor.size_bytes > 0, -tensor.item_bytes))
    replace_whole(path, lambda temporary: _write(temporary, tensors, turned))


def _tensors_of(path: Path, *, prefix: str) -> list[_Tensor]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size_bytes}")
        header: dict[str, Any] = json.loads(file.read(length))
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= size_bytes - 8 - length:
            raise ValueError(f"{name} lies outside of the file")
        if not all(type(size) is int and size >= 0 for size in entry["shape"]):
            raise ValueError(f"{name} has the shape {entry['shape']}")
        found.append(
            _Tensor(
                name=prefix + name,
                dtype=entry["dtype"],
                shape=entry["shape"],
                path=path,
                begin=8 + length + begin,
                size_bytes=end - begin,
            )
        )
    return found


def _write(path: Path, tensors: list[_Tensor], turned: Callable[[], None]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target:
        target.write(len(text).to_bytes(8, "little"))
        target.write(text)
        synced_bytes = 0
        for tensor in tensors:
            with tensor.path.open("rb") as source:
                source.seek(tensor.begin)
                for size_bytes in _copy(source, target, tensor.size_bytes):
                    synced_bytes += size_bytes
                    if synced_bytes >= SYNCED_AT_ONCE_BYTES:
                        synced_bytes = 0
                        target.flush()
                        os.fsync(target.fileno())
                    turned()


def _copy(source: BinaryIO, target: BinaryIO, size_bytes: int) -> Iterator[int]:
    """Copy so many bytes; yields how many it were, block after block."""
    while size_bytes:
        block = source.read(min(size_bytes, COPIED_AT_ONCE_BYTES))
        if not block:
            raise OSError(f"{source.name}: ends too early")
        target.write(block)
        size_bytes -= len(block)
        yield len(block)
