"""What strangers cost a broker that has a swarm key: bytes that get through, memory, and the time of honest peers.

A real broker process, with few open files, is attacked by everything in strangers.py one after the other, then by a
flood of connections that say nothing. Bytes that got through are those that the broker says it has received, less
those that honest peers have sent; its memory is the peak that the system has seen. An honest peer is served when it
dials anew, attaches to the broker, and is told its credit.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from zswarm.benchmarks import strangers
from zswarm.benchmarks.broker import HOST, SMALL_BYTES, await_view, welcome_broker
from zswarm.benchmarks.children import Children
from zswarm.benchmarks.figures import Figure, claim, table_of
from zswarm.benchmarks.strangers import ATTACKS, Victim
from zswarm.benchmarks.traffic import GENERATION, RUN
from zswarm.errors import RunFailed
from zswarm.ids import TRAINER, Address
from zswarm.messages import Attach, Credit
from zswarm.swarm_key import SwarmKey, make_key_file, read_key_file
from zswarm.transport import Switchboard
from zswarm.transport.curve import Curve

OPEN_FILES = 256
"""Of the broker: a flood of twice as many takes them all."""
FLOOD_CONNECTIONS = 500
FLOOD_S = 4.0
"""Longer than a connection may go without a handshake."""
DEADLINE_S = 120.0
SERVED_WITHIN_S = 60.0
MIB = 1 << 20

DELIVERED, GROWTH = "bytes of strangers that got through", "growth of the broker, MiB"
MEANWHILE, AFTER = "s until a connected peer is served, in a flood", "s until a new peer is served, after it"
TARGETS_BELOW = {DELIVERED: 1.0, GROWTH: 64.0, AFTER: 6.0}


def main(*, rounds: int = 3, json_file: Path | None = None) -> None:
    """Attack `rounds` brokers and print each figure beside its target; with `json_file`, write them there too.

    Raises:
        UserError: the file cannot be written.
        RunFailed: the broker did not do what it should.

    """
    claim(json_file)
    values: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in measure().items():
            values.setdefault(name, []).append(value)
    figures = figures_of(values)
    Console().print(
        table_of(figures, f"attacks by strangers; {FLOOD_CONNECTIONS} connections, {OPEN_FILES} open files")
    )
    if json_file is not None:
        json_file.write_text(json.dumps({"figures": [figure.as_json() for figure in figures]}, indent=1))


def figures_of(values: dict[str, list[float]]) -> list[Figure]:
    """Return the figures, each with its target."""
    return [Figure(name=name, values=found, below=TARGETS_BELOW.get(name)) for name, found in values.items()]


def measure(*, flood_s: float = FLOOD_S) -> dict[str, float]:
    """Attack one broker with everything, then with a flood of so many seconds."""
    with target(open_files=OPEN_FILES) as broker:
        early = broker.stack.enter_context(Switchboard(key=broker.key))
        broker.serve(early)
        broker.note_memory()
        for attack in ATTACKS:
            attack(broker.victim)
            with Switchboard(key=broker.key) as late:
                broker.serve(late)
        with ExitStack() as held:
            strangers.flood(broker.victim, held, num_connections=FLOOD_CONNECTIONS, duration_s=flood_s)
            # Those that are left open are cut off one by one: an attacker need not be so kind as to hang up.
            meanwhile_s = broker.serve(early)
            with Switchboard(key=broker.key) as late:
                after_s = broker.serve(late)
        growth = broker.growth_bytes() / MIB
        return {
            DELIVERED: float(broker.end().strangers_bytes),
            GROWTH: growth,
            MEANWHILE: meanwhile_s,
            AFTER: meanwhile_s + after_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a broker says of its life when it ends."""

    strangers_bytes: int
    """Received, and sent by nobody honest."""
    num_malformed: int
    num_cut_off: int


class Target:
    """A broker process that takes part in a swarm of its own, whose trainer this process plays."""

    def __init__(
        self, *, key: SwarmKey, trainer: Switchboard, children: Children, work: Address, control: Address
    ) -> None:
        self.key = key
        self.pid = children.pid(0)
        self.work = work
        self.control = control
        self.stack = ExitStack()
        """Ends before the broker does."""
        self._trainer = trainer
        self._children = children
        self._honest_bytes = 0
        self._before_bytes = 0

    @property
    def victim(self) -> Victim:
        """Return what attackers are told."""
        public = Curve.of(self.key).server_public
        return Victim(address=self.work, run=RUN, generation=GENERATION, server_public=public)

    def serve(self, peer: Switchboard) -> float:
        """Have a peer attach as a producer, and be told its credit; returns the seconds that took.

        Raises:
            RunFailed: nobody has answered within SERVED_WITHIN_S.

        """
        begun_s = time.monotonic()
        before_bytes = peer.sent_bytes
        peer.send(self.work, Attach(run=RUN, generation=GENERATION, session=TRAINER))
        while (waited_s := time.monotonic() - begun_s) < SERVED_WITHIN_S:
            self._trainer.poll(0.0)
            if any(isinstance(received.message, Credit) for received in peer.poll(0.01)):
                self._honest_bytes += peer.sent_bytes - before_bytes
                return waited_s
        self._children.check()
        raise RunFailed(f"an honest peer was not served within {SERVED_WITHIN_S:.0f} s")

    def note_memory(self) -> None:
        """Count growth from here on."""
        self._before_bytes = psutil.Process(self.pid).memory_info().rss

    def growth_bytes(self) -> int:
        """Return by how much the broker's memory has grown at most."""
        return peak_bytes(self.pid) - self._before_bytes

    def end(self) -> Heard:
        """End the broker, and return what it says of its life."""
        self.stack.close()
        log = [json.loads(line) for line in self._children.end(0).splitlines() if line.startswith("{")]
        (last,) = [record for record in log if record["event"] == "ended"]
        return Heard(
            strangers_bytes=last["received_bytes"] - self._honest_bytes - self._trainer.sent_bytes,
            num_malformed=last["num_malformed"],
            num_cut_off=last["num_cut_off"],
        )


@contextmanager
def target(*, open_files: int | None = None) -> Iterator[Target]:
    """Start a broker with a key of its own; `open_files` is the most that it may have.

    Raises:
        RunFailed: it does not answer.

    """
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder) / "key"
        make_key_file(key_file)
        key = read_key_file(key_file)
        with Switchboard(key=key) as trainer:
            coordinator = trainer.bind("coordinator", HOST)
            command = ["-m", "zswarm", "broker", "--coordinator", coordinator, "--key", str(key_file)]
            with Children([command], deadline_s=DEADLINE_S) as children:
                control, work = welcome_broker(trainer, SMALL_BYTES, children)
                await_view(trainer)
                broker = Target(key=key, trainer=trainer, children=children, work=work, control=control)
                if open_files is not None:
                    psutil.Process(broker.pid).rlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
                with broker.stack:
                    yield broker


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had; where the system does not tell, what it has now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
