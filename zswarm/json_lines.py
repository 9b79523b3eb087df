"""Files of one JSON object per line: append-only, readable while they are written, safe against a torn end."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from zswarm.errors import RunFailed, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BLOCK_BYTES = 1 << 16
"""What is read at once in the search for the last newline."""
HOLE = b"\0"
"""What a power cut may leave in place of a block that was not written yet, with later ones behind it; no JSON has it."""


class JsonLinesWriter:
    """Appends records to a file, new or not; a context manager that closes it.

    What a crash or a full disk has left of a line is cut off before the next one is written, so that the file is whole
    lines and at most one torn one at its end.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UserError: that is impossible.

        """
        self._path = path
        self._file = -1
        try:
            is_new = not path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._whole_bytes = _whole_bytes(self._file)
            self._is_torn = self._whole_bytes < os.fstat(self._file).st_size
            if is_new:
                sync(path.parent)
        except OSError as error:
            self.close()
            raise UserError(f"{path}: cannot open the file: {error.strerror}") from None

    def append(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        """Write a record as one line; with `durable` it is on the disk when this returns.

        Numbers that are not finite are written as null.

        Raises:
            RunFailed: the disk is full or broken. The record is not there, and may be appended again.

        """
        line = encode(record) + b"\n"
        try:
            if self._is_torn:
                os.ftruncate(self._file, self._whole_bytes)
            self._is_torn = True
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if durable:
                os.fsync(self._file)
        except OSError as error:
            raise RunFailed(f"{self._path}: cannot write: {error.strerror}; what was written before is valid") from None
        self._is_torn = False
        self._whole_bytes += len(line)

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole_bytes(file: int) -> int:
    """Return the length of a file up to the end of the last whole line that no hole comes before."""
    end = _end_of_text(file)
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _end_of_text(file: int) -> int:
    """Return where a hole begins, zeros in the place of what was never synced, or the file's end."""
    begin, size = 0, os.fstat(file).st_size
    while begin < size and (block := os.pread(file, BLOCK_BYTES, begin)):
        hole = block.find(HOLE)
        if hole >= 0:
            return begin + hole
        begin += len(block)
    return size


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def encode(value: Any) -> bytes:
    """Return strict JSON on one line, null for numbers that are not finite."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a file: its number, counted from 1, and the object on it; None where it holds none."""

    number: int
    record: dict[str, Any] | None


def read_json_lines(path: Path, *, to_hole: bool = False) -> tuple[list[Line], int]:
    """Return the complete lines of a file, and how many bytes of a torn last line follow them.

    A line is complete when its newline is there. With `to_hole`, what comes behind a hole counts as torn: it was not synced
    either. A line that is not one JSON object with distinct
    keys is returned with the record None.

    Raises:
        UserError: the file cannot be read.

    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    *complete, _ = (text.partition(HOLE)[0] if to_hole else text).split(b"\n")
    num_torn = len(text) - sum(len(line) + 1 for line in complete)
    return [Line(number=number, record=_decode(line)) for number, line in enumerate(complete, 1)], num_torn


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
