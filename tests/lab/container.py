"""A machine with a real systemd and zswarm's services on it, in a container that is gone with the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zswarm.cli import main
from zswarm.swarm_key import make_key_file

SOURCE = Path(__file__).parents[2]
SYSTEM_PYTHON = Path("/usr/bin/python3")
"""Services of other users can run it, wherever the tests' own Python is."""
NO_CONTAINER = 125
DEADLINE_S = 40.0
"""Far more than anything here takes; it only turns a hang into a failure."""
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Unavailable(Exception):
    """No container can be made here; the text says why."""


class Container:
    """Commands in it, and what its systemd says of units."""

    def __init__(self, pid: int) -> None:
        self._enter = [
            "nsenter",
            "-t",
            str(pid),
            "--all",
            "--root",
            "--wd",
            "env",
            "-i",
            f"PATH={PATHS}",
            "LANG=C.UTF-8",
        ]

    def run(self, *command: str, code: int | None = 0) -> str:
        """Run a command as root and return what it prints, stdout before stderr; None: its exit code may be any."""
        done = subprocess.run(
            [*self._enter, "SYSTEMD_PAGER=", *command],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE_S,
        )
        printed = done.stdout + done.stderr
        assert code in (None, done.returncode), f"{command}: {done.returncode}\n{printed}"
        return printed

    def systemctl(self, *arguments: str, code: int | None = 0) -> str:
        """Run systemctl."""
        return self.run("systemctl", *arguments, code=code)

    def show(self, unit: str) -> defaultdict[str, str]:
        """Return a unit's properties; what is not set is empty."""
        lines = self.systemctl("show", unit).splitlines()
        return defaultdict(str, (line.split("=", 1) for line in lines if "=" in line))

    def wait(self, unit: str, done: Callable[[defaultdict[str, str]], Any]) -> defaultdict[str, str]:
        """Return a unit's properties once they are as `done` wants them."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not done(found := self.show(unit)):
            if time.monotonic() > deadline_s:
                interesting = {name: found[name] for name in ("ActiveState", "SubState", "Result", "StatusText")}
                raise AssertionError(f"{unit}: {interesting}\n{self.journal(unit)}")
            time.sleep(0.05)
        return found

    def journal(self, unit: str) -> str:
        """Return what a unit and systemd have said of it."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def said(self, unit: str, event: str) -> list[dict[str, Any]]:
        """Return the records of a unit's own log of one event."""
        lines = [line for line in self.journal(unit).splitlines() if line.startswith("{")]
        return [record for record in map(json.loads, lines) if record.get("event") == event]

    @contextmanager
    def changed(self, unit: str, settings: str) -> Iterator[None]:
        """Let a unit have other settings for a while; it is stopped before and after."""
        folder = f"/run/systemd/system/{unit}.d"
        stop = f"systemctl stop {unit}; systemctl reset-failed {unit}"
        self.run("sh", "-c", f"{stop}; mkdir -p {folder} && printf '%s' '{settings}' > {folder}/test.conf")
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            self.run("sh", "-c", f"{stop}; rm -r {folder} && systemctl daemon-reload")


CONFIGURATION = """
ZSWARM_BROKER_OPTIONS=--coordinator tcp://127.0.0.1:4711
ZSWARM_WORKER_OPTIONS=--coordinator tcp://127.0.0.1:4711
ZSWARM_TRAINER_OPTIONS=--listen tcp://127.0.0.1:4711 --workers 1 --brokers 1
"""
"""The machine has no network but its loopback, where nobody is looked for."""


@contextmanager
def container(folder: Path) -> Iterator[Container]:
    """Boot a machine on which zswarm's services are installed and enabled; `folder` is for files of ours.

    Raises:
        Unavailable: that is impossible here.

    """
    _find_obstacles()
    root = folder / "root"
    _make_root(root)
    options = [f"{root / place}:/{place}" for place in ("etc/zswarm", "etc/systemd/system", "opt/zswarm")]
    script = [str(Path(__file__).with_name("systemd_lab.sh")), *(word for option in options for word in ("-f", option))]
    packages = ["-b", f"{sysconfig.get_path('purelib')}:/opt/zswarm/packages"]
    with subprocess.Popen(
        ["bash", *script, *packages], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stdin is not None
        assert lab.stdout is not None
        assert lab.stderr is not None
        pid = lab.stdout.readline().strip()
        try:
            if not pid:
                why = lab.stderr.read().strip()
                if lab.wait(timeout=DEADLINE_S) == NO_CONTAINER:
                    raise Unavailable(why)
                raise AssertionError(why)
            yield Container(int(pid))
        finally:
            lab.stdin.close()
            lab.wait(timeout=DEADLINE_S)


def _find_obstacles() -> None:
    """Raise Unavailable if it is no use to try."""
    for program in ("bash", "unshare", "nsenter", "setpriv", "systemctl", "journalctl", "ip", "ps"):
        if shutil.which(program) is None:
            raise Unavailable(f"there is no `{program}` here")
    if not SYSTEM_PYTHON.exists():
        raise Unavailable(f"there is no {SYSTEM_PYTHON}, which a service's user could run")
    code = "import sys; print(*sys.version_info[:2], sys.implementation.cache_tag)"
    theirs = subprocess.run([SYSTEM_PYTHON, "-c", code], check=True, capture_output=True, text=True, timeout=DEADLINE_S)
    ours = f"{sys.version_info[0]} {sys.version_info[1]} {sys.implementation.cache_tag}"
    if theirs.stdout.strip() != ours:
        raise Unavailable(f"{SYSTEM_PYTHON} is {theirs.stdout.strip()}, and the packages here are for {ours}")


def _make_root(root: Path) -> None:
    """Make what the machine has beside the host's files: zswarm, its services, a key and a run file."""
    environment = root / "opt/zswarm"
    source, packages = environment / "source", environment / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    for package in ("zswarm", "brokers", "stages"):
        # With what has been compiled, and its time stamps, or each start would compile it anew.
        shutil.copytree(SOURCE / package, source / package)
    packages.mkdir(parents=True)
    (packages / "lab.pth").write_text("/opt/zswarm/source\n/opt/zswarm/packages\n")
    (environment / "pyvenv.cfg").write_text(f"home = {SYSTEM_PYTHON.parent}\n")
    (environment / "bin").mkdir()
    (environment / "bin/python3").symlink_to(SYSTEM_PYTHON)
    program = environment / "bin/zswarm"
    program.write_text("#!/opt/zswarm/bin/python3\nfrom zswarm.cli.main import main\nmain()\n")
    program.chmod(0o755)
    (root / "etc/zswarm").mkdir(parents=True)
    (root / "etc/zswarm/zswarm.conf").write_text(CONFIGURATION)
    assert main.run(["service", "install", "--root", str(root)]) == 0
    make_key_file(root / "etc/zswarm/swarm.key")
    subprocess.run(["chmod", "-R", "go+rX", environment, root / "etc/systemd"], check=True, timeout=DEADLINE_S)
