"""The simulated swarm: real machines, virtual time, a hostile network, symbols for tensors.

One event at a time is taken from the queue and handed to its node; the commands that come back are
carried out at once. Nothing else happens in the world, and everything random comes from the seed, so a
schedule always takes the same way.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from brokers.machine import BrokerMachine
from stages.tasks import Applied, Outcome, Task
from stages.worker import WorkerMachine
from zswarm.ids import Address, NodeId
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.messages import Stop
from zswarm.simulation.census import Census
from zswarm.simulation.clock import EventQueue, NodeClock
from zswarm.simulation.invariants import INTERRUPTED, Invariants
from zswarm.simulation.network import Network
from zswarm.simulation.nodes import TASK_ENDED, WAKE, AnyMachine, ComputeThread, Node, TaskEnded, Wake
from zswarm.simulation.schedule import Fault, Schedule
from zswarm.simulation.symbolic import Pace, SymbolicCompute
from zswarm.simulation.symbols import Activation, load
from zswarm.simulation.trace import Trace
from zswarm.simulation.violation import Violation
from zswarm.simulation.wire_check import check_wire
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import Append, EvaluationDone, Interrupted, Sample, Sampled, StepDone, Store

COORDINATOR = Address("sim://trainer")
MOST_IDLE_TICKS = 100
MOST_EVENTS = 100_000
"""Far more than any schedule needs: two machines that answer each other without end are as bad as silence."""
CONSERVATION_ONE_IN = 32
"""Looking for lost microbatches takes long: done after one of so many events."""
DRAIN_S = 3.5
"""How long the swarm has to become empty after the trainer has gone and the last straggler has come."""

Item = tuple[Node, Any]


class Swarm:
    """See the module. `run` raises Violation where a promise is broken."""

    def __init__(self, schedule: Schedule, trace: Trace) -> None:
        self.schedule = schedule
        self.trace = trace
        self.census = Census()
        self.records: list[dict[str, Any]] = []
        """The event log of the run."""
        self.num_events = 0
        self._queue: EventQueue[Item] = EventQueue()
        self._random = Random(f"swarm {schedule.seed}")
        self.network = Network(schedule.weather, Random(f"network {schedule.seed}"))
        self.nodes: list[Node] = []
        self._ends_at_s = schedule.time_limit_s()
        self._drains_until_s: float | None = None
        self._settings = schedule.settings()
        self.coordinator = Coordinator(self._settings, random=Random(f"trainer {schedule.seed}").random)
        trainer = self._add("trainer", self.coordinator, (COORDINATOR,), starts_at_s=0.0)
        self._trainer = trainer
        for index in range(schedule.num_stages * schedule.brokers_per_stage + schedule.late_brokers):
            self._add_broker(index)
        for index in range(schedule.num_stages * schedule.workers_per_stage + schedule.late_workers):
            self._add_worker(index)
        if schedule.interrupted_at_s is not None:
            self._queue.put(schedule.interrupted_at_s, (trainer, Interrupted()))
        self.invariants = Invariants(schedule, self._settings, self.coordinator, self.nodes)

    # -- making the swarm ----------------------------------------------------------------------------

    def _add(self, name: str, machine: AnyMachine, addresses: tuple[Address, ...], *, starts_at_s: float) -> Node:
        crooked = Fault.CROOKED_CLOCKS in self.schedule.faults
        clock = NodeClock(
            offset_s=self._random.uniform(-1e6, 1e6) if crooked else 0.0,
            rate=self._random.uniform(0.8, 1.2) if crooked else 1.0,
        )
        node = Node(number=len(self.nodes), name=name, machine=machine, clock=clock)
        self.nodes.append(node)
        for address in addresses:
            self.network.attach(node.number, address)
        self._queue.put(starts_at_s, (node, Tick()))
        return node

    def _start_s(self, index: int, expected: int, *, expected_by_s: float) -> float:
        return self._random.uniform(0.0, expected_by_s if index < expected else 6.0)

    def _add_broker(self, index: int) -> None:
        schedule = self.schedule
        name = f"broker-{index}"
        addresses = (Address(f"sim://{name}/control"), Address(f"sim://{name}/work"))
        machine = BrokerMachine(
            node=NodeId(name),
            boot_nonce=index + 1,
            addresses=addresses,
            coordinator=COORDINATOR,
            capacity_bytes=schedule.capacity_bytes,
        )
        starts_at_s = self._start_s(
            index,
            schedule.num_stages * schedule.brokers_per_stage,
            expected_by_s=3.0 if Fault.LATE_PROCESSES in schedule.faults else 1.0,
        )
        self._add(name, machine, addresses, starts_at_s=starts_at_s)

    def _add_worker(self, index: int) -> None:
        schedule = self.schedule
        name = f"worker-{index}"
        addresses = (Address(f"sim://{name}/peer"),)
        machine = WorkerMachine(
            node=NodeId(name),
            boot_nonce=index + 1,
            addresses=addresses,
            coordinator=COORDINATOR,
            random=Random(f"{name} {schedule.seed}").random,
        )
        starts_at_s = self._start_s(index, schedule.num_stages * schedule.workers_per_stage, expected_by_s=1.0)
        node = self._add(name, machine, addresses, starts_at_s=starts_at_s)
        pace = schedule.pace
        slower = schedule.slowness ** self._random.random()
        own = Pace(
            forward_s=pace.forward_s * slower,
            jitter=pace.jitter,
            keep=pace.keep,
            evict=pace.evict,
            unit_bytes=pace.unit_bytes,
        )
        compute = SymbolicCompute(own, Random(f"compute {name} {schedule.seed}"), seed=schedule.seed)
        node.thread = ComputeThread(compute)

    # -- running it ----------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """True time, which no machine knows."""
        return self._queue.now_s

    def run(self) -> None:
        """Run to the end of the training and, where the schedule says so, until the swarm is empty."""
        while not self._is_over():
            node, event = self._queue.pop()
            if node.exit is None:
                self._happen(node, event)
                if self.num_events % CONSERVATION_ONE_IN == 0:
                    self.invariants.check_conservation()
        if self._trainer.exit is not None and self._trainer.exit.code == INTERRUPTED:
            self.invariants.at_interruption(self.now_s)
        else:
            self.invariants.at_end(drained=self._drains_until_s is not None)

    def _is_over(self) -> bool:
        now_s = self._queue.now_s
        if self._trainer.exit is not None:
            return self._drains_until_s is None or now_s >= self._drains_until_s
        if now_s > self._ends_at_s or self.num_events > MOST_EVENTS:
            step = self.coordinator.committer.step
            raise Violation(
                "I8",
                f"after {now_s:.0f} s and {self.num_events} events the run is at step {step} of {self._settings.steps}",
            )
        return False

    def _happen(self, node: Node, event: Any) -> None:
        now_s = self._queue.now_s
        if isinstance(event, Wake):
            if node.wake_at_s != now_s:
                return
            node.wake_at_s = None
            deadline_s = node.machine.next_deadline_s()
            if deadline_s is None or node.clock.true_s(deadline_s) > now_s:
                self._schedule_wake(node)
                return
            self._handle(node, Tick(), node.clock.local_at_least_s(now_s, deadline_s))
        elif isinstance(event, TaskEnded):
            self._task_ended(node)
        else:
            self._handle(node, event, node.clock.local_s(now_s))

    def _handle(self, node: Node, event: Any, local_s: float) -> None:
        self.num_events += 1
        self.trace.record_event(self._queue.now_s, node.number, node.name, event)
        if isinstance(event, Applied):
            self.invariants.applied(node)
        try:
            commands = node.machine.handle(event, local_s)
        except Violation:
            raise
        except Exception as error:
            raise Violation("crash", f"{node.name} raised {type(error).__name__}: {error}") from error
        samples = []
        for command in commands:
            self.trace.record_command(self._queue.now_s, node.name, command)
            if type(command) is Send:
                self._send(node, command)
            elif isinstance(command, Sample):
                samples.append(command)
            else:
                self._carry_out(node, command)
        self.invariants.after_event(node)
        for sample in samples:
            self._handle(node, self._sampled(sample), local_s)
        node.num_idle_ticks = 0 if commands or not isinstance(event, Tick) else node.num_idle_ticks + 1
        if node.num_idle_ticks > MOST_IDLE_TICKS:
            raise Violation("I8", f"{node.name} asks for tick after tick and does nothing")
        self._schedule_wake(node)

    def _schedule_wake(self, node: Node) -> None:
        deadline_s = node.machine.next_deadline_s()
        if deadline_s is None or node.exit is not None or deadline_s == float("inf"):
            return
        wake_at_s = node.clock.true_s(deadline_s)
        wake_at_s = max(wake_at_s, self._queue.now_s)
        if node.wake_at_s is None or wake_at_s < node.wake_at_s:
            node.wake_at_s = wake_at_s
            self._queue.put(wake_at_s, (node, WAKE))

    # -- commands ------------------------------------------------------------------------------------

    def _carry_out(self, node: Node, command: Any) -> None:
        match command:
            case Append():
                self.records.append(command.record)
                self.census.count_record(command.record)
                self.invariants.appended(command)
            case Store():
                self.invariants.stored(command)
            case EvaluationDone():
                self.invariants.evaluated(command)
            case StepDone():
                self.census.counters["steps"] += 1
            case Exit():
                self._exit(node, command)
            case _:
                self._submit(node, command)

    def _send(self, node: Node, send: Send) -> None:
        message = send.message
        self.census.count_send(node.number, send)
        self.invariants.sent(node, send)
        if self.census.num_messages % self.schedule.codec_one_in == 0:
            check_wire(message, send.frames)
        if self.schedule.drains and isinstance(message, Stop):
            return
        for delivery in self.network.send(node.number, send.peer, self.now_s, has_payload=bool(send.frames)):
            event = Received(peer=delivery.peer, message=message, frames=send.frames)
            self._queue.put(delivery.time_s, (self.nodes[delivery.receiver], event))

    def _sampled(self, sample: Sample) -> Sampled:
        symbol = Activation(sample.purpose, sample.step, sample.microbatch, ())
        return Sampled(
            purpose=sample.purpose,
            step=sample.step,
            microbatch=sample.microbatch,
            load=load(symbol, self.schedule.pace.unit_bytes),
        )

    def _exit(self, node: Node, command: Exit) -> None:
        node.exit = command
        self.invariants.exited(node, command)
        if node is self._trainer and self.schedule.drains and command.code == 0:
            self.network.make_fair(self.now_s)
            self._drains_until_s = self.now_s + DRAIN_S + self.network.latest_straggler_s

    # -- compute threads -----------------------------------------------------------------------------

    def _submit(self, node: Node, task: Task) -> None:
        thread = node.thread
        assert thread is not None, f"{node.name} has no compute thread for {task}"
        thread.waiting.append(task)
        if not thread.busy:
            self._start_task(node, thread)

    def _start_task(self, node: Node, thread: ComputeThread) -> None:
        thread.busy = True
        now_s = self.now_s
        outcomes: list[tuple[float, Outcome]] = thread.compute.start(thread.waiting.popleft())
        for after_s, outcome in outcomes:
            self._queue.put(now_s + after_s, (node, outcome))
        self._queue.put(now_s + (outcomes[-1][0] if outcomes else 0.0), (node, TASK_ENDED))

    def _task_ended(self, node: Node) -> None:
        thread = node.thread
        assert thread is not None
        thread.busy = False
        if thread.waiting:
            self._start_task(node, thread)

    @property
    def counters(self) -> Counter[str]:
        """How often what happened."""
        return self.census.counters + self.network.counters + Counter(messages=self.census.num_messages)
