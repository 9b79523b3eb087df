"""`zswarm join`: this machine's part of a swarm: its beacon, and a broker and a worker for each device.

this process --fork--> beacon, brokers    (before torch is imported: they stay small)
|  import torch
+-------fork--> workers                   (torch is imported once for all)
|
+-- starts again who dies, stops the workers while the machine is paused, has everybody leave in peace at the end
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from time import monotonic

from brokers.service import serve_broker
from stages.allowed import Allowed
from zswarm import limits
from zswarm.beacon.service import Place, serve_beacon
from zswarm.cli.family import Ended, Family, wake_on_signals
from zswarm.cli.large_imports import large_imports
from zswarm.cli.pausing import is_paused
from zswarm.cli.serving import serve_runs
from zswarm.cli.supervisor import EXCUSED, Restarts, say, say_hung
from zswarm.errors import INTERRUPTED, TRY_LATER, RunFailed
from zswarm.ids import Address, NodeId
from zswarm.machine import Exit
from zswarm.overseer import Overseer
from zswarm.transport import any_port

LOOK_S = 0.5
"""Between two looks at whether this machine is paused."""
PAUSE_WITHIN_S = 4.0
"""How long workers have to leave a machine that is paused; whoever is left is killed, and its share done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What the command line said."""

    place: Place
    beacon: Address
    """Where this machine's beacon listens."""
    devices: tuple[str, ...]
    """One for each worker: several may share one."""
    brokers: int
    threads: int
    allowed: Allowed
    """Whose model code workers may run."""


def run_join(options: JoinOptions) -> int:
    """Be a member of the swarm until Ctrl-C or SIGTERM; returns the exit code.

    Raises:
        UserError: an address cannot be used.
        RunFailed: a process keeps dying.

    """
    place = options.place
    with Family(is_gentle=True) as family:
        caretaker = Caretaker(family)
        caretaker.add(
            "beacon", lambda: serve_beacon(place, listen=options.beacon, say=say, overseer=family.lifeline).code
        )
        for index in range(options.brokers):
            name = f"{place.machine}-broker-{index}"
            caretaker.add(name, partial(_member, place, name, family, partial(_broker, options, name)))
        if options.devices:
            with large_imports():
                import stages.service  # noqa: F401 - imports torch: for all workers at once, before they are forked
        for index, device in enumerate(options.devices):
            name = f"{place.machine}-worker-{index}"
            body = partial(_member, place, name, family, partial(_worker, options, name, device))
            caretaker.add(name, body, is_pausable=True)
        return caretaker.run()


def _member(place: Place, name: str, family: Family, serve: Callable[..., Exit]) -> int:
    end = serve_runs(place, serve, say=lambda text: say(f"{name} {text}"), overseer=family.lifeline)
    return end.code


def _broker(options: JoinOptions, name: str, *, coordinator: Address, overseer: Overseer) -> Exit:
    return serve_broker(
        node=NodeId(name),
        coordinator=coordinator,
        listen=any_port(options.place.host),
        capacity_bytes=limits.BROKER_CAPACITY_BYTES,
        key=options.place.key,
        overseer=overseer,
    )


def _worker(options: JoinOptions, name: str, device: str, *, coordinator: Address, overseer: Overseer) -> Exit:
    from stages.service import Computing, serve_worker

    return serve_worker(
        node=NodeId(name),
        coordinator=coordinator,
        listen=any_port(options.place.host),
        computing=Computing(device=device, threads=options.threads, allowed=options.allowed),
        key=options.place.key,
        overseer=overseer,
    )


class Caretaker:
    """Keeps children alive until it is told to end; those that are pausable leave while the machine is paused."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._bodies: dict[str, Callable[[], int]] = {}
        self._pausable: set[str] = set()
        """The workers, but for those that are given up."""
        self._restarts = Restarts()
        self._is_paused = False
        self._kill_at_s = float("inf")

    def add(self, name: str, body: Callable[[], int], *, is_pausable: bool = False) -> None:
        """Start a child; one that is pausable begins with the machine's resume if it is paused.

        The first of those that are pausable decides for all: they leave, and come back, together.
        """
        self._bodies[name] = body
        if is_pausable and not self._pausable and is_paused():
            self._is_paused = True
            say("paused: no workers are started; `zswarm resume` brings them")
        if is_pausable:
            self._pausable.add(name)
        if not (is_pausable and self._is_paused):
            self._start(name)

    def run(self) -> int:
        """Watch until a signal says that it is enough; returns the exit code."""
        with wake_on_signals() as wait:
            while True:
                signals = wait(max(0.0, min(LOOK_S, self._restarts.next_s() - monotonic())))
                if signal.SIGINT in signals or signal.SIGTERM in signals:
                    return self._leave(wait, INTERRUPTED if signal.SIGINT in signals else 0)
                for ended in self._family.reap().values():
                    self._bury(ended)
                say_hung(self._family.kill_hung())
                self._follow_pause()
                for name in self._restarts.due(monotonic()):
                    self._start(name)

    def _start(self, name: str) -> None:
        self._family.fork(name, self._bodies[name])
        self._restarts.started(name, monotonic())

    def _bury(self, ended: Ended) -> None:
        if ended.code == 2:
            raise RunFailed(f"{ended.name} cannot go on")
        if self._is_paused and ended.name in self._pausable:
            return
        if not self._restarts.died(ended.name, monotonic(), is_excused=ended.code in EXCUSED | {TRY_LATER}):
            text = f"{ended.describe()}, again and again: it is not started any more"
            if self._pausable <= {ended.name} or ended.name not in self._pausable:
                raise RunFailed(text)
            self._pausable.discard(ended.name)
            say(f"{text}; the others go on")
            return
        if ended.code != 0:
            say(f"{ended.describe()} and is started again")

    def _follow_pause(self) -> None:
        is_wanted = is_paused()
        if is_wanted and not self._is_paused:
            self._is_paused = True
            say("paused: the workers leave; `zswarm resume` brings them back")
            self._kill_at_s = monotonic() + PAUSE_WITHIN_S
            self._tell(self._pausable, signal.SIGTERM)
            for name in self._pausable:
                # A start that is due and may not happen would be waited for without end.
                self._restarts.drop(name)
        elif self._is_paused and monotonic() >= self._kill_at_s:
            self._kill_at_s = float("inf")
            self._tell(self._pausable, signal.SIGKILL)
        elif self._is_paused and not is_wanted and not self._alive(self._pausable):
            self._is_paused = False
            say("resumed")
            for name in sorted(self._pausable):
                self._start(name)

    def _leave(self, wait: Callable[[float], bytes], code: int) -> int:
        """Have everybody go in peace; whoever is not gone in time, or at the next signal, is killed with the family."""
        say("leaving: what is begun is finished first; once more Ctrl-C ends it at once")
        self._tell(self._bodies, signal.SIGTERM)
        deadline_s = monotonic() + limits.DRAIN_S + 1.0
        while self._family.processes() and (left_s := deadline_s - monotonic()) > 0:
            signals = wait(min(LOOK_S, left_s))
            self._family.reap()
            if signal.SIGINT in signals or signal.SIGTERM in signals:
                break
        return code

    def _tell(self, names: Collection[str], number: signal.Signals) -> None:
        for name in self._alive(names):
            self._family.signal(name, number)

    def _alive(self, names: Collection[str]) -> list[str]:
        return [name for name in self._family.processes() if name in names]
