"""`zswarm doctor`: the examination, its tables, and the most likely cause and cure of each hole."""

from __future__ import annotations

import errno
import json
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from zswarm import __version__
from zswarm.beacon.examination import Findings, Patient
from zswarm.beacon.service import Place, inspect
from zswarm.cli.places import is_loopback
from zswarm.ids import Address
from zswarm.transport import host_of, port_of

KNOCK_S = 2.0
ALL_ROUND = 2
"""Machines that do not reach an address, from which on the fault is there and not at each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Something that does not work."""

    where: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}. {self.cure}"


def examine(place: Place, *, why: str, with_rates: bool, as_json: bool) -> int:
    """Examine the swarm, print what was found; returns 1 if there is a hole."""
    findings = inspect(place, with_rates=with_rates)
    holes = diagnose(findings, {address: knock(address) for address in findings.silent})
    if as_json:
        print(json.dumps(as_record(findings, holes), indent=2))
    else:
        console = Console(highlight=False)
        console.print(f"from {place.host} ({why}), zswarm {__version__}", markup=False)
        if findings.patients:
            console.print(machines_table(findings))
            console.print(matrix(findings))
        else:
            console.print("no machine of the swarm answers here", markup=False)
        for hole in holes:
            console.print(f"- {hole}", markup=False)
        if not holes:
            console.print("no hole: everybody reaches everybody", markup=False)
    return 1 if holes else 0


def knock(address: Address) -> str:
    """Say what a plain connection to an address that does not answer meets with."""
    try:
        with socket.create_connection((host_of(address), port_of(address)), timeout=KNOCK_S):
            return "open"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return "refused" if error.errno == errno.ECONNREFUSED else "unreachable"


_CAUSES = {
    "open": (
        "somebody listens there, and does not answer as a member of this swarm",
        (
            "Compare the swarm keys (`sha256sum ~/.config/zswarm/key` on both) and `zswarm --version`; or it is another "
            "service's port: `ss -ltnp` there tells whose"
        ),
    ),
    "refused": ("the machine is on, and nobody listens there", "Start `zswarm join` there"),
    "silent": ("it does not answer at all", "It is off, or a firewall drops what comes: open the port there"),
    "unreachable": ("there is no way from here", "Look at the cable, `ip route`, and whether the address is right"),
}


def diagnose(findings: Findings, knocks: dict[Address, str]) -> list[Hole]:
    """Return what does not work, with the most likely cause and its cure."""
    patients = findings.patients
    holes = [_silent(address, knocks[address]) for address in findings.silent]
    hidden = [patient for patient in patients.values() if is_loopback(host_of(patient.address))]
    if len(hidden) == len(patients):
        hidden = []
    holes += map(_hidden, hidden)
    seen = [patient for patient in patients.values() if patient not in hidden]
    missing = [(a, b) for a in patients.values() for b in seen if a is not b and not _reaches(a, b)]
    deaf = Counter(b.address for _, b in missing)
    for a, b in missing:
        where = f"{_name(a)} does not reach {_name(b)}"
        if deaf[b.address] >= ALL_ROUND and deaf[b.address] == len(patients) - 1:
            cause, cure = (
                "nobody else does either, though it is reached from here",
                (f"A firewall on {b.machine} lets this machine in alone: open port {port_of(b.address)} there"),
            )
        elif _reaches(b, a):
            cause, cure = (
                "the other way works",
                (
                    f"A firewall on {b.machine}, or an address translation between them: open port {port_of(b.address)} "
                    f"on {b.machine} for {host_of(a.address)}"
                ),
            )
        else:
            cause, cure = "nor the other way round", "They are in networks with no way between them: `ip route` on both"
        holes.append(Hole(where=where, cause=cause, cure=cure))
    return holes + _versions(findings) + _namesakes(findings)


def _silent(address: Address, answer: str) -> Hole:
    cause, cure = _CAUSES[answer]
    return Hole(where=f"{host_of(address)}:{port_of(address)}", cause=cause, cure=cure)


def _hidden(patient: Patient) -> Hole:
    cause = "it has joined at an address that only its own machine reaches"
    return Hole(where=_name(patient), cause=cause, cure="Start `zswarm join` there without --host")


def _versions(findings: Findings) -> list[Hole]:
    releases: dict[str, list[str]] = {}
    for patient in findings.patients.values():
        releases.setdefault(patient.release, []).append(patient.machine)
    if len(releases) < 2:
        return []
    text = "; ".join(f"{release} on {', '.join(machines)}" for release, machines in sorted(releases.items()))
    return [Hole(where="versions", cause=f"not all are the same: {text}", cure="Install the same on all")]


def _namesakes(findings: Findings) -> list[Hole]:
    names: dict[str, list[str]] = {}
    for patient in findings.patients.values():
        names.setdefault(patient.machine, []).append(host_of(patient.address))
    return [
        Hole(
            where=machine,
            cause=f"{len(hosts)} machines have this name: {', '.join(hosts)}",
            cure="Start all but one with --name, or their workers take each other's place",
        )
        for machine, hosts in sorted(names.items())
        if len(hosts) > 1
    ]


def _reaches(a: Patient, b: Patient) -> bool:
    report = a.contacts.get(b.address)
    return report is not None and report.is_heard


def _name(patient: Patient) -> str:
    return f"{patient.machine} ({host_of(patient.address)})"


def machines_table(findings: Findings) -> Table:
    """Return who was found."""
    table = Table("machine", "address", "zswarm", "round trip from here")
    for patient in findings.patients.values():
        table.add_row(
            patient.machine,
            f"{host_of(patient.address)}:{port_of(patient.address)}",
            patient.release,
            _milliseconds(patient.round_trip_s),
        )
    return table


def matrix(findings: Findings) -> Table:
    """Return who reaches whom: the round trip, and the bandwidth if it was measured."""
    patients = list(findings.patients.values())
    table = Table("from \\ to", *(patient.machine for patient in patients))
    for a in patients:
        table.add_row(a.machine, *(_cell(findings, a, b) for b in patients))
    return table


def _cell(findings: Findings, a: Patient, b: Patient) -> str:
    if a is b:
        return ""
    if not _reaches(a, b):
        return "no"
    text = _milliseconds(a.contacts[b.address].round_trip_s)
    measured = findings.rates.get((a.address, b.address))
    if measured is None:
        return text
    return f"{text}, {measured.problem or _megabits(measured.bytes_per_s)}"


def _milliseconds(duration_s: float) -> str:
    return f"{1000 * duration_s:.1f} ms"


def _megabits(bytes_per_s: float) -> str:
    return f"{8e-6 * bytes_per_s:,.0f} Mb/s"


def as_record(findings: Findings, holes: list[Hole]) -> dict[str, Any]:
    """Return all that was found, for JSON."""
    return {
        "machines": [
            {
                "machine": patient.machine,
                "address": patient.address,
                "release": patient.release,
                "round_trip_s": patient.round_trip_s,
                "reaches": {
                    address: {"round_trip_s": report.round_trip_s, "origin": report.origin}
                    for address, report in sorted(patient.contacts.items())
                    if report.is_heard
                },
            }
            for patient in findings.patients.values()
        ],
        "bytes_per_s": [
            {"from": source, "to": target, "bytes_per_s": measured.bytes_per_s, "problem": measured.problem}
            for (source, target), measured in findings.rates.items()
        ],
        "holes": [str(hole) for hole in holes],
    }
