"""Machines of a laboratory: each has an address, a bandwidth, a latency, a share of the processor, and things that befall it.

    with Lab() as lab:
        one = lab.machine("lab0", rate_mbit=200, latency_ms=1.0, cores=0.5)
        process = one.popen(["python", "server.py"])    # an ordinary Popen
        one.freeze(); one.thaw()                        # it hangs; its kernel still answers TCP
        one.kill()                                      # its peers are told by its kernel
        one.cut(); one.mend()                           # its cable
        one.cut(); one.kill()                           # a power cut: nobody is told

Each machine is a network namespace with a control group, and all of them hang on one switch in a namespace of its own:
nothing touches the host's network, and laboratories do not see each other. Without latency a link is a veth pair. With
latency L it is delayed at each crossing by L, by the keeper (keeper.py): a round trip between two such machines takes
4 L. Bandwidth is capped at both ends of a link (tbf), the processor by a quota (CFS): keep the sum of all quotas below
the cores of the host. File systems and process ids are the host's.

The keeper also watches the process that made the laboratory. However that ends, processes on machines are killed, and
namespaces and control groups are gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.ground import (
    LOOK_S,
    NAMESPACES,
    PREFIX,
    RUN,
    STEP_S,
    LabError,
    add_namespace,
    control_groups,
    kill_all,
    pids_of,
    remove,
    remove_orphans,
    sh,
    why_not,
    write,
)

SOURCE = Path(__file__).parents[2]
MAX_MACHINES = 200
PERIOD_US = 20_000
"""Of the quota: short, so that a machine with a small share does not pause for long."""
LEAST_QUOTA_US = 1_000
QUEUE_S = 0.05
"""How much of a link's bandwidth its queue holds."""
BURST_S = 0.004
MTU = 1500
CLOSE_S = 30.0
_ENTER = """
set -e
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
namespace=$2 name=$3; shift 3
exec ip netns exec "$namespace" unshare --uts -- sh -c 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"' "$name" "$@"
"""
"""In a shell that becomes the program: into the control groups, the network (with its own /sys), and a name."""


class Machine:
    """Made by `Lab.machine`, and gone with the laboratory."""

    def __init__(self, lab: str, name: str, *, index: int, groups: list[Path]) -> None:
        self.name = name
        self.host = f"10.77.0.{index + 1}"
        self.namespace = f"{lab}-{name}"
        self.port = f"port{index}"
        self._lab = lab
        self._groups = groups

    def popen(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on this machine, with the options of Popen; the process id is the program's own."""
        words = ["sh", "-c", _ENTER, "enter", *self._groups, "--", self.namespace, self.name, *command]
        process = subprocess.Popen([str(word) for word in words], **options)
        deadline_s = time.monotonic() + STEP_S
        while process.pid not in self.pids() and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(LOOK_S / 10)  # so that a kill right now finds it
        return process

    def run(self, command: Sequence[str | Path], *, timeout_s: float = STEP_S) -> str:
        """Run a program to its good end; returns what it prints.

        Raises:
            LabError: it failed, or took longer; the text has what it printed.

        """
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        with self.popen(command, text=True, **pipes) as process:
            try:
                printed, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(f"{self.name}: {command} took more than {timeout_s:g} s") from None
        if process.returncode:
            raise LabError(f"{self.name}: {command} ended with {process.returncode}:\n{printed}")
        return str(printed)

    def pids(self) -> set[int]:
        """Return every process on this machine."""
        return pids_of(self._groups)

    def kill(self) -> None:
        """SIGKILL all processes; returns when they are gone."""
        kill_all(self._groups)

    def freeze(self) -> None:
        """Stop all processes where they are, until they are thawed or killed."""
        self._set_frozen("1", "FROZEN")

    def thaw(self) -> None:
        """Have them go on."""
        self._set_frozen("0", "THAWED")

    def cut(self) -> None:
        """Pull the cable: every packet is lost, and nobody is told."""
        sh("ip", "-n", self._lab, "link", "set", self.port, "nomaster")

    def mend(self) -> None:
        """Put the cable back."""
        sh("ip", "-n", self._lab, "link", "set", self.port, "master", "switch")

    def set_rate(self, rate_mbit: float) -> None:
        """Cap the bandwidth of both directions."""
        bytes_per_s = rate_mbit * 1e6 / 8
        burst = max(3 * MTU, min(int(bytes_per_s * BURST_S), 256_000))
        limit = burst + max(int(bytes_per_s * QUEUE_S), 20 * MTU)
        shape = ("tbf", "rate", f"{rate_mbit * 1e6:.0f}bit", "burst", burst, "limit", limit)
        for namespace, device in ((self.namespace, "eth0"), (self._lab, self.port)):
            sh("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *shape)

    def set_cores(self, cores: float) -> None:
        """Cap the time on processors, in cores.

        Raises:
            LabError: there is no controller for it.

        """
        quota_us = max(LEAST_QUOTA_US, int(cores * PERIOD_US))
        for group in self._groups:
            if write(group / "cpu.cfs_period_us", str(PERIOD_US)):  # v1
                if write(group / "cpu.cfs_quota_us", str(quota_us)):
                    return
            elif write(group / "cpu.max", f"{quota_us} {PERIOD_US}"):  # v2
                return
        raise LabError("no cpu controller that this laboratory may use")

    @property
    def sent_bytes(self) -> int:
        """What has left this machine by its link."""
        return self._link()["rx"]

    @property
    def received_bytes(self) -> int:
        """What the switch has sent to this machine."""
        return self._link()["tx"]

    def _link(self) -> dict[str, int]:
        (link,) = json.loads(sh("ip", "-n", self._lab, "-s", "-j", "link", "show", "dev", self.port))
        return {way: int(counts["bytes"]) for way, counts in link["stats64"].items()}

    def _set_frozen(self, bit: str, word: str) -> None:
        ways = (
            ("cgroup.freeze", bit, "cgroup.events", f"frozen {bit}"),
            ("freezer.state", word, "freezer.state", word),
        )
        deadline_s = time.monotonic() + STEP_S
        for file, ask, state, wanted in ways:
            for group in [group for group in self._groups if (group / file).exists()]:
                while time.monotonic() < deadline_s:
                    if write(group / file, ask) and wanted in (group / state).read_text():
                        return
                    time.sleep(LOOK_S)
        raise LabError(f"{self.name} does not become {word.lower()}")


class Lab:
    """A switch and machines on it; a context manager that takes them away."""

    def __init__(self) -> None:
        """Make a switch.

        Raises:
            LabError: that is impossible here; the text says why.

        """
        if (reason := why_not()) is not None:
            raise LabError(reason)
        remove_orphans()
        self.name = f"{PREFIX}{os.urandom(4).hex()}"
        self.machines: dict[str, Machine] = {}
        self._hierarchies = control_groups()
        self._keeper = self._start_keeper()
        try:
            for path in self._hierarchies.values():
                (path / self.name).mkdir()
            v2 = self._hierarchies.get("v2")
            if v2 is not None and "cpu" not in self._hierarchies and write(v2 / "cgroup.subtree_control", "+cpu"):
                write(v2 / self.name / "cgroup.subtree_control", "+cpu")
            add_namespace(self.name)
            ip = ("ip", "-n", self.name, "link")
            sh(*ip, "add", "switch", "type", "bridge", "mcast_snooping", 0, "forward_delay", 0)
            sh(*ip, "set", "switch", "up")
        except BaseException:
            self.close()
            raise

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        """Start the keeper, which alone holds the lock from here on."""
        draft, folder = RUN / f".{self.name}", RUN / self.name
        draft.mkdir(parents=True)  # seen by nobody who looks for orphans until it is locked
        with (draft / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            draft.rename(folder)
            return subprocess.Popen(
                [sys.executable, "-m", "tests.lab.keeper", self.name, str(os.getpid())],
                cwd=SOURCE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def machine(
        self, name: str, *, rate_mbit: float | None = None, latency_ms: float | None = None, cores: float | None = None
    ) -> Machine:
        """Add a machine; what is not given is not limited.

        Raises:
            LabError: that is impossible here.

        """
        assert name not in self.machines
        assert len(self.machines) < MAX_MACHINES
        groups = [path / self.name / name for path in self._hierarchies.values()]
        machine = Machine(self.name, name, index=len(self.machines), groups=groups)
        for group in groups:
            group.mkdir()
        inner, outer = ("ip", "-n", machine.namespace), ("ip", "-n", self.name)
        add_namespace(machine.namespace)
        if latency_ms is None:
            peer = ("peer", "name", "eth0", "netns", machine.namespace)
            sh(*outer, "link", "add", machine.port, "type", "veth", *peer)
        else:
            self._ask_keeper(port=machine.port, namespace=machine.namespace, delay_s=latency_ms / 1000)
        sh(*outer, "link", "set", machine.port, "up")
        sh(*inner, "address", "add", f"{machine.host}/24", "brd", "+", "dev", "eth0")
        for device in ("lo", "eth0"):
            sh(*inner, "link", "set", device, "up")
        machine.mend()
        if rate_mbit is not None:
            machine.set_rate(rate_mbit)
        if cores is not None:
            machine.set_cores(cores)
        self.machines[name] = machine
        return machine

    def _ask_keeper(self, **link: Any) -> None:
        keeper = self._keeper
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with suppress(BrokenPipeError):
            keeper.stdin.write(json.dumps(link).encode() + b"\n")
            keeper.stdin.flush()
        answer = keeper.stdout.readline().decode().strip()
        if answer != "ok":
            raise LabError(answer or "the keeper of the laboratory has ended")

    def used_cpu_s(self) -> float:
        """Return the processor time that all machines and the keeper have taken so far.

        Raises:
            LabError: the kernel does not count it.

        """
        try:
            lines = (self._hierarchies["v2"] / self.name / "cpu.stat").read_text().splitlines()
            keeper = Path(f"/proc/{self._keeper.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (KeyError, OSError) as error:
            raise LabError(f"no account of processor time: {error}") from None
        ticks = int(keeper[11]) + int(keeper[12])
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6 + ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Kill all processes on machines and take everything away."""
        keeper = self._keeper
        for pipe in (keeper.stdin, keeper.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(CLOSE_S)
        if self.exists:
            remove(self.name)

    @property
    def exists(self) -> bool:
        """Whether anything of it is there."""
        places = (NAMESPACES, RUN, *self._hierarchies.values())
        return any(list(place.glob(f"{self.name}*")) for place in places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
