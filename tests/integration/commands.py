"""Real runs: `zswarm local` as a user starts it, on a model small enough for seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

RUN_FILE = """
[run]
name = "small"
seed = 3
steps = 4

[model]
factory = "gpt"
d_model = 32
num_layers = 3
num_heads = 2
sequence_length = 16

[data]
source = "text.txt"
held_out_microbatches = 2

[batch]
global_batch = 8
microbatch = 2

[pipeline]
stages = 2

[wire]
codec = "none"
"""
TIMEOUT_S = 90.0
"""Of a whole run; what takes longer hangs."""


@dataclass(slots=True)
class Command:
    """`zswarm` in a process group of its own, so that whatever it leaves behind can be found."""

    process: subprocess.Popen[str]
    folder: Path

    def wait(self) -> tuple[int, str]:
        """Return exit code and stderr."""
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors

    def events(self) -> list[dict[str, Any]]:
        """Return the event log so far, a torn last line left out."""
        path = self.folder / "events.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for_step(self, step: int) -> None:
        """Read the command's output until it reports a committed step."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line)["step"] >= step:
                return
        raise AssertionError(f"ended before step {step}: {self.process.communicate()}")

    def wait_for_word(self, word: str) -> None:
        """Read the command's messages until one has this word."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return
        raise AssertionError(f"ended without {word}: {self.process.communicate()}")

    def pid(self, name: str) -> int:
        """Return the process id of a child."""
        return int(json.loads((self.folder / "processes.json").read_text())[name])

    def children(self) -> list[psutil.Process]:
        """Return the processes that the command has started, oldest first."""
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass(frozen=True, slots=True)
class Zswarm:
    """Starts commands in a temporary folder."""

    folder: Path
    running: list[Command]

    def start(self, name: str, *options: str, out: str = "out") -> Command:
        """Start `zswarm NAME run.toml --out OUT ...`."""
        return self.start_any(name, "run.toml", "--out", out, *options, out=out)

    def start_any(self, *arguments: str, before: Sequence[str] = (), out: str = "out") -> Command:
        """Start `zswarm` with these arguments, by the command `before` it."""
        folders = {name: str(self.folder / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
        environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]), **folders)
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "zswarm", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        command = Command(process, self.folder / out)
        self.running.append(command)
        return command

    def end(self) -> None:
        """Kill whoever is still there."""
        for command in self.running:
            if command.process.poll() is None:
                os.killpg(command.process.pid, signal.SIGKILL)
                command.process.communicate()

    def run(self, name: str, *options: str, out: str = "out") -> dict[str, Any]:
        """Run a command to its good end; returns the summary."""
        command = self.start(name, *options, out=out)
        code, errors = command.wait()
        assert code == 0, errors
        summary: dict[str, Any] = json.loads((self.folder / out / "summary.json").read_text())
        return summary


@contextmanager
def commands_in(folder: Path) -> Iterator[Zswarm]:
    """Make the small run's file and text in a folder, and what starts commands there; whoever is left ends with it."""
    (folder / "run.toml").write_text(RUN_FILE)
    (folder / "text.txt").write_text("".join(f"{i} times {i} is {i * i}. " for i in range(2000)))
    commands = Zswarm(folder, [])
    try:
        yield commands
    finally:
        commands.end()


@pytest.fixture
def zswarm(tmp_path):
    with commands_in(tmp_path) as commands:
        yield commands


def all_gone(processes: list[psutil.Process]) -> bool:
    """Wait for processes to end; False if one outlives a generous deadline."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive
