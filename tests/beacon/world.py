"""Beacons on a network of links that may be down, under a virtual clock."""

from __future__ import annotations

import heapq
from itertools import count
from random import Random

from zswarm.beacon.machine import Beacon, BeaconSettings, HangUp, Sighted
from zswarm.ids import Address, Link
from zswarm.machine import Received, Send, Tick
from zswarm.messages import Offer

LATENCY_S = 0.001


def at(number: int) -> Address:
    return Address(f"tcp://10.0.0.{number}:4710")


def offer(name: str = "prose", number: int = 99, nonce: int = 1) -> Offer:
    return Offer(name=name, coordinator=Address(f"tcp://10.0.0.{number}:4711"), nonce=nonce)


class World:
    """Each process has a number; those that listen have the address `at(number)`."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.processes: dict[int, Beacon] = {}
        self.down: set[tuple[int, int]] = set()
        """(a, b): a cannot dial b, as where a firewall drops what comes; answers take the way of the question."""
        self.said: list[tuple[float, int, object]] = []
        self.num_sent = 0
        self._queue: list[tuple[float, int, int, int, Send]] = []
        self._order = count()

    def add(self, number: int, *, seeds=(), listens=True, offered=None, machine=None, nonce=None) -> Beacon:
        settings = BeaconSettings(
            machine=machine or f"m{number}",
            boot_nonce=nonce or number,
            address=at(number) if listens else Address(""),
            release="1.0",
            seeds=tuple(at(seed) for seed in seeds),
            offer=offered,
        )
        self.processes[number] = Beacon(settings, choose=self.random.randrange, now=self.now)
        return self.processes[number]

    def sight(self, number: int, address: Address) -> None:
        self._carry_out(number, self.processes[number].handle(Sighted(address=address), self.now))

    def run(self, duration_s: float) -> World:
        until_s = self.now + duration_s
        while True:
            arrives_s = self._queue[0][0] if self._queue else float("inf")
            ticks_s = min((p.next_deadline_s() for p in self.processes.values()), default=float("inf"))
            due_s = max(self.now, min(arrives_s, ticks_s))
            if due_s > until_s:
                self.now = until_s
                return self
            self.now = due_s
            if arrives_s <= ticks_s:
                self._deliver()
                continue
            for number, process in list(self.processes.items()):
                if process.next_deadline_s() <= self.now:
                    self._carry_out(number, process.handle(Tick(), self.now))

    def _deliver(self) -> None:
        _, _, source, target, send = heapq.heappop(self._queue)
        is_answer = isinstance(send.peer, bytes)
        if target not in self.processes or ((target, source) if is_answer else (source, target)) in self.down:
            return
        # Whoever is dialled sees a link; whoever has dialled sees the address.
        peer = at(source) if is_answer else Link(str(source).encode())
        self._carry_out(target, self.processes[target].handle(Received(peer=peer, message=send.message), self.now))

    def _carry_out(self, source: int, commands) -> None:
        for command in commands:
            if not isinstance(command, Send):
                if not isinstance(command, HangUp):
                    self.said.append((self.now, source, command))
                continue
            self.num_sent += 1
            peer = command.peer
            target = int(peer) if isinstance(peer, bytes) else int(peer.split(":")[1].rpartition(".")[2])
            heapq.heappush(self._queue, (self.now + LATENCY_S, next(self._order), source, target, command))

    def heard_by(self, number: int) -> set[int]:
        """Return who answers a process."""
        contacts = self.processes[number].contacts
        return {int(c.address.split(":")[1].rpartition(".")[2]) for c in contacts if c.is_heard}

    def said_by(self, number: int, kind: type) -> list[object]:
        return [command for _, source, command in self.said if source == number and isinstance(command, kind)]
