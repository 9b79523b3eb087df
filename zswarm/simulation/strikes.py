"""Carrying out the strikes of a schedule: whom they hit, what they do, and how it ends.

Everything that a strike has begun is over at `calm_from_s`: the killed have been started again, the frozen have
thawed, partitions are healed, and hooks that nobody has come to are taken down. Only what hangs goes on hanging: to end
it is the swarm's own affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from random import Random
from typing import Any

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm.ids import Stage
from zswarm.machine import Received, Send
from zswarm.simulation.faults import (
    AFTER,
    AFTER_RECORD,
    AFTER_SENDS,
    AMID_SENDS,
    BEFORE_RECORD,
    ON,
    ON_PURPOSE,
    Fault,
    Strike,
)
from zswarm.simulation.lives import Lives, is_worker
from zswarm.simulation.network import Network
from zswarm.simulation.nodes import Node
from zswarm.simulation.schedule import Schedule
from zswarm.trainer.roster import host_of
from zswarm.trainer.settings import Append

Later = Callable[[float, Callable[[], None]], None]
"""Let something happen at a time."""
SLOWEST = 40.0
LEAST_SENDS = 3
LOOKS_AGAIN_S = 0.5
"""Until whoever starts processes again looks again whether one has left."""
IMPATIENT_ONE_IN = 4
"""How often somebody asks a second time, and then it goes at once."""
IMPATIENT_S = 0.4
TOGETHER_S = (0.0, 0.01, 0.3)
"""Within how long the processes of a machine hear that they shall leave."""


class Strikes:
    """See the module."""

    def __init__(self, schedule: Schedule, lives: Lives, network: Network, later: Later) -> None:
        self.counters: Counter[str] = Counter()
        self.armed: list[Strike] = []
        """Those that wait for somebody to come to their hook."""
        self._calm_from_s = schedule.calm_from_s
        self._sync_s, self._random = schedule.sync_s, Random(f"log {schedule.seed}")
        self._num_stages = schedule.num_stages
        self._lives = lives
        self._network = network
        self._later = later
        self._cuts: list[tuple[set[tuple[int, int]], float]] = []
        for strike in schedule.strikes:
            if strike.hook:
                later(strike.at_s, partial(self.armed.append, strike))
            else:
                later(strike.at_s, partial(self._strike, strike, strike.at_s))
        if schedule.strikes:
            later(schedule.calm_from_s, self._calm)

    def _calm(self) -> None:
        self.armed.clear()
        self._lives.disk.is_faulty = False

    def _ends_at_s(self, strike: Strike, now_s: float) -> float:
        return max(now_s, min(now_s + strike.lasts_s, self._calm_from_s))

    # -- hooks ---------------------------------------------------------------------------------------

    def on_event(self, node: Node, event: object, now_s: float) -> bool:
        """Strike if somebody waits for this event at such a node; True if the node does not get to handle it now."""
        if not isinstance(event, Received):
            return False
        hook = ON + type(event.message).__name__
        for strike in self.armed:
            if strike.hook == hook and _is_meant(strike, node):
                self.armed.remove(strike)
                self.hit(strike, node, now_s)
                if strike.fault in ON_PURPOSE:
                    return False
                if node.frozen_at_s is not None:
                    node.held.append((now_s, event))
                return True
        return False

    def on_commands(self, node: Node, commands: list[Any]) -> tuple[int, Strike] | None:
        """Return after how many of its commands a node is struck, and by what; None for never."""
        for strike in self.armed:
            place = self._place(strike, node, commands)
            if place is not None:
                self.armed.remove(strike)
                return place, strike
        return None

    def on_record(self, commands: list[Any]) -> tuple[int, Strike] | None:
        """Return after which of its commands the trainer waits for its disk, and as what; None for no durable record."""
        for place, command in enumerate(commands, 1):
            if isinstance(command, Append) and command.durable and place < len(commands):
                lasts_s = self._random.uniform(0.0, self._sync_s)
                return place, Strike(fault=Fault.SLOW_LOG, at_s=0.0, lasts_s=lasts_s, salt=0)
        return None

    def _place(self, strike: Strike, node: Node, commands: list[Any]) -> int | None:
        if not _is_meant(strike, node) or strike.fault in ON_PURPOSE:
            return None
        if strike.hook in (AMID_SENDS, AFTER_SENDS):
            sends = [place for place, command in enumerate(commands) if type(command) is Send]
            if len(sends) < LEAST_SENDS:
                return None
            return len(commands) if strike.hook == AFTER_SENDS else sends[1 + strike.salt % (len(sends) - 1)]
        for place, command in enumerate(commands):
            if isinstance(command, Append) and command.durable:
                if strike.hook in (BEFORE_RECORD, AFTER_RECORD):
                    return place + (strike.hook == AFTER_RECORD)
            elif type(command) is Send and strike.hook == AFTER + type(command.message).__name__:
                return place + 1
        return None

    def hit(self, strike: Strike, node: Node, now_s: float) -> None:
        """Kill or freeze one process, or ask it to leave."""
        if strike.fault is Fault.SLOW_LOG:
            self._freeze(node, now_s + strike.lasts_s, strike.fault)
            return
        self.counters[f"{strike.fault.value} at a hook"] += 1
        if strike.fault in ON_PURPOSE:
            self._ask_to_leave([node], strike, now_s)
        elif strike.fault is Fault.FREEZE:
            self._freeze(node, self._ends_at_s(strike, now_s))
        else:
            self._kill([node], strike, now_s)

    # -- what they do --------------------------------------------------------------------------------

    def _strike(self, strike: Strike, now_s: float) -> None:
        random = Random(strike.salt)
        up = [node for node in self._lives.nodes if node.is_up and strike.node in ("", node.name)]
        brokers = [node for node in up if isinstance(node.machine, BrokerMachine)]
        workers = [node for node in up if isinstance(node.machine, WorkerMachine)]
        match strike.fault:
            case Fault.KILL_TRAINER:
                self._kill([node for node in up if node.number == 0], strike, now_s)
            case Fault.KILL_BROKER:
                self._kill(_one(random, brokers), strike, now_s)
            case Fault.KILL_WORKER:
                self._kill(_one(random, workers), strike, now_s)
            case Fault.KILL_HOST:
                self._kill([*_one(random, brokers), *_one(random, workers)], strike, now_s)
            case Fault.WIPE_STAGE:
                stages = sorted({_stage(node) for node in workers})
                stage = random.choice(stages) if stages else None
                self._kill([node for node in workers if _stage(node) == stage], strike, now_s)
            case Fault.BLACKOUT:
                self._kill(up, strike, now_s)
            case Fault.FREEZE:
                for node in _one(random, up):
                    self._freeze(node, self._ends_at_s(strike, now_s))
            case Fault.PARTITION:
                if strike.node:
                    self._cut_off(random, up, self._ends_at_s(strike, now_s))
                else:
                    self._part(random, self._ends_at_s(strike, now_s))
            case Fault.HANG:
                self._hang(_one(random, [node for node in workers if _is_ready(node)]))
            case Fault.SLOW_WORKER:
                self._slow_down(random, _one(random, workers), self._ends_at_s(strike, now_s))
            case Fault.RESET:
                self._reset(random, _one(random, up))
            case Fault.LEAVE_WORKER:
                self._ask_to_leave(_one(random, workers), strike, now_s)
            case Fault.LEAVE_BROKER:
                self._ask_to_leave(_one(random, brokers), strike, now_s)
            case Fault.LEAVE_HOST:
                self._leave_together(random, brokers, workers, strike)
            case Fault.MOVE:
                self._move(random, _one(random, workers))

    def _kill(self, nodes: list[Node], strike: Strike, now_s: float) -> None:
        """Kill them at once, and start each of them again, the last one when the strike is over."""
        random = Random(strike.salt + 1)
        ends_at_s = self._ends_at_s(strike, now_s)
        for place, node in enumerate(nodes):
            if self._lives.kill(node):
                self.counters[strike.fault.value] += 1
                at_s = ends_at_s if place == 0 else random.uniform(now_s, ends_at_s)
                self._later(at_s, partial(self._lives.start_again, node))

    def _ask_to_leave(self, nodes: list[Node], strike: Strike, now_s: float) -> None:
        """Ask for it, some a second time, and start each again once it has left, not before the strike is over."""
        for node in nodes:
            if not node.is_up:
                continue
            self.counters[strike.fault.value] += 1
            self._lives.ask_to_leave(node, node.life)
            if strike.salt % IMPATIENT_ONE_IN == 0:
                self._later(now_s + IMPATIENT_S, partial(self._lives.ask_to_leave, node, node.life))
            ends_at_s = self._ends_at_s(strike, now_s)
            self._later(ends_at_s, partial(self._come_back, node, node.life, ends_at_s))

    def _leave_together(self, random: Random, brokers: list[Node], workers: list[Node], strike: Strike) -> None:
        """Ask all of a machine, or all workers of a stage, and some of the brokers of that machine or of any."""
        if random.random() < 0.5:
            hosts = sorted({host_of(node.addresses[0]) for node in workers})
            host = random.choice(hosts) if hosts else ""
            brokers, nodes = ([n for n in some if host_of(n.addresses[0]) == host] for some in (brokers, workers))
        else:
            stages = sorted({_stage(node) for node in workers})
            stage = random.choice(stages) if stages else None
            nodes = [node for node in workers if _stage(node) == stage]
        nodes = [*nodes, *random.sample(brokers, random.randint(0, len(brokers)))]
        within_s = random.choice(TOGETHER_S)
        for node in nodes:
            at_s = strike.at_s + random.uniform(0.0, within_s)
            self._later(at_s, partial(self._ask_to_leave, [node], strike, at_s))

    def _move(self, random: Random, nodes: list[Node]) -> None:
        """Order one worker to any stage, mostly another one."""
        for node in nodes:
            self.counters[Fault.MOVE.value] += 1
            self._lives.order_move(node, Stage(random.randrange(self._num_stages)))

    def _come_back(self, node: Node, life: int, now_s: float) -> None:
        if not self._lives.come_back(node, life):
            next_s = now_s + LOOKS_AGAIN_S
            self._later(next_s, partial(self._come_back, node, life, next_s))

    def _freeze(self, node: Node, until_s: float, fault: Fault = Fault.FREEZE) -> None:
        if self._lives.freeze(node):
            self.counters[fault.value] += 1
            self._later(until_s, partial(self._lives.thaw, node, node.life))

    def _hang(self, nodes: list[Node]) -> None:
        for node in nodes:
            assert node.thread is not None
            node.thread.hangs = True
            self.counters[Fault.HANG.value] += 1

    def _slow_down(self, random: Random, nodes: list[Node], until_s: float) -> None:
        for node in nodes:
            assert node.thread is not None
            node.thread.compute.slowdown = random.uniform(2.0, SLOWEST)
            self.counters[Fault.SLOW_WORKER.value] += 1
            self._later(until_s, partial(setattr, node.thread.compute, "slowdown", 1.0))

    def _reset(self, random: Random, nodes: list[Node]) -> None:
        for node in nodes:
            self.counters[Fault.RESET.value] += 1
            everybody = random.random() < 0.5
            for other in self._lives.nodes:
                if other is not node and (everybody or random.random() < 0.3):
                    self._network.reset(node.number, other.number)

    # -- partitions ----------------------------------------------------------------------------------

    def _part(self, random: Random, until_s: float) -> None:
        """Cut some off from some: one from all, or two groups; one way or both; what is sent is late or lost."""
        numbers = [node.number for node in self._lives.nodes]
        some = {random.choice(numbers)} if random.random() < 0.5 else {n for n in numbers if random.random() < 0.4}
        others = [n for n in numbers if n not in some and (len(some) == 1 or random.random() < 0.8)]
        way = random.choice(("there", "back", "both", "both"))
        arrives_s = until_s if random.random() < 0.5 else inf
        self._cut(_pairs(some, others, way), arrives_s, until_s, resets=random.random() < 0.3)

    def _cut_off(self, random: Random, nodes: list[Node], until_s: float) -> None:
        """Cut these off from everybody else, one way or both; what is sent is lost, and no connection is seen to break."""
        some = {node.number for node in nodes}
        others = [node.number for node in self._lives.nodes if node.number not in some]
        pairs = _pairs(some, others, random.choice(("there", "back", "both", "both")))
        self._cut(pairs, inf, until_s, resets=False)

    def _cut(self, pairs: set[tuple[int, int]], arrives_s: float, until_s: float, *, resets: bool) -> None:
        """Cut these ways until a time; what is sent meanwhile arrives at another, or never if that is infinity."""
        cut = (pairs, arrives_s)
        self.counters[Fault.PARTITION.value] += 1
        self._cuts.append(cut)
        self._block()
        self._later(until_s, partial(self._heal, cut, resets=resets))

    def _heal(self, cut: tuple[set[tuple[int, int]], float], *, resets: bool) -> None:
        self._cuts.remove(cut)
        self._block()
        if resets:
            for one, other in sorted(cut[0]):
                self._network.reset(one, other)

    def _block(self) -> None:
        self._network.blocked.clear()
        for pairs, until_s in self._cuts:
            for pair in sorted(pairs):
                self._network.blocked[pair] = max(until_s, self._network.blocked.get(pair, 0.0))


def _one(random: Random, nodes: list[Node]) -> list[Node]:
    """Return one of them, none of none."""
    return [random.choice(nodes)] if nodes else []


def _pairs(some: set[int], others: list[int], way: str) -> set[tuple[int, int]]:
    """Return who does not reach whom: some the others ("there"), the others some ("back"), or both."""
    pairs = {(a, b) for a in some for b in others} if way != "back" else set()
    return pairs | {(b, a) for a in some for b in others} if way != "there" else pairs


def _stage(node: Node) -> int:
    assert isinstance(node.machine, WorkerMachine)
    return node.machine.membership.stage


def _is_ready(node: Node) -> bool:
    """A device that has no parameters yet is given minutes, for which nobody here wants to wait."""
    assert isinstance(node.machine, WorkerMachine)
    return node.machine.parameters.is_ready


def _is_meant(strike: Strike, node: Node) -> bool:
    """May a strike that waits at a hook hit this node?"""
    if strike.node not in ("", node.name):
        return False
    match strike.fault:
        case Fault.KILL_TRAINER:
            return node.number == 0
        case Fault.KILL_WORKER | Fault.LEAVE_WORKER:
            return is_worker(node)
        case Fault.KILL_BROKER | Fault.LEAVE_BROKER:
            return node.number > 0 and not is_worker(node)
        case _:
            return node.frozen_at_s is None
