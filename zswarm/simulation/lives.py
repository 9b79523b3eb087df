"""How nodes come to life, die, freeze and thaw.

A process that is started again has its name, its clock and a new boot nonce, and nothing in its memory: a worker
has no parameters, a broker is empty, a trainer takes the run up from its disk. Its sockets listen where they did, or,
as the system's choice of a port may have it, elsewhere (but for the trainer's, which everybody has to know).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm import limits
from zswarm.ids import Address, Generation, Link, NodeId, Stage
from zswarm.machine import ASKED, Leave, Received, Tick
from zswarm.membership import RUNLESS
from zswarm.messages import Move
from zswarm.simulation.clock import EventQueue, NodeClock
from zswarm.simulation.disk import Disk
from zswarm.simulation.faults import Fault
from zswarm.simulation.network import Network
from zswarm.simulation.nodes import NOBODY, WAKE, AnyMachine, ComputeThread, Node, Rest, Wake
from zswarm.simulation.poison import Poisons
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.symbolic import SymbolicCompute
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.recovery import recover

COORDINATOR = Address("sim://trainer")
OPERATOR = Link(b"operator")
"""Whoever sits at the command line."""
NUM_HOSTS = 2
"""Machines that the brokers and workers are dealt out to."""
ELSEWHERE_ONE_IN = 3
"""How often a process that is started again listens elsewhere."""

Item = tuple[Node | None, int, Any]
"""Whom an event is for, in which of its lives; None: it is something that happens in the world."""


class Lives:
    """See the module. `nodes[0]` is the trainer, then come the brokers, then the workers."""

    def __init__(self, schedule: Schedule, queue: EventQueue[Item], network: Network) -> None:
        self.nodes: list[Node] = []
        self.counters: Counter[str] = Counter()
        is_faulty = Fault.DISK in schedule.faults
        self.disk = Disk(Random(f"disk {schedule.seed}"), is_faulty=is_faulty, last_step=schedule.steps)
        self.poisons = Poisons(schedule.poisons)
        self._schedule = schedule
        self._settings = schedule.settings()
        self._queue = queue
        self._network = network
        self._random = Random(f"swarm {schedule.seed}")
        self._starts_at_s: list[float] = []
        late_s = 3.0 if Fault.LATE_PROCESSES in schedule.faults else 1.0
        self._expect("trainer", (COORDINATOR,), at_s=0.0)
        num_brokers = schedule.num_stages * schedule.brokers_per_stage
        for index in range(num_brokers + schedule.late_brokers):
            both = (_address(index, f"broker-{index}/control"), _address(index, f"broker-{index}/work"))
            self._expect(f"broker-{index}", both, at_s=self._start_s(index, num_brokers, expected_by_s=late_s))
        num_workers = schedule.num_stages * schedule.workers_per_stage
        for index in range(num_workers + schedule.late_workers):
            peer = (_address(index, f"worker-{index}/peer"),)
            self._expect(f"worker-{index}", peer, at_s=self._start_s(index, num_workers, expected_by_s=1.0))
        self.slowness = {
            node.number: schedule.slowness ** self._random.random() for node in self.nodes if is_worker(node)
        }
        for node, at_s in zip(self.nodes, self._starts_at_s, strict=True):
            self._be_born(node, at_s)

    def _start_s(self, index: int, expected: int, *, expected_by_s: float) -> float:
        return self._random.uniform(0.0, expected_by_s if index < expected else 6.0)

    def _expect(self, name: str, addresses: tuple[Address, ...], *, at_s: float) -> None:
        crooked = Fault.CROOKED_CLOCKS in self._schedule.faults
        clock = NodeClock(
            offset_s=self._random.uniform(-1e6, 1e6) if crooked else 0.0,
            rate=self._random.uniform(0.8, 1.2) if crooked else 1.0,
        )
        node = Node(number=len(self.nodes), name=name, clock=clock, addresses=addresses)
        self.nodes.append(node)
        self._starts_at_s.append(at_s)

    # -- birth ---------------------------------------------------------------------------------------

    def _be_born(self, node: Node, at_s: float) -> None:
        node.life += 1
        node.machine = self._machine(node)
        for address in node.addresses:
            self._network.attach(node.number, address)
        self._queue.put(at_s, (node, node.life, Tick()))

    def _machine(self, node: Node) -> AnyMachine:
        schedule, life = self._schedule, f"{node.name} {node.life} {self._schedule.seed}"
        if node.number == 0:
            return self._trainer(life)
        nonce = 1_000_000 * node.number + 1000 * node.life
        if is_worker(node):
            pace = replace(schedule.pace, forward_s=schedule.pace.forward_s * self.slowness[node.number])
            random = Random(f"compute {life}")
            node.thread = ComputeThread(
                SymbolicCompute(pace, random, seed=schedule.seed, name=node.name, poisons=self.poisons)
            )
            return WorkerMachine(
                node=NodeId(node.name),
                boot_nonce=nonce,
                addresses=node.addresses,
                coordinator=COORDINATOR,
                random=Random(life).random,
            )
        control, work = node.addresses
        return BrokerMachine(
            node=NodeId(node.name),
            boot_nonce=nonce,
            addresses=(control, work),
            coordinator=COORDINATOR,
            capacity_bytes=schedule.capacity_bytes,
        )

    def _trainer(self, life: str) -> Coordinator:
        recovered = recover(self.disk.read_log())
        settings = self._settings
        if recovered is not None:
            leap = Random(f"generation of {life}").randrange(limits.GENERATION_LEAP)
            settings = replace(
                settings,
                generation=Generation(recovered.generation + leap),
                first_session=recovered.next_session,
                recovered=recovered,
                checkpoint=self.disk.newest(recovered),
            )
        return Coordinator(settings, random=Random(life).random)

    # -- death ---------------------------------------------------------------------------------------

    def kill(self, node: Node) -> bool:
        """End a process as it stands, with its connections; False if it is not up."""
        if not node.is_up:
            return False
        node.life += 1
        node.machine, node.thread = NOBODY, None
        node.wake_at_s = node.frozen_at_s = None
        node.held.clear()
        self._network.detach(node.number)
        if node.number == 0:
            self.disk.crash()
        return True

    def start_again(self, node: Node) -> None:
        """Bring a process back that is down, unless it has ended by itself; a trainer also if it is not needed."""
        if node.machine is not NOBODY or (node.number == 0 and self.disk.is_finished):
            return
        if node.number > 0 and self._random.randrange(ELSEWHERE_ONE_IN) == 0:
            node.addresses = tuple(Address(f"{address}/{node.life}") for address in node.addresses)
        self.counters["processes started again"] += 1
        self._be_born(node, self._queue.now_s)

    # -- leaving -------------------------------------------------------------------------------------

    def ask_to_leave(self, node: Node, life: int) -> None:
        """Let a process hear in this life that it shall go."""
        self._queue.put(self._queue.now_s, (node, life, Leave()))

    def order_move(self, node: Node, stage: Stage) -> None:
        """Let the trainer be asked to move a worker, by somebody who is gone before the answer comes."""
        trainer = self.nodes[0]
        if not trainer.is_up:
            return
        order = Move(**RUNLESS, node=NodeId(node.name), stage=stage)
        event = Received(peer=OPERATOR, message=order)
        self._queue.put(self._queue.now_s, (trainer, trainer.life, event))

    def come_back(self, node: Node, life: int) -> bool:
        """Start a process again that has left because it was asked to; False if it has not left yet."""
        if node.life != life:
            return True
        if node.exit is None:
            return False
        if node.exit.text == ASKED:
            node.life += 1
            node.machine, node.thread, node.exit = NOBODY, None, None
            node.wake_at_s = node.frozen_at_s = None
            node.held.clear()
            self.start_again(node)
        return True

    # -- freezing ------------------------------------------------------------------------------------

    def freeze(self, node: Node) -> bool:
        """Let a process handle nothing; False if it is not up, or frozen already."""
        if not node.is_up or node.frozen_at_s is not None:
            return False
        node.frozen_at_s = self._queue.now_s
        return True

    def thaw(self, node: Node, life: int) -> None:
        """Let it handle what has come meanwhile, in order; its compute thread has stood still just as long."""
        if node.life != life or node.frozen_at_s is None:
            return
        now_s = self._queue.now_s
        stood_s = now_s - node.frozen_at_s
        held, node.held, node.frozen_at_s = node.held, [], None
        for came_at_s, event in held:
            self._queue.put(came_at_s + stood_s if is_from_thread(event) else now_s, (node, life, event))
        # The wake-up that it slept through.
        node.wake_at_s = now_s
        self._queue.put(now_s, (node, life, WAKE))


def _address(index: int, socket: str) -> Address:
    """Return where a process listens, from which one sees on which machine."""
    return Address(f"sim://host-{index % NUM_HOSTS}:{socket}")


def is_worker(node: Node) -> bool:
    """Is it a worker, up or down?"""
    return node.name.startswith("worker")


def is_from_thread(event: object) -> bool:
    """Does a worker's event come from its compute thread?"""
    return not isinstance(event, (Received, Tick, Wake, Rest, Leave))
