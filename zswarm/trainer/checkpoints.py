"""Checkpoints on the disk: the state of every layer after a step, complete or not there at all.

    checkpoints/
        branch-0-step-40/
            layer-0.safetensors             parameters
            layer-0.optimizer.safetensors   optimizer state
            ...
            manifest.json                   run, branch, step, layers; size and blake2b of each file
        .branch-0-step-60.new/              in work; a leftover when the run is taken up again
        damaged-branch-0-step-20/           whole by its sizes, and not by its hashes; goes with the next good one

A checkpoint is written into its hidden folder; then every file is synced, the manifest last, and the folder gets its
name. Whatever goes wrong on the way ends the attempt and leaves the earlier ones alone. There is a file
per layer and part, so a run can go on with another number of stages.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from zswarm import limits
from zswarm.errors import RunFailed, UserError
from zswarm.ids import STATE_FILES, Branch, RunId, StatePart, Step, Version
from zswarm.json_lines import sync
from zswarm.logs import get_log
from zswarm.trainer.run_folder import NO_ROOM
from zswarm.trainer.settings import Read, Sealed, Store, WasRead
from zswarm.wire import parcelled

MANIFEST = "manifest.json"
HASHED_AT_ONCE_BYTES = 1 << 20
_NAME = re.compile(r"branch-(\d{1,10})-step-(\d{1,10})")
_SUFFIX = {StatePart.PARAMETERS: "", StatePart.OPTIMIZER: ".optimizer"}


class FileEntry(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(frozen=True, strict=True)

    size_bytes: int
    blake2b: str


class Manifest(BaseModel):
    """`manifest.json`; unknown keys are of newer versions."""

    model_config = ConfigDict(frozen=True, strict=True)

    run: str
    """64 bits as hexadecimal digits."""
    branch: int
    step: int
    layers: int
    files: dict[str, FileEntry]


@dataclass(slots=True)
class _Growing:
    """A file that is being written."""

    total_bytes: int
    size_bytes: int = 0
    hash: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=32))


@dataclass(slots=True)
class _Attempt:
    """A checkpoint that is being written."""

    version: Version
    path: Path
    files: dict[str, _Growing] = field(default_factory=dict)
    problem: str = ""
    lacks_room: bool = False


class Checkpoints:
    """See the module. Everything here may wait for the disk; see checkpoint_thread.py."""

    def __init__(self, path: Path, *, run: RunId, num_layers: int, keep: int) -> None:
        """Take over the folder `path`, which need not be there, and remove what was never completed.

        Raises:
            UserError: it cannot be made.

        """
        self._path = path
        self._run = f"{run:016x}"
        self._num_layers = num_layers
        self._keep = keep
        self._attempt: _Attempt | None = None
        self._manifests: dict[Version, Manifest] = {}
        self._verified: set[tuple[Version, str]] = set()
        self._log = get_log()
        try:
            path.mkdir(exist_ok=True)
            for leftover in path.glob(".*.new"):
                shutil.rmtree(leftover)
        except OSError as error:
            raise UserError(f"{path}: cannot make the folder: {error.strerror}") from None

    # -- writing -------------------------------------------------------------------------------------

    def store(self, command: Store) -> None:
        """Write a range; what goes wrong is told when the checkpoint is sealed."""
        attempt = self._attempt_at((command.branch, command.step))
        if attempt.problem:
            return
        name = file_name(command.layer, command.part)
        try:
            self._write(attempt, name, command)
        except OSError as error:
            self._fail(attempt, f"{attempt.path / name}: cannot write: {error.strerror}")
            attempt.lacks_room = error.errno in NO_ROOM

    def _attempt_at(self, version: Version) -> _Attempt:
        """Return the attempt at a checkpoint; there is one at a time, so another one has been given up."""
        if self._attempt is None or self._attempt.version != version:
            if self._attempt is not None:
                self.forsake(self._attempt.version)
            self._attempt = _Attempt(version, self._path / f".{folder_name(version)}.new")
        return self._attempt

    def _write(self, attempt: _Attempt, name: str, command: Store) -> None:
        attempt.path.mkdir(exist_ok=True)
        if command.offset_bytes == 0:
            attempt.files[name] = _Growing(command.total_bytes)
        growing = attempt.files.get(name)
        if growing is None or command.offset_bytes != growing.size_bytes or command.total_bytes != growing.total_bytes:
            self._fail(attempt, f"layer {command.layer} came in pieces that do not fit together")
            return
        with (attempt.path / name).open("ab" if command.offset_bytes else "wb") as file:
            for frame in command.load.frames:
                file.write(frame)
                growing.hash.update(frame)
        growing.size_bytes += command.load.parcel.size_bytes

    def _fail(self, attempt: _Attempt, problem: str) -> None:
        """Remember why, and make room on the disk."""
        attempt.problem = problem
        shutil.rmtree(attempt.path, ignore_errors=True)

    def forsake(self, version: Version) -> None:
        """Remove what was written of a checkpoint, if it is in work."""
        if self._attempt is not None and self._attempt.version == version:
            shutil.rmtree(self._attempt.path, ignore_errors=True)
            self._attempt = None

    def seal(self, version: Version) -> Sealed:
        """Make a checkpoint durable."""
        attempt = self._attempt_at(version)
        try:
            problem = attempt.problem or self._missing(attempt) or self._complete(attempt)
        except OSError as error:
            problem = f"{attempt.path}: cannot write: {error.strerror}"
            attempt.lacks_room = error.errno in NO_ROOM
        self.forsake(version)
        return Sealed(branch=version[0], step=version[1], problem=problem, lacks_room=attempt.lacks_room)

    def _missing(self, attempt: _Attempt) -> str:
        for name in self._file_names():
            growing = attempt.files.get(name)
            if growing is None or growing.size_bytes != growing.total_bytes:
                return f"{name} has not come whole"
        return ""

    def _complete(self, attempt: _Attempt) -> str:
        branch, step = attempt.version
        manifest = Manifest(
            run=self._run,
            branch=branch,
            step=step,
            layers=self._num_layers,
            files={
                name: FileEntry(size_bytes=growing.size_bytes, blake2b=growing.hash.hexdigest())
                for name, growing in sorted(attempt.files.items())
            },
        )
        for name in attempt.files:
            sync(attempt.path / name)
        (attempt.path / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1) + "\n")
        sync(attempt.path / MANIFEST)
        sync(attempt.path)
        if self._is_there(attempt.version):
            # Of a life that ended before it could say so in the log.
            return ""
        attempt.path.rename(self._folder(attempt.version))
        sync(self._path)
        return ""

    def _is_there(self, version: Version) -> bool:
        """Is a checkpoint complete already? One that is damaged makes room."""
        if not self._folder(version).exists():
            return False
        try:
            self._check(version, with_hashes=True)
        except (OSError, RunFailed):
            self._set_aside(version)
            return False
        return True

    def tidy(self, back_to: Version | None) -> None:
        """Remove what is older than the newest `keep`, and what is damaged.

        With `back_to` remove first what has become void because the run has gone back to that step, on that branch. To be
        called when the log says which one is the newest: not before is an older one dispensable.
        """
        with suppress(OSError):
            if back_to is not None:
                branch, step = back_to
                self._remove([version for version in self._versions() if version[0] < branch and version[1] > step])
            self._remove(self._versions()[self._keep :])
            for damaged in self._path.glob("damaged-*"):
                shutil.rmtree(damaged)

    def _remove(self, versions: list[Version]) -> None:
        for version in versions:
            self._forget(version)
            # A removal that is cut short must not leave what looks complete.
            doomed = self._folder(version).rename(self._path / f".{folder_name(version)}.old.new")
            shutil.rmtree(doomed)

    # -- reading -------------------------------------------------------------------------------------

    def newest(self, is_void: Callable[[Version], bool], *, with_hashes: bool) -> Version | None:
        """Return the newest one that is complete and not void; what is damaged is said in the log and set aside.

        Without `with_hashes` only sizes are compared; a file is hashed before anything of it is given away in any case.
        """
        for version in self._versions():
            if is_void(version):
                continue
            try:
                self._check(version, with_hashes=with_hashes)
            except (OSError, RunFailed) as error:
                self._log.warning("checkpoint skipped", branch=version[0], step=version[1], reason=str(error))
                if isinstance(error, RunFailed | FileNotFoundError):
                    self._set_aside(version)
            else:
                return version
        return None

    def read(self, command: Read) -> WasRead:
        """Read a range of a layer's state."""
        pull, version = command.pull, command.checkpoint
        name = file_name(pull.layer, pull.part)
        try:
            if not 0 <= pull.layer < self._num_layers:
                raise ValueError(f"it has {self._num_layers} layers, and layer {pull.layer} was asked for")
            size_bytes = self._checked_size_bytes(version, name)
            if not 0 <= pull.offset_bytes < size_bytes:
                raise ValueError(f"{name} has {size_bytes} bytes, and byte {pull.offset_bytes} was asked for")
            with (self._folder(version) / name).open("rb") as file:
                file.seek(pull.offset_bytes)
                content = file.read(limits.STATE_RANGE_BYTES)
        except (OSError, RunFailed, ValueError) as error:
            return self._unread(command, error)
        return WasRead(peer=command.peer, pull=pull, total_bytes=size_bytes, load=parcelled(content, ()))

    def _unread(self, command: Read, error: Exception) -> WasRead:
        """Say why a range cannot be read, and if the checkpoint is damaged, which others there are."""
        problem = f"the checkpoint of step {command.checkpoint[1]} cannot be read: {error}"
        self._log.warning("checkpoint not read", reason=problem)
        unread = WasRead(peer=command.peer, pull=command.pull, total_bytes=0, load=None, problem=problem)
        if _is_damage(error):
            with suppress(OSError):
                left = tuple(version for version in self._versions() if version != command.checkpoint)
                return replace(unread, is_damaged=True, left=left)
        return unread

    def parameter_files(self, version: Version, *, turned: Callable[[], None] = lambda: None) -> list[Path]:
        """Return the files of all layers' parameters, first layer first, their hashes checked; `turned` is called now and then.

        Raises:
            RunFailed: one is damaged.

        """
        names = [file_name(layer, StatePart.PARAMETERS) for layer in range(self._num_layers)]
        try:
            for name in names:
                self._checked_size_bytes(version, name, turned=turned)
        except OSError as error:
            raise RunFailed(f"the checkpoint of step {version[1]} cannot be read: {error}") from None
        return [self._folder(version) / name for name in names]

    def _checked_size_bytes(self, version: Version, name: str, *, turned: Callable[[], None] = lambda: None) -> int:
        """Return the size of a file whose hash is right; it is computed once.

        Raises:
            OSError, RunFailed: it is not there, or damaged, as then the whole checkpoint is.

        """
        manifest = self._manifest(version)
        entry = manifest.files.get(name)
        if entry is None:
            raise RunFailed(f"it has no {name}")
        if (version, name) not in self._verified:
            path = self._folder(version) / name
            if path.stat().st_size != entry.size_bytes or _hash(path, turned) != entry.blake2b:
                self._set_aside(version)
                raise RunFailed(f"{path}: is damaged, its hash is not the manifest's")
            self._verified.add((version, name))
        return entry.size_bytes

    def _set_aside(self, version: Version) -> None:
        """Take its name from a damaged checkpoint, so that nobody, no later life either, goes back to it."""
        self._forget(version)
        if not self._folder(version).exists():
            return
        target = self._path / f"damaged-{folder_name(version)}"
        shutil.rmtree(target, ignore_errors=True)
        with suppress(OSError):
            self._folder(version).rename(target)

    def _check(self, version: Version, *, with_hashes: bool) -> None:
        """Raise OSError or RunFailed unless a checkpoint is complete."""
        manifest = self._manifest(version)
        if (manifest.run, manifest.layers) != (self._run, self._num_layers):
            raise RunFailed("it is another run's")
        for name in self._file_names():
            entry = manifest.files.get(name)
            if entry is None or (self._folder(version) / name).stat().st_size != entry.size_bytes:
                raise RunFailed(f"{name} is not there as the manifest says")
            if with_hashes:
                self._checked_size_bytes(version, name)

    def _manifest(self, version: Version) -> Manifest:
        """Return a checkpoint's manifest.

        Raises:
            OSError, RunFailed: it cannot be read, or is none.

        """
        if version not in self._manifests:
            path = self._folder(version) / MANIFEST
            try:
                found = Manifest.model_validate_json(path.read_bytes())
            except ValidationError:
                raise RunFailed(f"{path}: is no manifest of a checkpoint") from None
            if (found.branch, found.step) != version:
                raise RunFailed(f"{path}: is the manifest of another checkpoint")
            self._manifests[version] = found
        return self._manifests[version]

    def _versions(self) -> list[Version]:
        """Return the checkpoints that have got their name, newest first."""
        if not self._path.is_dir():
            return []
        matches = [_NAME.fullmatch(path.name) for path in self._path.iterdir()]
        found = [(Branch(int(match[1])), Step(int(match[2]))) for match in matches if match is not None]
        return sorted(found, reverse=True)

    def _forget(self, version: Version) -> None:
        self._manifests.pop(version, None)
        self._verified = {(of, name) for of, name in self._verified if of != version}

    def _folder(self, version: Version) -> Path:
        return self._path / folder_name(version)

    def _file_names(self) -> Iterator[str]:
        for layer in range(self._num_layers):
            for part in STATE_FILES:
                yield file_name(layer, part)


def _is_damage(error: Exception) -> bool:
    """Is a checkpoint of which this was said lost for good? What the device cannot read is, as what is wrong or not there."""
    return isinstance(error, RunFailed | FileNotFoundError) or (isinstance(error, OSError) and error.errno == errno.EIO)


def folder_name(version: Version) -> str:
    """Return the name of a checkpoint's folder."""
    return f"branch-{version[0]}-step-{version[1]}"


def file_name(layer: int, part: StatePart) -> str:
    """Return the name of the file of one part of a layer's state."""
    return f"layer-{layer}{_SUFFIX[part]}.safetensors"


def _hash(path: Path, turned: Callable[[], None]) -> str:
    found = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(HASHED_AT_ONCE_BYTES):
            found.update(block)
            turned()
    return found.hexdigest()
