"""What a broker process gets through one core, beside a bare poll loop, and what it needs when it is idle.

    core 0                core 1
    broker  <---------->  producer and worker in one process     Forward --> Job, Ack;   Result -->
    bare loop  <------->  the same                               message --> message

A *message* is one that the broker takes in: each is unpacked, checked and decided upon, and of a microbatch's
two (Forward, Result) the first leads to two more going out (Job, Ack). The bare loop's messages go in and out
unseen, and never encrypted. GB/s are payload bytes that have gone in and out again, 8 MiB in frames of 1 MiB.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console

from zswarm import limits, wire
from zswarm.benchmarks.bystanders import Bystanders
from zswarm.benchmarks.children import Children
from zswarm.benchmarks.figures import Figure, claim, table_of
from zswarm.benchmarks.intervals import alternating, paired_ratios
from zswarm.benchmarks.traffic import BROKER, GENERATION, RUN, WORKER, Traffic
from zswarm.errors import RunFailed
from zswarm.ids import TRAINER, Address, Branch, NodeId, Role, Stage, Step
from zswarm.messages import BrokerHeartbeat, Member, Register, View, Welcome
from zswarm.swarm_key import read_key_file
from zswarm.transport import Switchboard

SMALL_BYTES = 100
SMALL_COUNT = 20_000
SMALL_WINDOW = limits.MAX_LEASES_PER_WORKER
LARGE_BYTES = 8 << 20
LARGE_COUNT = 300
LARGE_WINDOW = 4
IN_PER_MICROBATCH = 2
DEADLINE_S = 60.0
HELLO_S = 10.0
POLL_S = 0.5
HOST = Address("tcp://127.0.0.1:*")
MB, GB = 1e6, 1e9

SMALL, LARGE, SMALL_BARE, LARGE_BARE = "broker, messages/s", "broker, GB/s", "bare, messages/s", "bare, GB/s"
START, RESIDENT, UNIQUE = "broker, s to its first message", "idle broker, MB resident", "idle broker, MB of its own"
TARGETS_AT_LEAST = {SMALL: 20_000.0, LARGE: 1.5}
TARGETS_BELOW = {START: 0.3, RESIDENT: 60.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcomed:
    """A broker process that takes part in a swarm of its own."""

    pid: int
    control: Address
    work: Address
    start_s: float
    """From the start of the process to its first message."""


def main(*, pairs: int = 3, key_file: Path | None = None, json_file: Path | None = None) -> None:
    """Measure everything `pairs` times and print each figure beside its target.

    With `key_file`, the broker and its ends have a swarm key. With `json_file`, write the figures there too.

    Raises:
        UserError: the key cannot be used, or the file cannot be written.
        RunFailed: a process did not do what it should.

    """
    claim(json_file)
    console = Console()
    values: dict[str, list[float]] = {}
    others_cores = []
    for order in alternating([SMALL, SMALL_BARE, LARGE, LARGE_BARE, RESIDENT], pairs):
        for name in order:
            bystanders = Bystanders()
            for measured, value in _measure(name, key_file).items():
                values.setdefault(measured, []).append(value)
            others_cores.append(bystanders.cores())
    figures = figures_of(values)
    console.print(table_of(figures, f"broker, median of {pairs} rounds"))
    console.print(f"others used up to {max(others_cores):.2f} cores meanwhile", highlight=False)
    if json_file is not None:
        found = {"figures": [figure.as_json() for figure in figures], "others_cores": others_cores}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def figures_of(values: dict[str, list[float]]) -> list[Figure]:
    """Return what is to be printed, from the values of each round by name."""
    figures = [
        Figure(name=name, values=found, at_least=TARGETS_AT_LEAST.get(name), below=TARGETS_BELOW.get(name))
        for name, found in values.items()
    ]
    microbatches = [value / IN_PER_MICROBATCH for value in values[SMALL]]
    figures.append(Figure(name="broker, microbatches/s", values=microbatches))
    for name, bare in ((SMALL, SMALL_BARE), (LARGE, LARGE_BARE)):
        figures.append(Figure(name=f"{name} / bare", values=paired_ratios(values[name], values[bare])))
    return figures


def _measure(name: str, key_file: Path | None) -> dict[str, float]:
    if name == RESIDENT:
        return _idle(key_file)
    through = partial(_through_broker, key_file) if name in (SMALL, LARGE) else _through_bare_loop
    if name in (LARGE, LARGE_BARE):
        return {name: LARGE_BYTES / GB * through(LARGE_BYTES, LARGE_COUNT, LARGE_WINDOW)}
    num_in = IN_PER_MICROBATCH if name == SMALL else 1
    return {name: num_in * through(SMALL_BYTES, SMALL_COUNT, SMALL_WINDOW)}


def _through_broker(key_file: Path | None, payload_bytes: int, count: int, window: int) -> float:
    with broker_process(unit_bytes=payload_bytes * window, key_file=key_file) as broker:
        traffic = Traffic(
            role="ends",
            payload_bytes=payload_bytes,
            count=count,
            window=window,
            work=broker.work,
            control=broker.control,
            key_file="" if key_file is None else str(key_file),
        )
        return _run_ends(traffic)


def _through_bare_loop(payload_bytes: int, count: int, window: int) -> float:
    bare = _command(Traffic(role="bare", payload_bytes=payload_bytes))
    with Children([bare], deadline_s=DEADLINE_S, cores=_cores()[:1]) as children:
        work = children.read_line(0)
        return _run_ends(
            Traffic(role="ends", payload_bytes=payload_bytes, count=count, window=window, work=work),
        )


def _run_ends(traffic: Traffic) -> float:
    with Children([_command(traffic)], deadline_s=DEADLINE_S, cores=_cores()[1:]) as children:
        children.read_line(0)
        children.write_line("go")
        return float(json.loads(children.read_line(0))["microbatches_per_s"])


def _idle(key_file: Path | None) -> dict[str, float]:
    with broker_process(unit_bytes=SMALL_BYTES, key_file=key_file) as broker:
        memory = psutil.Process(broker.pid).memory_full_info()
        return {START: broker.start_s, RESIDENT: memory.rss / MB, UNIQUE: memory.uss / MB}


def _command(traffic: Traffic) -> list[str]:
    return ["-m", "zswarm.benchmarks.traffic", json.dumps(asdict(traffic))]


def _cores() -> list[int]:
    """Return two cores to pin to, or none where that is impossible."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[:2] if len(cores) >= 2 else []


@contextmanager
def broker_process(*, unit_bytes: int, key_file: Path | None = None) -> Iterator[Welcomed]:
    """Start `zswarm broker` on a core of its own and welcome it to a swarm of one stage with one worker.

    `unit_bytes` is what its producer's credit comes in.

    Raises:
        UserError: the key cannot be used.
        RunFailed: it does not answer.

    """
    with Switchboard(key=None if key_file is None else read_key_file(key_file)) as switchboard:
        coordinator = switchboard.bind("coordinator", HOST)
        command = ["-m", "zswarm", "broker", "--coordinator", coordinator]
        if key_file is not None:
            command += ["--key", str(key_file)]
        begun_s = time.monotonic()
        with Children([command], deadline_s=DEADLINE_S, cores=_cores()[:1]) as children:
            control, work = welcome_broker(switchboard, unit_bytes, children)
            start_s = time.monotonic() - begun_s
            await_view(switchboard)
            yield Welcomed(pid=children.pid(0), control=control, work=work, start_s=start_s)


def welcome_broker(switchboard: Switchboard, unit_bytes: int, children: Children) -> tuple[Address, Address]:
    """Play the coordinator until the broker has been told its place and its swarm; returns its addresses."""
    deadline_s = time.monotonic() + HELLO_S
    while time.monotonic() < deadline_s:
        children.check()
        for received in switchboard.poll(POLL_S):
            if isinstance(received.message, Register):
                control, work = received.message.addresses
                for message, payload in _place(received.message, unit_bytes):
                    switchboard.send(received.peer, message, wire.split(payload))
                return control, work
    raise RunFailed(f"the broker has not registered within {HELLO_S:.0f} s")


def _place(register: Register, unit_bytes: int) -> list[tuple[Welcome | View, bytes]]:
    """Return what the coordinator says to a broker that registers, and the payloads."""
    members = wire.pack_members(
        [
            Member(member=BROKER, node=register.node, role=Role.BROKER, stage=Stage(0), addresses=register.addresses),
            Member(member=WORKER, node=NodeId("worker"), role=Role.WORKER, stage=Stage(0), addresses=(HOST,)),
        ]
    )
    configuration = b"{}"
    welcome = Welcome(
        run=RUN,
        generation=GENERATION,
        session=TRAINER,
        branch=Branch(0),
        step=Step(0),
        boot_nonce=register.boot_nonce,
        yours=BROKER,
        stage=Stage(0),
        num_stages=1,
        first_layer=0,
        num_layers=1,
        heartbeat_s=limits.HEARTBEAT_S,
        unit_bytes=unit_bytes,
        wiring="queue",
        size_bytes=len(configuration),
    )
    view = View(
        run=RUN,
        generation=GENERATION,
        session=TRAINER,
        branch=Branch(0),
        step=Step(0),
        view=1,
        size_bytes=len(members),
    )
    return [(welcome, configuration), (view, members)]


def await_view(switchboard: Switchboard) -> None:
    """Wait until the broker says that it knows its swarm."""
    deadline_s = time.monotonic() + HELLO_S
    while time.monotonic() < deadline_s:
        for received in switchboard.poll(POLL_S):
            if isinstance(received.message, BrokerHeartbeat) and received.message.view == 1:
                return
    raise RunFailed(f"the broker has not seen its swarm within {HELLO_S:.0f} s")
