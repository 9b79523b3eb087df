"""Machines of a laboratory: network namespaces on one switch, with addresses and no way to anywhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count

import pytest

NUMBERS = count()


class Lan:
    """`machines[i]` is what to write before a command to run it there; its address is `host(i)`."""

    def __init__(self, number: int) -> None:
        self._name = f"zs{os.getpid()}-{number}"
        self.machines: list[list[str]] = []

    @staticmethod
    def host(index: int) -> str:
        return f"10.77.0.{index + 1}"

    def make(self, num_machines: int) -> None:
        """Make a switch and the machines; skips the test where that is not possible."""
        switch = f"{self._name}-switch"
        self._ip(f"netns add {switch}")
        self._ip(f"-n {switch} link add bridge type bridge mcast_snooping 0")
        self._ip(f"-n {switch} link set bridge up")
        for index in range(num_machines):
            name = f"{self._name}-{index}"
            self._ip(f"netns add {name}")
            self._ip(f"link add cable netns {name} type veth peer name port{index} netns {switch}")
            self._ip(f"-n {switch} link set port{index} master bridge up")
            self._ip(f"-n {name} address add {self.host(index)}/24 dev cable")
            for device in ("lo", "cable"):
                self._ip(f"-n {name} link set {device} up")
            self.machines.append(["ip", "netns", "exec", name])

    def remove(self) -> None:
        """Take everything away; nobody may run there any more."""
        for name in [f"{self._name}-{index}" for index in range(len(self.machines))] + [f"{self._name}-switch"]:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=20)

    def _ip(self, step: str) -> None:
        made = subprocess.run(["ip", *step.split()], check=False, capture_output=True, text=True, timeout=20)
        if made.returncode != 0:
            pytest.skip(f"no network namespaces can be made here: ip {step}: {made.stderr.strip()}")


@pytest.fixture
def lan(zswarm) -> Iterator[Callable[[int], Lan]]:
    """Return what makes a LAN of so many machines; commands of `zswarm` that are still there end before it does."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command to make network namespaces with")
    made: list[Lan] = []

    def make(num_machines: int) -> Lan:
        made.append(Lan(next(NUMBERS)))
        made[-1].make(num_machines)
        return made[-1]

    yield make
    zswarm.end()
    for each in made:
        each.remove()
