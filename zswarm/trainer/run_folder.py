"""The folder of a run: what it was, what happened, what came out.

    run.toml            the run file as it was given
    run.json            the configuration in force, overrides applied
    events.jsonl        append-only: every commit with its ledgers, every join, leave, move and abort
    metrics.jsonl       append-only: one line per step, again for steps that a rollback has undone
    checkpoints/        the newest states that are whole, see checkpoints.py
    processes.json      of `zswarm local`: the process id of each child, written whole whenever one is started
    summary.json        written whole, when the run ends
    model.safetensors   written whole, when all steps are done
    lock                held by the process that the folder belongs to, whose id it says

The folder is valid at any moment: files are appended line by line or replaced as a whole. A run that was cut
short goes on in its folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zswarm.config import RunConfig
from zswarm.errors import NotYet, RemoteProtocolError, RunFailed, UserError
from zswarm.json_lines import JsonLinesWriter, encode, read_json_lines, sync
from zswarm.trainer.recovery import Recovered, recover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from zswarm.json_lines import Line

EVENTS = "events.jsonl"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
RUN_FILE = "run.toml"
CONFIGURATION = "run.json"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
PROCESSES = "processes.json"
LOCK = "lock"
BEFORE_THE_LOG = {RUN_FILE, CONFIGURATION, PROCESSES, LOCK, CHECKPOINTS}
"""What a run folder holds before the trainer has opened its log."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""What the system says of a disk that is full, or of which this user has had his share."""
LASTING = ("model", "data", "batch", "optimizer")
"""Sections that a run keeps for its whole life."""


class DiskFull(RunFailed):
    """A file cannot be written for lack of room."""


class RunFolder:
    """A run folder that belongs to this process; a context manager that closes its files and gives it up."""

    def __init__(self, path: Path) -> None:
        """Take possession of a folder that is there.

        Raises:
            UserError: another process has it, or it cannot be written in.

        """
        self.path = path
        self._files = ExitStack()
        self._lock = _take_lock(path / LOCK)
        self._files.callback(os.close, self._lock)

    @cached_property
    def events(self) -> JsonLinesWriter:
        """The event log; made when it is first written to, in the process that writes it."""
        return self._files.enter_context(JsonLinesWriter(self.path / EVENTS))

    @cached_property
    def metrics(self) -> JsonLinesWriter:
        """The metrics, made like the event log."""
        return self._files.enter_context(JsonLinesWriter(self.path / METRICS))

    @property
    def model_path(self) -> Path:
        """Where the trained model goes, as one safetensors file."""
        return self.path / MODEL

    @property
    def checkpoints_path(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def recover(self) -> Recovered | None:
        """Return what the event log says of the run so far, None if it has not begun; a torn end is left out.

        Raises:
            UserError: the log cannot be read, or says what cannot be.

        """
        path = self.path / EVENTS
        if not path.exists():
            return None
        lines, _ = read_json_lines(path, to_hole=True)
        try:
            return recover(_records(lines))
        except ValueError as error:
            raise UserError(
                f"{path}: {error}: the log of this run is damaged, and the run cannot go on: begin anew in another folder"
            ) from None

    def describe(self, config: RunConfig, run_file: Path | None) -> None:
        """Write down what run this is, as far as it is not there yet: a run goes on on a full disk, too.

        Raises:
            OSError: the run file cannot be read.
            RunFailed: a file cannot be made.

        """
        if run_file is not None:
            _write_news(self.path / RUN_FILE, run_file.read_bytes())
        _write_news(self.path / CONFIGURATION, _pretty(json.loads(config.canonical_json())))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write, or replace, `summary.json` as a whole."""
        write_whole(self.path / SUMMARY, _pretty(summary))

    def is_summed_up(self, num_steps: int) -> bool:
        """Is there a summary of so many steps?"""
        try:
            summary = json.loads((self.path / SUMMARY).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and summary.get("steps") == num_steps

    def close(self) -> None:
        """Close the files and give the folder up."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run_folder(
    config: RunConfig, *, out: Path | None = None, run_file: Path | None = None, resume: bool = False
) -> RunFolder:
    """Make the folder `out`, or the next free `runs/<name>-<n>`, and return it open.

    With `resume`, `out` may be the folder of the same run that has not come to its end.

    Raises:
        UserError: it is neither empty nor such a run's, is no folder, cannot be made, or belongs to another process.
        NotYet: the disk is full.

    """
    path = _next_free(Path("runs"), config.run.name) if out is None else _make(out, resume=resume)
    folder = RunFolder(path)
    try:
        _check_same_run(folder, config)
        folder.describe(config, run_file)
    except DiskFull as error:
        folder.close()
        raise NotYet(f"{error}: make room there, or name a folder on another disk with --out") from None
    except RunFailed as error:
        folder.close()
        raise UserError(f"{error}: name a folder in which you may write with --out") from None
    except OSError as error:
        folder.close()
        raise UserError(f"{run_file}: cannot read the run file: {error.strerror}") from None
    except BaseException:
        folder.close()
        raise
    return folder


def write_processes(path: Path, processes: Mapping[str, int]) -> None:
    """Write `processes.json` into the run folder `path`, if that is possible: nothing depends on it but people."""
    with suppress(RunFailed):
        write_whole(path / PROCESSES, _pretty(processes))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a power cut, finds the old one or the new one.

    Raises:
        RunFailed: it cannot be written; DiskFull for lack of room.

    """
    replace_whole(path, lambda temporary: temporary.write_bytes(content))


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Do the same for a file that `write` makes where it is told to; raises as `write_whole`."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        failure = DiskFull if error.errno in NO_ROOM else RunFailed
        raise failure(f"{path}: cannot write: {error.strerror or error}") from None


def _write_news(path: Path, content: bytes) -> None:
    """Write a file as `write_whole`, unless this is what it holds."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_whole(path, content)


def _records(lines: list[Line]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.record is None:
            raise ValueError(f"line {line.number}: not a JSON object")
        yield line.record


def _pretty(record: Mapping[str, Any]) -> bytes:
    return json.dumps(json.loads(encode(record)), indent=2).encode() + b"\n"


def _take_lock(path: Path) -> int:
    """Lock a file as long as it is open, and write this process's id into it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"{path}: cannot make the file: {error.strerror}: name a folder in which you may write with --out"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            os.close(lock)
            text = f"{path}: this file system cannot lock files: {error.strerror}; name a folder elsewhere with --out"
            raise UserError(text) from None
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise UserError(
            f"{path.parent}: process {holder or 'of unknown number'} is at work on the run in this folder: "
            "let it end, or name another folder with --out"
        ) from None
    # The number is for people; the lock itself holds without it, on a full disk too.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _make(path: Path, *, resume: bool) -> Path:
    """Make the folder; raise UserError if it holds something else than what may be gone on with."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # What was being replaced when the power went is of no account.
        names = {entry.name for entry in path.iterdir() if not (entry.name[0] == "." and entry.suffix == ".new")}
    except FileExistsError:
        raise UserError(f"--out {path}: this is a file: name a folder") from None
    except OSError as error:
        raise UserError(f"--out {path}: cannot make the folder: {error.strerror}") from None
    is_a_swarms = CONFIGURATION in names and (EVENTS in names or names <= BEFORE_THE_LOG)
    if names <= {LOCK} or (resume and is_a_swarms):
        return path
    raise UserError(
        f"--out {path}: the folder is not empty, and a run never writes over another: "
        "name a new folder, or leave --out away"
    )


def _check_same_run(folder: RunFolder, config: RunConfig) -> None:
    """Raise UserError unless the folder is new or holds an unfinished run of this configuration."""
    path = folder.path / CONFIGURATION
    if not path.exists():
        return
    try:
        before = RunConfig.from_json_untrusted(path.read_bytes())
    except (OSError, RemoteProtocolError) as error:
        raise UserError(f"{path}: cannot be read: {error}; name a new folder with --out") from None
    if (difference := _difference(before, config)) is not None:
        raise UserError(
            f"--out {folder.path}: the run in this folder has {difference}: a run keeps its model, data, batch, "
            "optimizer and seed; name a new folder for another one"
        )
    recovered = folder.recover()
    if recovered is None or recovered.step < config.run.steps:
        return
    if recovered.step > config.run.steps:
        raise UserError(
            f"--out {folder.path}: the run in this folder has committed {recovered.step} steps already: "
            f"write run.steps = {recovered.step} or more to go on with it"
        )
    if recovered.is_done(config.run.steps) and folder.model_path.exists():
        raise UserError(
            f"--out {folder.path}: the run in this folder is done, with {recovered.step} steps: "
            "name a new folder for another one, or write more run.steps to go on with it"
        )


def _difference(before: RunConfig, after: RunConfig) -> str | None:
    """Name the first lasting key that differs, with its value before."""
    if before.run.seed != after.run.seed:
        return f"run.seed = {before.run.seed}, not {after.run.seed}"
    for section in LASTING:
        old, new = (json.loads(config.canonical_json())[section] for config in (before, after))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{section}.{key} = {json.dumps(old.get(key))}, not {json.dumps(new.get(key))}"
    return None


def _next_free(root: Path, name: str) -> Path:
    number = 1
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{path}: cannot make the run folder: {error.strerror}; name one with --out") from None
        else:
            return path
