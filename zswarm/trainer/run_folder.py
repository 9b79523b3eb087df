"""The folder of a run: what it was, what happened, what came out.

    run.toml            the run file as it was given
    run.json            the configuration in force, overrides applied
    events.jsonl        append-only: every commit with its ledgers, every join, leave and abort
    metrics.jsonl       append-only: one line per step
    summary.json        written whole, when the run ends
    model.safetensors   written whole, when all steps are done

The folder is valid at any moment: files are appended line by line or replaced as a whole.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zswarm.errors import RunFailed, UserError
from zswarm.json_lines import JsonLinesWriter, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zswarm.config import RunConfig

EVENTS = "events.jsonl"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
RUN_FILE = "run.toml"
CONFIGURATION = "run.json"
MODEL = "model.safetensors"


class RunFolder:
    """A run folder that is being written; a context manager that closes its files."""

    def __init__(self, path: Path, config: RunConfig, *, run_file: Path | None = None) -> None:
        """Fill the empty folder `path`.

        Raises:
            OSError: the run file cannot be read.
            RunFailed: a file cannot be made.

        """
        self.path = path
        if run_file is not None:
            write_whole(path / RUN_FILE, run_file.read_bytes())
        write_whole(path / CONFIGURATION, _pretty(json.loads(config.canonical_json())))
        self._files = ExitStack()

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

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write, or replace, `summary.json` as a whole."""
        write_whole(self.path / SUMMARY, _pretty(summary))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run_folder(config: RunConfig, *, out: Path | None = None, run_file: Path | None = None) -> RunFolder:
    """Make the folder `out`, or the next free `runs/<name>-<n>`, and return it open.

    Raises:
        UserError: it is not empty, is no folder, or cannot be made.

    """
    path = _next_free(Path("runs"), config.run.name) if out is None else _make(out)
    try:
        return RunFolder(path, config, run_file=run_file)
    except RunFailed as error:
        raise UserError(f"{error}: name a folder in which you may write with --out") from None
    except OSError as error:
        raise UserError(f"{run_file}: cannot read the run file: {error.strerror}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a power cut, finds the old one or the new one.

    Raises:
        RunFailed: it cannot be written.

    """
    replace_whole(path, lambda temporary: temporary.write_bytes(content))


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Do the same for a file that `write` makes where it is told to; raises as `write_whole`."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        _sync(temporary, os.O_RDONLY)
        temporary.replace(path)
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunFailed(f"{path}: cannot write: {error.strerror or error}") from None


def _pretty(record: Mapping[str, Any]) -> bytes:
    return json.dumps(json.loads(encode(record)), indent=2).encode() + b"\n"


def _sync(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _make(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UserError(
                f"--out {path}: the folder is not empty, and a run never writes over another: "
                "name a new folder, or leave --out away"
            )
    except FileExistsError:
        raise UserError(f"--out {path}: this is a file: name a folder") from None
    except OSError as error:
        raise UserError(f"--out {path}: cannot make the folder: {error.strerror}") from None
    return path


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
