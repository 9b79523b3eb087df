"""Where samples come from: a corpus of bytes, cut into a trained and a held-out part.

A token is a byte; a sample is a window of sequence_length + 1 bytes, of which the first
sequence_length are tokens and the last sequence_length the labels (each the byte after its token).

    corpus   |------- chunk 0 -------|------- chunk 1 -------|- ...
             |    trained    |held out|    trained    |held out|

The corpus is cut into up to 64 chunks of equal length, and the last `held_out` fraction of each
is kept aside. So both parts are spread over the whole corpus, and since no window crosses a border, no
byte of one part is ever seen with the other.

Which windows are trained on depends only on (seed, step, index of the sample within the step), not on
the size of a microbatch. The held-out windows are the same for every seed.

Legend: B sequences of a microbatch, T tokens of a sequence.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zswarm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from zswarm.config import RunConfig

    Bytes_BT = NDArray[np.uint8]

MAX_CHUNKS = 64
WINDOWS_PER_PART = 8
"""A chunk is made no shorter than what lets its smaller part hold this many windows."""
RESIDENT_BYTES = 1 << 24
"""Larger files are mapped into memory instead of read."""
HASHED_BYTES = 1 << 16
"""Of such a file at its beginning and at its end."""
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"})
"""Not of the standard library, tests, and tables of character sets (half of their bytes are one escape)."""
EXCLUDED_PREFIX = "_sysconfigdata"
"""Generated when Python was built: differs from machine to machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Windows of a corpus that lie wholly within ranges of equal length."""

    starts: NDArray[np.int64]
    """First byte of each range."""
    windows_per_range: int

    @property
    def num_windows(self) -> int:
        """Windows of this part, overlapping ones included."""
        return len(self.starts) * self.windows_per_range

    def offsets(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first byte of each of the windows, which are numbered from 0 to num_windows - 1."""
        ranges, rest = np.divmod(windows, self.windows_per_range)
        return self.starts[ranges] + rest


class Source:
    """Samples of a run, as uint8 arrays [B, T]."""

    def __init__(self, corpus: Sequence[NDArray[np.uint8]], config: RunConfig) -> None:
        """Cut `corpus`, whose arrays follow each other without a gap.

        Raises:
            UserError: the corpus is too small for one window in either part.

        """
        self._pieces = [piece for piece in corpus if len(piece)]
        self._ends = list(accumulate(len(piece) for piece in self._pieces))
        self._seed = config.run.seed
        self._batch_size = config.batch.microbatch
        self._window_bytes = config.sequence_length + 1
        self._num_held_out = config.data.held_out_microbatches
        self.trained, self.held_out_part = _cut(self.size_bytes, self._window_bytes, held_out=config.data.held_out)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole corpus."""
        return self._ends[-1] if self._ends else 0

    def digest(self) -> bytes:
        """Return what tells this corpus from another one: the sizes of its pieces, and their first and last bytes.

        What has been changed in the middle of a large file, with its length kept, is not noticed.
        """
        found = hashlib.blake2b(digest_size=16)
        for piece in self._pieces:
            found.update(len(piece).to_bytes(8, "big"))
            if len(piece) <= RESIDENT_BYTES:
                found.update(piece.data)
            else:
                found.update(piece[:HASHED_BYTES].tobytes())
                found.update(piece[-HASHED_BYTES:].tobytes())
        return found.digest()

    @property
    def num_held_out(self) -> int:
        """How many microbatches `held_out` has."""
        return self._num_held_out

    def samples(self, step: int, microbatch: int) -> tuple[Bytes_BT, Bytes_BT]:
        """Return tokens and labels [B, T] of a microbatch to train on."""
        keys = np.random.SeedSequence(self._seed, spawn_key=(step,)).generate_state(2, np.uint64)
        first = microbatch * self._batch_size
        block, skipped = divmod(first, 4)  # one value of Philox's counter gives four draws
        draws = np.random.Philox(key=keys, counter=block).random_raw(skipped + self._batch_size)[skipped:]
        windows = (draws % np.uint64(self.trained.num_windows)).astype(np.int64)
        return self._read(self.trained.offsets(windows))

    def held_out(self, microbatch: int) -> tuple[Bytes_BT, Bytes_BT]:
        """Return tokens and labels [B, T] of a held-out microbatch; all of them are spread evenly."""
        if not 0 <= microbatch < self._num_held_out:
            raise IndexError(f"there are {self._num_held_out} held-out microbatches, not {microbatch + 1}")
        indices = np.arange(microbatch * self._batch_size, (microbatch + 1) * self._batch_size, dtype=np.int64)
        num_samples = self._num_held_out * self._batch_size
        return self._read(self.held_out_part.offsets(indices * self.held_out_part.num_windows // num_samples))

    def _read(self, offsets: NDArray[np.int64]) -> tuple[Bytes_BT, Bytes_BT]:
        windows = np.stack([self._window(int(offset)) for offset in offsets])
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def _window(self, offset: int) -> NDArray[np.uint8]:
        """Return `window_bytes` bytes from `offset` on, [T + 1]; a window may span pieces."""
        found: list[NDArray[np.uint8]] = []
        missing, index = self._window_bytes, bisect_right(self._ends, offset)
        while missing:
            piece = self._pieces[index]
            begin = offset - (self._ends[index] - len(piece))
            found.append(piece[begin : begin + missing])
            missing -= len(found[-1])
            offset += len(found[-1])
            index += 1
        return np.concatenate(found)


def open_source(config: RunConfig) -> Source:
    """Read the corpus that the run file names.

    Raises:
        UserError: a file is missing or unreadable, or all of them are too small.

    """
    source = config.data.source
    paths = _standard_library() if source == "stdlib" else _files(source)
    return Source([_load(path) for path in paths], config)


def _cut(size_bytes: int, window_bytes: int, *, held_out: float) -> tuple[Part, Part]:
    smaller = min(held_out, 1 - held_out)
    num_chunks = max(1, min(MAX_CHUNKS, int(size_bytes * smaller) // (WINDOWS_PER_PART * window_bytes)))
    chunk_bytes = size_bytes // num_chunks
    held_out_bytes = int(chunk_bytes * held_out)
    trained_bytes = chunk_bytes - held_out_bytes
    if min(held_out_bytes, trained_bytes) < window_bytes:
        least = -int(-(window_bytes + 1) // smaller)
        raise UserError(
            f"data.source: {size_bytes} bytes are too few to train on sequences of {window_bytes - 1} and to keep "
            f"the fraction data.held_out = {held_out} aside: give more text (about {least} bytes or more), or write a "
            f"smaller model.sequence_length{' or a larger data.held_out' if held_out == smaller else ''}"
        )
    starts = np.arange(num_chunks, dtype=np.int64) * chunk_bytes
    return (
        Part(starts=starts, windows_per_range=trained_bytes - window_bytes + 1),
        Part(starts=starts + trained_bytes, windows_per_range=held_out_bytes - window_bytes + 1),
    )


def _standard_library() -> Iterator[Path]:
    """Yield every source file of the running Python's standard library, in the same order everywhere."""
    top = sysconfig.get_path("stdlib")
    found = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(EXCLUDED_PREFIX)]
    if not found:
        raise UserError(
            f"data.source: this Python has no source files of its standard library in {top}: "
            'write the paths of your own text, such as source = ["corpus/*.txt"]'
        )
    yield from sorted(found, key=lambda path: path.relative_to(top).parts)


def _files(patterns: Sequence[str]) -> Iterator[Path]:
    """Yield every file once: patterns in their order, the matches of each in order of their names."""
    seen = set()
    for pattern in patterns:
        try:
            literal = Path(pattern).exists()
            matches = [pattern] if literal else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute
        except PermissionError:
            literal, matches = False, []
        except (OSError, ValueError) as error:
            raise UserError(f"data.source: {pattern!r} is no path: {error}: write that of a file, or a glob") from None
        files = [Path(match) for match in matches if literal or not Path(match).is_dir()]
        if not files:
            _check_folder(pattern)
            raise UserError(
                f"data.source: no file at {pattern}: write the path of a file, or a glob such as corpus/*.txt; a "
                "relative path counts from the run file's folder"
            )
        for file in files:
            if file not in seen:
                seen.add(file)
                yield file


def _check_folder(pattern: str) -> None:
    """Raise UserError if where the files would be is closed to this user: they may be there."""
    folder = next(parent for parent in Path(pattern).parents if os.path.isdir(parent))  # noqa: PTH112 - a closed one is none
    if not os.access(folder, os.X_OK | (os.R_OK if glob.has_magic(pattern) else 0)):
        raise UserError(
            f"data.source: cannot look into {folder} for {pattern}: let this user read it, or write another path"
        )


def _load(path: Path) -> NDArray[np.uint8]:
    if path.is_dir():
        raise UserError(f"data.source: {path} is a folder: write {path}/*.txt for the files in it")
    try:
        if path.stat().st_size > RESIDENT_BYTES:
            return np.memmap(path, dtype=np.uint8, mode="r")
        return np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise UserError(
            f"data.source: cannot read {path}: {error.strerror}: let this user read it, or leave it out"
        ) from None
