"""A swarm on machines of a laboratory: `zswarm join` on each, `zswarm train` on one, and what its log says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.lab.machines import SOURCE, Lab, Machine
from tests.lab.reckoning import Commit, Record
from zswarm.audit import audit
from zswarm.benchmarks.bystanders import BUSY
from zswarm.chaos.history import History, Tail
from zswarm.errors import RunFailed
from zswarm.swarm_key import make_key_file

POLL_S = 0.02
TRAINER = "trainer"
END_S = 30.0
"""Longest that a process may take to end when it is asked to."""
MAX_LINES = 10_000
LAST_WORDS = 20
RUN_FILE = """
[run]
name = "lab"
seed = {seed}
steps = 1000000

[model]
factory = "gpt"
d_model = {d_model}
num_layers = {num_layers}
num_heads = 4
sequence_length = 128

[data]
source = "stdlib"

[batch]
global_batch = {global_batch}
microbatch = {microbatch}

[pipeline]
stages = {stages}{window}

[wire]
codec = "int8"
all_reduce = "bf16"

[optimizer]
name = "adamw"

[checkpoint]
every = {checkpoint_every}
"""
"""With the width and depth of RunShape, TINY, as in deploy/examples/tiny.toml; a run ends when it is told to."""
NEVER = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """What differs between the runs that are measured."""

    stages: int
    global_batch: int
    microbatch: int
    seed: int
    checkpoint_every: int = NEVER
    d_model: int = 256
    num_layers: int = 8
    window: int | None = None

    def text(self) -> str:
        """Return the run file."""
        window = "" if self.window is None else f"\nwindow = {self.window}"
        return RUN_FILE.format(**{name: getattr(self, name) for name in self.__slots__} | {"window": window})


class Spoken:
    """A command on a machine, with what it says and when."""

    def __init__(self, machine: Machine, command: list[str], folder: Path) -> None:
        """Start `python -m COMMAND` in a folder."""
        folders = {name: str(folder / machine.name / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
        environment = os.environ | folders | {"PYTHONPATH": str(SOURCE)}
        # Else each start would compile zswarm anew, which no installation does.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.machine = machine
        self.begun_s = time.monotonic()
        self.lines: deque[tuple[float, str]] = deque(maxlen=MAX_LINES)
        self._process = machine.popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def said_after_s(self, word: str) -> float | None:
        """Return how long after its start it first said a line with this word; None if it has not."""
        return next((at_s - self.begun_s for at_s, line in list(self.lines) if word in line), None)

    def last_words(self) -> str:
        """Return its last lines."""
        return "\n".join(line for _, line in list(self.lines)[-LAST_WORDS:])

    def interrupt(self) -> int:
        """End it as Ctrl-C does; returns its exit code.

        Raises:
            RunFailed: it does not end.

        """
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; errors as those of `interrupt`."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{self.machine.name} does not end:\n{self.last_words()}") from None
        self._reader.join(END_S)
        return code

    def reap(self) -> None:
        """Let go of it; the machine that it was on is gone."""
        self.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


class Run:
    """A run whose trainer is on a machine of its own; everything of it is at hand as soon as its log has it."""

    def __init__(self, trainer: Spoken, out: Path) -> None:
        self.history = History()
        self.out = out
        self._trainer = trainer
        self._tail = Tail(out / "events.jsonl")
        self._offset_s = float("inf")
        """Of this process's clock over the log's: the least that a record was ever seen after its time."""

    def poll(self) -> None:
        """Read on.

        Raises:
            RunFailed: the trainer has ended.

        """
        records, now = self._tail.read(), time.monotonic()
        self.history.add(records, now)
        self._offset_s = min([self._offset_s, *(now - record["time_s"] for record in records)])
        if self._trainer.has_ended:
            raise RunFailed(f"the trainer has ended:\n{self._trainer.last_words()}")

    def wait(self, done: Callable[[], Any], *, what: str, within_s: float) -> None:
        """Read on until something is the case.

        Raises:
            RunFailed: it took longer, or the trainer has ended.

        """
        deadline_s = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline_s:
                raise RunFailed(f"{what}: not within {within_s:g} s; the run is at step {self.history.step}")
            time.sleep(POLL_S)
            self.poll()

    def wait_for_steps(self, num_steps: int, *, within_s: float) -> None:
        """Wait for so many more commits; errors as those of `wait`."""
        before = len(self.history.of("commit"))
        is_done = lambda: len(self.history.of("commit")) >= before + num_steps  # noqa: E731 - named for its use
        self.wait(is_done, what=f"{num_steps} steps", within_s=within_s)

    def records(self) -> list[Record]:
        """Return all records with their times on this process's clock."""
        return [Record(seen.record["time_s"] + self._offset_s, seen.record) for seen in self.history.seen]

    def sessions_of(self, machine: Machine, *, since_s: float = float("-inf")) -> dict[int, float]:
        """Return the sessions that workers of a machine have got from a time on, and when each came in."""
        return {
            content["session"]: at_s
            for at_s, content in self.records()
            if content["event"] == "join"
            and content["role"] == "worker"
            and content["node"].startswith(f"{machine.name}-")
            and at_s >= since_s
        }

    def commits(self) -> list[Commit]:
        """Return the commits, those that a rollback has voided left out."""
        return Commit.of(self.records())

    def end(self) -> None:
        """End the run as Ctrl-C does, and audit it.

        Raises:
            RunFailed: it ended otherwise, or the audit found something.

        """
        code = self._trainer.interrupt()
        self.history.add(self._tail.read(), time.monotonic())
        interrupted = 130
        if code != interrupted:
            raise RunFailed(f"the trainer ended with {code}:\n{self._trainer.last_words()}")
        problems = [str(check) for check in audit(self.out) if not check.is_passed]
        if problems:
            raise RunFailed("the audit found a violation:\n" + "\n".join(problems))


class Site:
    """A laboratory with a swarm key, and a folder for everything; whoever is started is added to `commands`."""

    def __init__(self, lab: Lab, folder: Path, commands: list[Spoken]) -> None:
        self.lab = lab
        self.folder = folder
        self._commands = commands
        self._key = folder / "key"
        make_key_file(self._key)

    def join(self, machine: Machine, *, workers: int = 1, brokers: int | None = None) -> Spoken:
        """Have a machine join the swarm; with as many brokers as workers unless it is said."""
        number = ["--brokers", str(brokers)] if brokers is not None else []
        return self._start(machine, ["zswarm", "join", "--workers", str(workers), *number, "--key", str(self._key)])

    def train(self, machine: Machine, name: str, shape: RunShape, *, workers: int, brokers: int | None = None) -> Run:
        """Begin a run, in a folder of this name, that waits for so many workers and brokers for each stage."""
        run_file, out = self._write(name, shape), self.folder / name
        enough = ["--workers", str(workers), "--brokers", str(workers if brokers is None else brokers)]
        command = ["zswarm", "train", str(run_file), "--out", str(out), "--key", str(self._key), *enough]
        return Run(self._start(machine, command), out)

    def measure_speed(self, machine: Machine, shape: RunShape) -> Spoken:
        """Begin to measure, on a machine of its own, how fast the host's processors are at a run; see yardstick.py."""
        return self._start(machine, ["tests.lab.yardstick", str(self._write(machine.name, shape))])

    def _write(self, name: str, shape: RunShape) -> Path:
        run_file = self.folder / f"{name}.toml"
        run_file.write_text(shape.text())
        return run_file

    def _start(self, machine: Machine, command: list[str]) -> Spoken:
        self._commands.append(Spoken(machine, command, self.folder))
        return self._commands[-1]


class Strangers:
    """How much of the host others used meanwhile; what links cost the kernel is among it."""

    def __init__(self, lab: Lab) -> None:
        """Count from now on."""
        self._lab = lab
        self._begun_s = time.monotonic()
        self._before_s = self._busy_s()

    def cores(self) -> float:
        """Return the cores that others have used on average, 0 if none."""
        return max(0.0, (self._busy_s() - self._before_s) / (time.monotonic() - self._begun_s))

    def _busy_s(self) -> float:
        times = psutil.cpu_times()
        busy_s = sum(float(getattr(times, state, 0.0)) for state in BUSY)
        own = psutil.Process().cpu_times()
        return busy_s - own.user - own.system - self._lab.used_cpu_s()


@contextmanager
def site() -> Iterator[Site]:
    """Make a laboratory; raises LabError where that is impossible."""
    commands: list[Spoken] = []
    with tempfile.TemporaryDirectory(prefix="zswarm-lab-") as folder:
        try:
            with Lab() as lab:
                yield Site(lab, Path(folder), commands)
        finally:
            for command in commands:
                command.reap()
