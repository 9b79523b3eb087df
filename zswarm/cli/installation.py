"""What `zswarm service` does to a machine: unit files, their configuration, and which of them start at boot.

/etc/systemd/system/zswarm-*   the units, written anew each time
/etc/zswarm/zswarm.conf        the options of the services, made once and then left to their user
/etc/zswarm/swarm.key          the swarm key, made or copied by the user
/etc/zswarm/runs/NAME.toml     the run of zswarm-trainer@NAME, whose folder is /var/lib/zswarm/NAME
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from zswarm.errors import UserError
from zswarm.swarm_key import read_key_file

SHIPPED_PROGRAM = "/opt/zswarm/bin/zswarm"
"""What the units start as they are shipped."""
UNITS = Path("etc/systemd/system")
CONFIGURATION = Path("etc/zswarm")
OLDEST_SYSTEMD = 247
"""The first that has LoadCredential=."""
SYSTEMCTL_TIMEOUT_S = 1000.0
"""Starting and stopping take TimeoutStartSec= and TimeoutStopSec= of the units at the most."""
_SUFFIXES = (".service", ".slice")
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - where not to be
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+-]+")
"""What needs no quoting in a unit file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine to install on: this one, or a folder that will be the root of one."""

    root: Path = Path("/")

    @property
    def is_this(self) -> bool:
        """Is it this one, whose systemd runs?"""
        return self.root == Path("/")

    def check(self) -> None:
        """Raise UserError unless services can be installed here by this user."""
        if self.is_this and os.geteuid() != 0:
            raise UserError("services are installed by root: run this command with sudo")
        if self.is_this and not Path("/run/systemd/system").is_dir():
            raise UserError("this machine was not started by systemd: run `zswarm broker` and `zswarm worker` yourself")
        if (version := re.match(r"systemd (\d+)", self.systemctl("--version"))) is None:
            raise UserError("systemctl does not say which version of systemd this is")
        if int(version[1]) < OLDEST_SYSTEMD:
            raise UserError(f"this machine has systemd {version[1]}: zswarm's services need {OLDEST_SYSTEMD} or newer")

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl on this machine's units and return what it prints.

        Raises:
            UserError: it is not there, or fails.

        """
        root = () if self.is_this else (f"--root={self.root}",)
        try:
            done = subprocess.run(  # noqa: S603
                ["systemctl", *root, *arguments],  # noqa: S607
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=SYSTEMCTL_TIMEOUT_S,
            )
        except FileNotFoundError:
            raise UserError("there is no systemctl here: run `zswarm broker` and `zswarm worker` yourself") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"systemctl {' '.join(arguments)}: not done after {SYSTEMCTL_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            raise UserError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def reload(self) -> None:
        """Have systemd read the units that are there now."""
        if self.is_this:
            self.systemctl("daemon-reload")

    def enabled(self) -> list[str]:
        """Return which of our units start at boot."""
        return sorted({path.name for path in (self.root / UNITS).glob("*.wants/zswarm-*")})


def this_program() -> Path:
    """Return the `zswarm` that runs, if services may start it.

    Raises:
        UserError: they cannot reach it.

    """
    program = Path(sys.prefix) / "bin" / "zswarm"
    if not program.exists():
        raise UserError(f"there is no {program}: install zswarm with pip, into an environment of its own")
    package = Path(__file__).resolve().parents[1]
    for path in (program, Path(sys.executable).resolve(), package):
        if (obstacle := _obstacle(path)) is not None:
            raise UserError(
                f"{path}: services, which run as users of their own, cannot reach it: {obstacle}; install zswarm for all "
                "users: `python3 -m venv /opt/zswarm && /opt/zswarm/bin/pip install zswarm`, with the system's python3"
            )
    return program


def install(machine: Machine, program: Path, *, num_workers: int, has_broker: bool) -> Iterator[str]:
    """Make a machine start its beacon, a broker and workers at boot, and be ready to train; yields what was done.

    It is then as told, whatever it was before; what the user has written is left as it is.

    Raises:
        UserError: that is impossible, and why.

    """
    machine.check()
    if _PLAIN_PATH.fullmatch(str(program)) is None:
        raise UserError(
            f"{str(program)!r}: a service's program needs an absolute path of letters, digits and . _ + - /"
        )
    folder = machine.root / CONFIGURATION
    if machine.is_this:
        if not (key := folder / "swarm.key").exists():
            raise UserError(f"there is no swarm key: make one with `zswarm key init {key}`, or copy the swarm's there")
        read_key_file(key)
    for path in (folder, folder / "runs"):
        # The trainer reads its run file as a user of its own; the key has a mode of its own.
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    for unit in _shipped():
        text = unit.read_text(encoding="utf-8")
        if unit.name.endswith(_SUFFIXES):
            yield from _write(machine.root / UNITS / unit.name, text.replace(SHIPPED_PROGRAM, str(program)))
        elif not (folder / unit.name).exists():
            yield from _write(folder / unit.name, text)
    wanted = ["zswarm-beacon.service", *["zswarm-broker.service"] * has_broker]
    wanted += [f"zswarm-worker@{index}.service" for index in range(num_workers)]
    machine.reload()
    trainers = [name for name in machine.enabled() if name.startswith("zswarm-trainer@")]
    if surplus := sorted(set(machine.enabled()) - set(wanted) - set(trainers)):
        machine.systemctl("disable", *(["--now"] if machine.is_this else []), *surplus)
        yield f"no longer started at boot: {' '.join(surplus)}"
    if news := [name for name in wanted if name not in machine.enabled()]:
        machine.systemctl("enable", *news)
        yield f"started at boot: {' '.join(news)}"


def start(machine: Machine) -> Iterator[str]:
    """Start what starts at boot, and again what runs already; yields what was done.

    Raises:
        UserError: something of it does not start.

    """
    if names := machine.enabled():
        machine.systemctl("restart", *names)
        yield f"running: {' '.join(names)}"


def uninstall(machine: Machine) -> Iterator[str]:
    """Stop the services and remove them; yields what was done. Key, configuration and run folders stay.

    Raises:
        UserError: that is impossible, and why.

    """
    machine.check()
    if machine.is_this:
        machine.systemctl("stop", "zswarm-*")
        machine.systemctl("reset-failed", "zswarm-*")
    if names := machine.enabled():
        machine.systemctl("disable", *names)
    for unit in _shipped():
        path = machine.root / UNITS / unit.name
        if unit.name.endswith(_SUFFIXES) and path.exists():
            path.unlink()
            yield f"removed {path}"
    machine.reload()
    left = [str(machine.root / CONFIGURATION), str(machine.root / "var/lib/zswarm")]
    yield f"left as they are: {' and '.join(left)}"


def _shipped() -> list[Traversable]:
    """Return the unit files and the configuration that come with zswarm, in order."""
    names = (*_SUFFIXES, ".conf")
    return sorted(
        (f for f in (files("zswarm.cli") / "units").iterdir() if f.name.endswith(names)), key=lambda f: f.name
    )


def _write(path: Path, text: str) -> Iterator[str]:
    """Give a file this content at once or not at all; yields what was done, if anything."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from None
    yield f"wrote {path}"


def _obstacle(path: Path) -> str | None:
    """Return what keeps a service's user from reading a file, if anything does."""
    for folder in _HIDDEN:
        if path.is_relative_to(folder):
            return f"{folder} is hidden from services"
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            return f"{folder} is closed to other users"
    return None if path.stat().st_mode & 0o004 else "other users may not read it"
