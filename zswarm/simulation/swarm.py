"""The simulated swarm: real machines, virtual time, a hostile network, symbols for tensors.

One event at a time is taken from the queue and handed to its node; the commands that come back are
carried out at once. Nothing else happens in the world, and everything random comes from the seed, so a
schedule always takes the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from stages.tasks import Task
from zswarm import limits
from zswarm.errors import HANGS
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.messages import Stop
from zswarm.patience import patience
from zswarm.simulation.census import Census
from zswarm.simulation.clock import EventQueue
from zswarm.simulation.faults import Strike
from zswarm.simulation.invariants import Invariants
from zswarm.simulation.lives import Item, Lives, is_from_thread
from zswarm.simulation.network import Network
from zswarm.simulation.nodes import NOBODY, WAKE, FromThread, Node, Rest, TaskEnded, Wake
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.strikes import Strikes
from zswarm.simulation.symbols import Activation, load
from zswarm.simulation.trace import Trace
from zswarm.simulation.violation import Violation, require
from zswarm.simulation.wire_check import check_wire
from zswarm.slots import maker
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import (
    Append,
    Behind,
    CaughtUp,
    EvaluationDone,
    Forsake,
    Interrupted,
    Read,
    Sample,
    Sampled,
    Seal,
    Sealed,
    StepDone,
    Store,
    Unreachable,
)

MOST_IDLE_TICKS = 100
MOST_EVENTS = 100_000
"""Far more than any schedule needs: two machines that answer each other without end are as bad as silence."""
CONSERVATION_ONE_IN = 32
"""Looking for lost microbatches takes long: done after one of so many events."""
SAMPLE_SHARE = 10
"""Samples are so many times smaller than the gradient that comes back to stage 0."""
DRAIN_S = 3.5
"""How long the swarm has to become empty after the trainer has gone and the last straggler has come; longer if what was
lost several times before is yet to be sent again."""
RESTART_S = 1.0
"""How soon a process that has failed is started again."""
UNREACHABLE_S = 0.02
"""How soon a sender learns that the connection behind a link is gone (measured)."""

make_received = maker(Received)


class Swarm:
    """See the module. `run` raises Violation where a promise is broken."""

    def __init__(self, schedule: Schedule, trace: Trace) -> None:
        self.schedule = schedule
        self.trace = trace
        self.census = Census()
        self.num_events = 0
        self._queue: EventQueue[Item] = EventQueue()
        self.network = Network(schedule.weather, Random(f"network {schedule.seed}"))
        self.lives = Lives(schedule, self._queue, self.network)
        self.nodes = self.lives.nodes
        self.disk = self.lives.disk
        self.strikes = Strikes(schedule, self.lives, self.network, self._later)
        self._ends_at_s = schedule.time_limit_s()
        self._drains_until_s: float | None = None
        self._drained_by_s = 0.0
        """When nobody may hold anything any more, however often it was lost."""
        if schedule.interrupted_at_s is not None:
            self._later(schedule.interrupted_at_s, self._interrupt)
        self.invariants = Invariants(schedule, self.lives)

    def _later(self, time_s: float, action: Callable[[], None]) -> None:
        """Let something happen in the world at a time."""
        self._queue.put(time_s, (None, 0, action))

    @property
    def coordinator(self) -> Coordinator:
        """The trainer's machine, which is up."""
        machine = self._trainer.machine
        assert isinstance(machine, Coordinator)
        return machine

    @property
    def _trainer(self) -> Node:
        return self.nodes[0]

    @property
    def now_s(self) -> float:
        """True time, which no machine knows."""
        return self._queue.now_s

    # -- running it ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end of the training and, where the schedule says so, until the swarm is empty."""
        pop = self._queue.pop
        while not self._is_over():
            node, life, event = pop()
            if node is None:
                event()
            elif node.life == life and node.exit is None:
                self._happen(node, event)
                if self.num_events % CONSERVATION_ONE_IN == 0:
                    self.invariants.check_conservation(self.now_s)
        if self.invariants.was_interrupted:
            self.invariants.at_interruption(self.now_s)
        elif not self.invariants.is_poisoned:
            self.invariants.at_end(drained=self._drains_until_s is not None)

    def _is_over(self) -> bool:
        now_s, trainer = self._queue.now_s, self.nodes[0]
        if trainer.exit is not None or (trainer.machine is NOBODY and self.disk.is_finished):
            return self._drains_until_s is None or (now_s >= self._drains_until_s and not self._drains_on())
        if now_s > self._ends_at_s or self.num_events > MOST_EVENTS:
            step = self.invariants.history.step
            steps = self.schedule.steps
            raise Violation(
                "I8", f"after {now_s:.0f} s and {self.num_events} events the run is at step {step} of {steps}"
            )
        return False

    def _drains_on(self) -> bool:
        """Is there something to wait for? Looks again after a while."""
        if self.now_s >= self._drained_by_s or self.invariants.is_drained():
            return False
        self._drains_until_s = self.now_s + DRAIN_S
        return True

    def _interrupt(self) -> None:
        if self._trainer.is_up:
            self._queue.put(self.now_s, (self._trainer, self._trainer.life, Interrupted()))

    def _happen(self, node: Node, event: Any) -> None:
        now_s = self._queue.now_s
        if node.frozen_at_s is not None:
            node.held.append((now_s, event))
        elif type(event) is Received:
            # What comes most often is looked for first.
            if not (self.strikes.armed and self.strikes.on_event(node, event, now_s)):
                self._handle(node, event, node.clock.local_s(now_s))
        elif isinstance(event, Wake):
            self._wake(node)
        elif node.thread is not None and node.thread.hangs and is_from_thread(event):
            return
        elif isinstance(event, TaskEnded):
            assert node.thread is not None
            self._put_from_thread(node, node.thread.ended(node.clock.local_s(now_s)))
        elif isinstance(event, Rest):
            self._go_on(node, event)
        else:
            self._handle(node, event, node.clock.local_s(now_s))

    def _wake(self, node: Node) -> None:
        now_s = self._queue.now_s
        if node.wake_at_s != now_s:
            return
        node.wake_at_s = None
        deadline_s = node.machine.next_deadline_s()
        if deadline_s is None or node.clock.true_s(deadline_s) > now_s:
            self._schedule_wake(node)
            return
        self._handle(node, Tick(), node.clock.local_at_least_s(now_s, deadline_s))

    def _handle(self, node: Node, event: Any, local_s: float) -> None:
        self.num_events += 1
        life, invariants = node.life, self.invariants
        self.trace.record_event(self._queue.now_s, node.number, node.name, event)
        if type(event) is Sealed:
            self.disk.finish_sealing(event)
        invariants.before_event(node, event)
        try:
            commands = node.machine.handle(event, local_s)
        except Violation:
            raise
        except Exception as error:
            raise Violation("crash", f"{node.name} raised {type(error).__name__}: {error}") from error
        struck = self.strikes.on_commands(node, commands) if self.strikes.armed else None
        if struck is None and self.schedule.sync_s and node.number == 0:
            struck = self.strikes.on_record(commands)
        samples = self._obey(node, commands if struck is None else commands[: struck[0]])
        if struck is not None:
            self._strike_amid(node, commands[struck[0] :], struck[1])
        if node.life != life:
            return
        invariants.after_event(node, event)
        if samples:
            self._sample(node, samples)
        if not commands and type(event) is Tick:
            self._idle(node)
        self._schedule_wake(node)

    def _idle(self, node: Node) -> None:
        """A tick that led to nothing is no harm, many of them at one moment are."""
        node.num_idle_ticks = node.num_idle_ticks + 1 if node.idle_at_s == self.now_s else 0
        node.idle_at_s = self.now_s
        if node.num_idle_ticks > MOST_IDLE_TICKS:
            raise Violation("I8", f"{node.name} asks for tick after tick and does nothing")

    def _sample(self, node: Node, samples: list[Sample]) -> None:
        life = node.life
        for sample in samples:
            if node.life != life:
                return
            if node.frozen_at_s is not None:
                node.held.append((self.now_s, self._sampled(sample)))
            else:
                self._happen(node, self._sampled(sample))

    def _go_on(self, node: Node, rest: Rest) -> None:
        """A process that was frozen between two commands does the others."""
        samples = self._obey(node, rest.commands)
        self._sample(node, samples)
        self._schedule_wake(node)

    def _strike_amid(self, node: Node, rest: list[Any], strike: Strike) -> None:
        """A process is killed or frozen between two of its commands."""
        self.strikes.hit(strike, node, self.now_s)
        if node.frozen_at_s is not None and rest:
            node.held.append((self.now_s, Rest(commands=rest)))

    def _schedule_wake(self, node: Node) -> None:
        if node.exit is not None:
            return
        deadline_s = node.machine.next_deadline_s()
        if deadline_s is None or deadline_s == float("inf"):
            return
        wake_at_s = node.clock.true_s(deadline_s)
        now_s = self._queue.now_s
        wake_at_s = max(wake_at_s, now_s)
        if node.wake_at_s is None or wake_at_s < node.wake_at_s:
            node.wake_at_s = wake_at_s
            self._queue.put(wake_at_s, (node, node.life, WAKE))

    # -- commands ------------------------------------------------------------------------------------

    def _obey(self, node: Node, commands: list[Any]) -> list[Sample]:
        """Carry out a node's commands, but for the samples that it wants, which are returned."""
        samples = []
        is_kept = self.trace.is_kept
        for command in commands:
            if is_kept:
                self.trace.record_command(self._queue.now_s, node.name, command)
            if type(command) is Send:
                self._send(node, command)
            elif isinstance(command, Sample):
                samples.append(command)
            else:
                self._carry_out(node, command)
        return samples

    def _carry_out(self, node: Node, command: Any) -> None:
        match command:
            case Append():
                self.disk.append(command.record, durable=command.durable)
                self.census.count_record(command.record)
                self.invariants.appended(command)
            case Store():
                problem = self.disk.store(command)
                require(not problem, "I3", problem)
                self._fall_behind(node)
            case Seal():
                self.invariants.sealing(command)
                in_s, sealed = self.disk.seal(command)
                self._queue.put(self.now_s + in_s, (node, node.life, sealed))
            case Forsake():
                self.disk.forsake((command.branch, command.step))
            case Read():
                in_s, was_read = self.disk.read(command)
                self._queue.put(self.now_s + in_s, (node, node.life, was_read))
            case EvaluationDone():
                self.invariants.evaluated(command)
            case StepDone():
                self.census.counters["steps"] += 1
            case Exit():
                self._exit(node, command)
            case _:
                self._submit(node, command)

    def _send(self, node: Node, send: Send) -> None:
        message, frames, number = send.message, send.frames, node.number
        now_s, put = self._queue.now_s, self._queue.put
        self.census.count_send(number, send)
        self.invariants.sent(node, send)
        if self.census.num_messages % self.schedule.codec_one_in == 0:
            check_wire(message, frames)
        if self.schedule.drains and isinstance(message, Stop):
            return
        for time_s, receiver_number, peer in self.network.send(number, send.peer, now_s, has_payload=bool(frames)):
            receiver = self.nodes[receiver_number]
            put(time_s, (receiver, receiver.life, make_received(peer=peer, message=message, frames=frames)))
        if number == 0 and self.network.is_gone(send.peer):
            put(now_s + UNREACHABLE_S, (node, node.life, Unreachable(peer=send.peer)))

    def _fall_behind(self, node: Node) -> None:
        """The disk may take its time now: the coordinator hears that, and that it is over."""
        for_s = self.disk.behind_s()
        if for_s is not None:
            self.census.counters["disk behind"] += 1
            self._queue.put(self.now_s, (node, node.life, Behind()))
            self._queue.put(self.now_s + for_s, (node, node.life, CaughtUp()))

    def _sampled(self, sample: Sample) -> Sampled:
        symbol = Activation(sample.purpose, sample.step, sample.microbatch, ())
        return Sampled(
            purpose=sample.purpose,
            step=sample.step,
            microbatch=sample.microbatch,
            load=load(symbol, self.schedule.pace.unit_bytes // SAMPLE_SHARE),
        )

    def _exit(self, node: Node, command: Exit) -> None:
        self.invariants.exited(node, command, node.clock.local_s(self.now_s))
        if command.code == HANGS:
            # Whoever looks after the processes starts it again.
            self.lives.kill(node)
            self._later(self.now_s + RESTART_S, partial(self.lives.start_again, node))
            return
        node.exit = command
        self.network.detach(node.number)
        if node is self._trainer and self.schedule.drains and command.code == 0:
            self.network.make_fair(self.now_s)
            self._drains_until_s = self.now_s + DRAIN_S + self.network.latest_straggler_s
            longest_wait_s = self.schedule.heartbeat_s * patience(limits.RESEND_HEARTBEATS, limits.MOST_DOUBLINGS + 1)
            self._drained_by_s = self._drains_until_s + longest_wait_s

    # -- compute threads -----------------------------------------------------------------------------

    def _submit(self, node: Node, task: Task) -> None:
        thread = node.thread
        assert thread is not None, f"{node.name} has no compute thread for {task}"
        self._put_from_thread(node, thread.submit(task, node.clock.local_s(self.now_s)))

    def _put_from_thread(self, node: Node, outcomes: list[FromThread]) -> None:
        now_s = self.now_s
        for after_s, outcome in outcomes:
            self._queue.put(now_s + after_s, (node, node.life, outcome))

    @property
    def counters(self) -> Counter[str]:
        """How often what happened."""
        parts = (self.census, self.network, self.lives, self.strikes, self.invariants)
        own = Counter({"messages": self.census.num_messages, "unsynced records lost": self.disk.num_lost})
        own["failures of poisoned microbatches"] = self.lives.poisons.num_failures
        return sum((part.counters for part in parts), +own)
