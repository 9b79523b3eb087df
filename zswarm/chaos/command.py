"""The body of `zswarm chaos`: run, kill and freeze, audit, compare with the run in one process, print what it cost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import click
from rich.console import Console

from zswarm.audit import audit
from zswarm.chaos.equal import differences
from zswarm.chaos.faults import Fault, Kind, Planned, choose, draw, of_roles
from zswarm.chaos.figures import Figures, figures
from zswarm.chaos.history import History, Tail
from zswarm.chaos.table import cost_table, fault_table
from zswarm.chaos.target import Target
from zswarm.config import RunConfig, load_run_file
from zswarm.errors import RunFailed, UserError

POLL_S = 0.02
"""How exactly it is known when something came into the log."""
MODEL = "model.safetensors"
DECISIVE: dict[str, tuple[str, ...]] = {
    "run": ("seed", "steps"),
    "model": (),
    "data": (),
    "batch": (),
    "optimizer": (),
}
"""Keys of the run file, or for () all of a section, that decide what parameters one process comes to."""
TERMINATED = 143
"""Exit code after a termination signal, as shells have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What the command line said."""

    run_file: Path
    out: Path
    overrides: tuple[str, ...]
    workers: int
    """Per stage, as `brokers`."""
    brokers: int
    faults: int
    seed: int
    every: float
    """Mean seconds between two faults."""
    roles: tuple[str, ...]
    kinds: tuple[Kind, ...]
    spare_last: bool
    reference: Path | None
    """The run folder of the same run in one process; None to run it."""
    limit_s: float
    json_file: Path | None


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What came out, and everything that is wrong with it."""

    problems: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    bits: str = "not compared"


def chaos(options: ChaosOptions) -> None:
    """See the module.

    Raises:
        UserError: the run file, the folder or the reference is not what it has to be.
        RunFailed: the run did not end well, had fewer faults than asked for, miscounted, or came to other bits.

    """
    config = load_run_file(options.run_file, options.overrides)
    _check_new(options.out)
    if options.reference is not None:
        check_reference(options.reference, config)
    _claim(_log_of(options.out), f"--out {options.out}")
    if options.json_file is not None:
        _claim(options.json_file, "--json")
    deadline_s = monotonic() + options.limit_s
    with _ended_by_termination():
        attack = Attack(options, deadline_s=deadline_s)
        attack.run()
        found = figures(attack.history, attack.faults)
        verdict = Verdict(problems=attack.problems)
        _judge(options, config, verdict, deadline_s=deadline_s)
    _tell(options, found, verdict)
    if verdict.problems:
        raise RunFailed("; ".join(verdict.problems))


class Attack:
    """One run with its faults."""

    def __init__(self, options: ChaosOptions, *, deadline_s: float) -> None:
        self.history = History()
        self.faults: list[Fault] = []
        self.problems: list[str] = []
        self._options = options
        self._deadline_s = deadline_s
        self._tail = Tail(options.out / "events.jsonl")
        self._planned = draw(options.faults, seed=options.seed, mean_wait_s=options.every, kinds=options.kinds)
        self._next_at_s: float | None = None
        self._frozen: dict[str, Fault] = {}
        self._resume_at_s: dict[str, float] = {}

    def run(self) -> None:
        """Start the run, do all faults, wait for its end.

        Raises:
            UserError: the run's own command says so.

        """
        options = self._options
        command = _command("local", options, options.out)
        with Target(command, folder=options.out, log=_log_of(options.out)) as target:
            while not target.has_ended and monotonic() < self._deadline_s:
                self._turn(target, monotonic())
                time.sleep(POLL_S)
            has_ended = target.has_ended
        self.history.add(self._tail.read(), monotonic())
        if not has_ended:
            self.problems.append(f"the run did not end within {options.limit_s:g} s")
        elif target.code == 2 and not self.history.seen:
            raise UserError(target.last_words().split("\n")[-1].removeprefix("zswarm: "))
        elif target.code != 0:
            self.problems.append(f"the run ended with {target.code}:\n{target.last_words()}\n")
        elif len(self.faults) < options.faults:
            self.problems.append(
                f"the run was over after {len(self.faults)} of {options.faults} faults: give it more steps"
            )

    def _turn(self, target: Target, now: float) -> None:
        self.history.add(self._tail.read(), now)
        for name, at_s in list(self._resume_at_s.items()):
            if now >= at_s:
                target.resume(name)
                self._frozen.pop(name).until_s = now
                del self._resume_at_s[name]
        if self._next_at_s is None and self.history.of("start"):
            self._next_at_s = now + self._planned[0].wait_s
        index = len(self.faults)
        if self._next_at_s is None or index == len(self._planned) or now < self._next_at_s:
            return
        if self._do(self._planned[index], target, now) and index + 1 < len(self._planned):
            self._next_at_s = now + self._planned[index + 1].wait_s

    def _do(self, planned: Planned, target: Target, now: float) -> bool:
        """Do a fault; False if there is nobody yet, or if whoever was chosen has just ended by itself."""
        living = target.living()
        # A session stays in the log until its end is noticed; what was started meanwhile has not joined yet.
        killed = {fault.session for fault in self.faults if fault.kind is Kind.KILL and fault.session is not None}
        sessions = {name: self.history.session_of(name) for name in living}
        names = of_roles(living, self._options.roles)
        if self._options.spare_last:
            dead = {fault.name for fault in self.faults if self.history.session_of(fault.name) in killed}
            names -= self.history.last_of_their_stage({*dead, *target.frozen})
        name = choose(planned, names)
        if name is None:
            return False
        is_kill = planned.kind is Kind.KILL
        if not (target.kill(living[name]) if is_kill else target.freeze(name, living[name])):
            return False
        session = sessions[name] if sessions[name] not in killed else None
        fault = Fault(at_s=now, kind=planned.kind, name=name, session=session)
        self.faults.append(fault)
        if not is_kill:
            self._frozen[name] = fault
            self._resume_at_s[name] = now + planned.freeze_s
        text = "kill" if is_kill else f"freeze for {planned.freeze_s:.1f} s"
        click.echo(f"fault {len(self.faults)} at step {self.history.step}: {text}: {name}", err=True)
        return True


def _judge(options: ChaosOptions, config: RunConfig, verdict: Verdict, *, deadline_s: float) -> None:
    """Audit the log; compare the models where the arithmetic is exact and the run came to its end."""
    with suppress(UserError):
        checks = audit(options.out)
        verdict.checks = [str(check) for check in checks]
        if not all(check.is_passed for check in checks):
            verdict.problems.append("the audit found a violation")
    if not verdict.checks:
        verdict.problems.append("there is no log to audit")
    if config.batch.accumulation != "exact":
        verdict.bits = 'not compared: batch.accumulation is not "exact"'
    elif not (options.out / MODEL).exists():
        verdict.bits = "not compared: the run did not come to its end"
    else:
        expected = options.reference or _run_reference(options, deadline_s=deadline_s)
        differing = differences(options.out / MODEL, expected / MODEL)
        verdict.bits = "equal" if not differing else f"{len(differing)} tensors differ: {', '.join(differing[:5])}"
        if differing:
            verdict.problems.append(f"the model is not that of one process: {verdict.bits}")


def _run_reference(options: ChaosOptions, *, deadline_s: float) -> Path:
    folder = options.out / "reference"
    command = _command("reference", options, folder)
    click.echo("training the same run in one process", err=True)
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            timeout=max(1.0, deadline_s - monotonic()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the run in one process did not end within {options.limit_s:g} s of the beginning") from None
    if done.returncode != 0:
        raise RunFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return folder


def _command(name: str, options: ChaosOptions, out: Path) -> list[str]:
    command = [sys.executable, "-m", "zswarm", name, str(options.run_file), "--out", str(out)]
    if name == "local":
        command += ["--workers", str(options.workers), "--brokers", str(options.brokers)]
    return command + [part for override in options.overrides for part in ("--set", override)]


def check_reference(folder: Path, config: RunConfig) -> None:
    """Raise UserError unless the folder holds the trained model of the same run."""
    try:
        theirs = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        raise UserError(f"--reference {folder}: not the folder of a run") from None
    ours = json.loads(config.canonical_json())
    for section, keys in DECISIVE.items():
        for key in keys or sorted(ours[section].keys() | theirs.get(section, {}).keys()):
            if theirs.get(section, {}).get(key) != ours[section].get(key):
                raise UserError(f"--reference {folder}: this was another run: it has another {section}.{key}")
    if not (folder / MODEL).exists():
        raise UserError(f"--reference {folder}: this run did not come to its end: it has no {MODEL}")


def _check_new(out: Path) -> None:
    """Raise UserError if what another run has left might be taken for the work of this one."""
    try:
        is_taken = any(out.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"--out {out}: this is a file, or in one: name a folder") from None
    except OSError as error:
        raise UserError(f"--out {out}: cannot be looked into: {error.strerror}") from None
    if is_taken:
        raise UserError(f"--out {out}: the folder is not empty: name a new one")


def _log_of(out: Path) -> Path:
    """Return the file for what the run says on stderr: beside its folder, which the run finds empty."""
    return out.absolute().with_name(out.absolute().name + ".log")


def _claim(file: Path, option: str) -> None:
    """Raise UserError unless the file can be written when there is something to write."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise UserError(f"{option}: cannot write {file}: {error.strerror}") from None


def _tell(options: ChaosOptions, found: Figures, verdict: Verdict) -> None:
    console = Console()
    console.print(fault_table(found))
    console.print(cost_table(found))
    for check in verdict.checks:
        click.echo(check)
    click.echo(f"bits of the model beside one process: {verdict.bits}")
    if options.json_file is not None:
        record: dict[str, Any] = {
            "seed": options.seed,
            "problems": verdict.problems,
            "audit": verdict.checks,
            "bits": verdict.bits,
            **found.as_json(),
        }
        try:
            options.json_file.write_text(json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise RunFailed(f"--json: cannot write {options.json_file}: {error.strerror}") from None


@contextmanager
def _ended_by_termination() -> Iterator[None]:
    """Let a termination signal end this process as Ctrl-C does: through everybody who has to clean up."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
