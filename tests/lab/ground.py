"""What machines of a laboratory are made of: network namespaces and control groups, versions 1, 2 and mixtures of both.

    RUN/zs1f2e3d4c/lock     held by the keeper of the laboratory (keeper.py) as long as it lives
    zs1f2e3d4c              the network namespace of its switch
    zs1f2e3d4c-lab0         that of a machine
    .../zs1f2e3d4c/lab0     control groups of a machine, one in every hierarchy that there is

All names begin with the laboratory's own, so that it can be taken away by anybody who knows that name.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RUN = Path("/run/zswarm-lab")
NAMESPACES = Path("/run/netns")
PREFIX = "zs"
COMMANDS = ("ip", "tc", "unshare")
NEW_NETWORK = 0x40000000
STEP_S = 20.0
"""Longest that one `ip` or `tc` may take."""
DIE_S = 10.0
"""Longest that processes may take to be gone after SIGKILL."""
LOOK_S = 0.01

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something that the laboratory needs is missing, or one of its own commands failed."""


def why_not() -> str | None:
    """Say what keeps a laboratory from being made here; None if nothing does."""
    if not Path("/proc/self/ns/net").exists():
        return "a laboratory needs Linux: it is made of network namespaces and control groups"
    if os.geteuid() != 0:
        return "a laboratory needs root: it is made of network namespaces and control groups"
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        return f"a laboratory needs {', '.join(missing)} (iproute2, util-linux)"
    hierarchies = control_groups()
    if not {"v2", "cpu"} & hierarchies.keys() or not any(os.access(path, os.W_OK) for path in hierarchies.values()):
        return "a laboratory needs a control-group file system that it may write to"
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], check=False, capture_output=True, text=True, timeout=STEP_S
    )
    return f"no namespaces can be made here: {probe.stderr.strip()}" if probe.returncode else None


def control_groups() -> dict[str, Path]:
    """Return where the hierarchies of control groups are that matter: v2, and of v1 cpu and freezer."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        kind, _, options = right.split(" ", 2)
        names = {"v2"} if kind == "cgroup2" else set(options.split(",")) if kind == "cgroup" else set()
        for name in names & {"v2", "cpu", "freezer"}:
            found.setdefault(name, Path(left.split()[4]))
    return found


def sh(*words: str | int | Path, may_fail: bool = False) -> str:
    """Run a command and return what it prints.

    Raises:
        LabError: it failed; not with `may_fail`.

    """
    command = [str(word) for word in words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STEP_S)
    if done.returncode and not may_fail:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def write(path: Path, text: str) -> bool:
    """Write a control file; False if it is not there, or the kernel refuses."""
    try:
        path.write_text(text)
    except OSError:
        return False
    return True


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have the calling thread, and only it, in a network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        if _libc.setns(there, NEW_NETWORK):
            raise LabError(f"network namespace {namespace}: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        _libc.setns(home, NEW_NETWORK)
        os.close(home)
        os.close(there)


def add_namespace(name: str) -> None:
    """Make a network namespace without IPv6, whose kernel sends packets that nobody has asked for.

    Raises:
        LabError: that is impossible.

    """
    sh("ip", "netns", "add", name)
    with inside(name):
        for which in ("all", "default"):
            write(Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1")


def precise_timers() -> None:
    """Let this process wake up when it wants to, to the microsecond."""
    set_timer_slack = 29
    _libc.prctl(set_timer_slack, 1000, 0, 0, 0)


def pids_of(groups: Iterable[Path]) -> set[int]:
    """Return the processes in control groups and in those below them."""
    found: set[int] = set()
    for folder in [path for group in groups for path, _, _ in os.walk(group)]:
        with suppress(OSError):  # a group may go at any moment
            found |= {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
    return found - {0}


def kill_all(groups: list[Path]) -> None:
    """SIGKILL everything in control groups, frozen or not, until they are empty.

    Raises:
        LabError: something does not die.

    """
    deadline_s = time.monotonic() + DIE_S
    while pids := pids_of(groups):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for group in groups:
            write(group / "cgroup.freeze", "0")
            write(group / "freezer.state", "THAWED")
        if time.monotonic() > deadline_s:
            raise LabError(f"processes that do not die: {sorted(pids)}")
        time.sleep(LOOK_S)


def remove(lab: str) -> None:
    """Take away everything of a laboratory; it may be half there, and this may be repeated."""
    groups = [path / lab for path in control_groups().values()]
    deadline_s = time.monotonic() + DIE_S
    while any(group.exists() for group in groups) and time.monotonic() < deadline_s:
        kill_all(groups)
        for folder in [path for group in groups for path, _, _ in os.walk(group, topdown=False)]:
            with suppress(OSError):  # a process may still be on its way out
                Path(folder).rmdir()
        time.sleep(LOOK_S)
    for name in NAMESPACES.glob(f"{lab}*"):
        sh("ip", "netns", "delete", name.name, may_fail=True)
    shutil.rmtree(RUN / lab, ignore_errors=True)


def remove_orphans() -> list[str]:
    """Take away laboratories whose keeper was killed, too; returns their names."""
    gone = []
    for folder in RUN.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder.name)
            gone.append(folder.name)
    return gone
