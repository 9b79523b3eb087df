"""The promises of the protocol, looked at after every event that could break them.

    I1  every committed step holds every microbatch exactly once at every stage; and at no moment have two live
        workers of a stage counted the same one
    I2  every contribution was computed forward and backward with the parameters of its step
    I3  all replicas of a stage, and all checkpoints, hold the same parameters, those of a run without faults
    I4  steps are committed once, in order, durable before anybody is told, and applied only then
    I5  nothing of a session that was given up before its stage's round was prepared is in a commit
    I6  a microbatch that is not finished is held by somebody, or somebody will notice
    I7  bytes, credits and leases are within their bounds, and books balance
    I8  the run ends in bounded time once nothing goes wrong any more, and nothing is left behind
    L1-L3  whoever leaves because it was asked to, or is moved, loses nothing: see `leave_checks`

Since re-execution is deterministic, the reference is a function of the step alone: after a rollback the same
parameters come again. I4 and I5 are `history`, I7 is `node_checks`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from brokers.machine import BrokerMachine
from stages.tasks import Applied, Ran, ShareTaken
from stages.worker import WorkerMachine
from zswarm.errors import HANGS, INTERRUPTED, REFUSED
from zswarm.ids import STATE_FILES, Branch, Microbatch, Purpose, Role, Round, Stage, StatePart, Step
from zswarm.ledger import members
from zswarm.limits import MAX_FAILED_WORKERS, MAX_FAILURES, STUCK_HEARTBEATS
from zswarm.machine import Exit, Received, Send
from zswarm.messages import Commit, Job, Key, Prepare, Prepared, Void, Welcome, WorkerHeartbeat
from zswarm.simulation.end_checks import check_books, check_drained
from zswarm.simulation.faults import Fault
from zswarm.simulation.history import History
from zswarm.simulation.leave_checks import LeaveChecks
from zswarm.simulation.lives import Lives
from zswarm.simulation.node_checks import active_keys, check_queue, check_worker, held_keys, most_leases
from zswarm.simulation.nodes import Node
from zswarm.simulation.reference import Reference
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.states import content_of
from zswarm.simulation.violation import Violation, require
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import Append, EvaluationDone, Seal

LEAVING_HEARTBEATS = 2.5
"""How long a trainer may take to leave then, by a clock that may run slow."""
UNHELD_HEARTBEATS = 20.0
"""How long nobody may have an unfinished microbatch while nothing goes wrong."""

Ticket = tuple[Purpose, Step, Microbatch]


def _ticket(key: Key) -> Ticket:
    _, step, purpose, microbatch, _ = key
    return (purpose, step, microbatch)


class Invariants:
    """See the module. Reads the machines, never changes them."""

    def __init__(self, schedule: Schedule, lives: Lives) -> None:
        self.history = History(num_stages=schedule.num_stages)
        self.counters: Counter[str] = Counter()
        self._settings = schedule.settings()
        self.reference = Reference(self._settings, seed=schedule.seed)
        self.is_poisoned = False
        """The run has ended because it had to: everybody fails at some microbatch."""
        self._schedule = schedule
        self._leaves = LeaveChecks(schedule, lives.nodes)
        self._lives = lives
        self._nodes = lives.nodes
        self._num_brokers = schedule.num_stages * schedule.brokers_per_stage + schedule.late_brokers
        self._bounds_bytes: dict[tuple[int, int], int] = {}
        self._num_hedges: Counter[tuple[int, int]] = Counter()
        self._unheld_since_s: dict[tuple[tuple[Branch, Step], Ticket], float] = {}
        fair_s = 0.0 if schedule.weather.is_fair else schedule.weather.fair_from_s
        self._quiet_from_s = max(fair_s, schedule.calm_from_s)

    @property
    def _coordinator(self) -> Coordinator | None:
        machine = self._nodes[0].machine
        return machine if isinstance(machine, Coordinator) else None

    def _workers(self) -> list[tuple[Node, WorkerMachine]]:
        return [(node, node.machine) for node in self._nodes if isinstance(node.machine, WorkerMachine)]

    # -- the commit ----------------------------------------------------------------------------------

    def appended(self, append: Append) -> None:
        """Check a record of the event log: I1 to I5."""
        record = append.record
        self.history.appended(append)
        if record["event"] == "finish":
            self.is_poisoned = record["code"] == 1 and self._is_incurable()
            ends_well = self._may_end_with(record["code"]) or self.is_poisoned
            require(ends_well, "I8", f"the run failed: {record['reason']}")
        if (coordinator := self._coordinator) is not None:
            self._leaves.recorded(record, coordinator)
        if record["event"] == "checkpoint" and not record.get("problem"):
            place = (record["branch"], record["step"])
            require(place in self._lives.disk.checkpoints, "I4", f"{record} is in the log, and not on the disk")
        if record["event"] != "commit":
            return
        step = record["step"]
        for each in record["stages"]:
            self._check_ledgers(step, each)
            self._check_gradient(step, Stage(each["stage"]), Round(each["round"]))
        expected = self.reference.steps[step]
        found = (record["loss"], record["lr"], record["scale"], record["apply"])
        wanted = (expected.loss, expected.lr, expected.scale, expected.apply)
        require(found == wanted, "I3", f"(loss, lr, scale, apply) of step {step} are {found}, without a swarm {wanted}")

    def _check_ledgers(self, step: int, stage: dict[str, Any]) -> None:
        counted = sorted(m for ledger in stage["contributions"].values() for m in ledger)
        require(
            counted == list(range(self._settings.num_microbatches)),
            "I1",
            f"step {step}, stage {stage['stage']}, round {stage['round']}: the ledgers together are {counted}",
        )

    def _check_gradient(self, step: int, stage: Stage, round_: Round) -> None:
        wanted = self.reference.steps[step].contributions[stage]
        held = 0
        for node, _ in self._workers():
            assert node.thread is not None
            found = node.thread.compute.rounds.assembled.get(round_)
            if found is None:
                continue
            held += 1
            counts = [c.microbatch for c in found]
            require(
                counts == [c.microbatch for c in wanted],
                "I1",
                f"step {step}, stage {stage}, round {round_}: the gradient at {node.name} is the sum of {counts}",
            )
            wrong = [c for c, reference in zip(found, wanted, strict=True) if c != reference]
            require(
                not wrong, "I2", f"step {step}, stage {stage}, round {round_} at {node.name}: not of this step: {wrong}"
            )
        may_be_lost = self._schedule.strikes or self.history.left
        require(held or may_be_lost, "I4", f"step {step}, stage {stage}: nobody holds the result of round {round_}")

    def _is_incurable(self) -> bool:
        """Have so many workers failed at a microbatch that the run must end?"""
        coordinator = self._coordinator
        assert coordinator is not None
        return any(
            len(set(failed)) >= min(MAX_FAILED_WORKERS, len(coordinator.roster.of(Role.WORKER, Stage(stage))))
            or len(failed) >= MAX_FAILURES
            for (_, _, stage), failed in self._lives.poisons.failed.items()
        )

    # -- what is said --------------------------------------------------------------------------------

    def sent(self, node: Node, send: Send) -> None:
        """Check what a node says."""
        match send.message:
            case Commit() as message:
                self.history.told(message, node.name)
            case Prepare() as message:
                self.history.opened(message)
            case Void() as message:
                self.history.replayed = True
                self._leaves.sent(message, self._coordinator)
            case Job() as message:
                self._leaves.sent(message, self._coordinator)
            case WorkerHeartbeat() as message if message.ready:
                self._ready(node, message)
            case Welcome() as message:
                self.history.welcomed(message)

    def _ready(self, node: Node, message: WorkerHeartbeat) -> None:
        """Check the parameters that a worker reports."""
        step = message.step
        if step > self._settings.steps:
            raise Violation("I3", f"{node.name} reports step {step}")
        if message.parameter_digest != self.reference.versions[step][message.stage]:
            text = f"{node.name} is ready at step {step}, and has other parameters than a run without faults"
            raise Violation("I3", text)

    def _applied(self, node: Node) -> None:
        """Check the parameters that an optimizer step has led to."""
        assert node.thread is not None
        assert isinstance(node.machine, WorkerMachine)
        compute, (branch, _) = node.thread.compute, node.machine.state.version
        step, before, version = compute.applied[-1]
        require(
            (branch, step) in self.history.commits, "I4", f"{node.name} applied step {step}, which is not committed"
        )
        steps = [each for each, _, _ in compute.applied]
        require(steps == list(range(steps[0], step + 1)), "I4", f"{node.name} applied the steps {steps}")
        stage = node.machine.membership.stage
        wanted = (self.reference.versions[step][stage], self.reference.versions[step + 1][stage])
        require(
            (before, version) == wanted,
            "I3",
            f"{node.name} holds other parameters before or after step {step} than a run without faults",
        )

    def evaluated(self, done: EvaluationDone) -> None:
        """Check the held-out loss."""
        wanted = self.reference.held_out_loss(self._settings, done.step)
        require(done.loss == wanted, "I1", f"the held-out loss at {done.step} is {done.loss}, not {wanted}")

    def sealing(self, seal: Seal) -> None:
        """Check that a checkpoint is whole, and of one step."""
        content = self._lives.disk.unfinished((seal.branch, seal.step))
        self._check_content(content, seal.step)

    def _check_content(self, content: dict[tuple[int, StatePart], bytes], step: Step) -> None:
        layer = 0
        for stage, num_layers in enumerate(self._schedule.split):
            for _ in range(num_layers):
                for part in STATE_FILES:
                    wanted = content_of(self.reference.versions[step][stage], part, layer)
                    if content.get((layer, part)) != wanted:
                        name = f"{part.name} of layer {layer}"
                        raise Violation("I3", f"{name} in the checkpoint of step {step} is not the reference's")
                layer += 1

    # -- every event ---------------------------------------------------------------------------------

    def before_event(self, node: Node, event: object) -> None:
        """Check what a node is about to hear."""
        if type(event) is Received:
            if node.number == 0 and isinstance(event.message, Prepared):
                self.history.prepared(event.message)
        elif type(event) is Applied:
            self._applied(node)

    def after_event(self, node: Node, event: object) -> None:
        """Check the state of the node that handled an event."""
        machine = node.machine
        if isinstance(machine, BrokerMachine):
            if machine.queue is not None:
                # A bound shrinks when producers leave; what was promised under the larger one stays promised.
                life = (node.number, node.life)
                bound_bytes = machine.queue.credits.bound_bytes
                known_bytes = self._bounds_bytes.setdefault(life, bound_bytes)
                if known_bytes > bound_bytes:
                    bound_bytes = known_bytes
                elif known_bytes < bound_bytes:
                    self._bounds_bytes[life] = bound_bytes
                check_queue(node.name, machine.queue, bound_bytes, most=most_leases(machine.membership.stage))
                if (num_hedges := machine.queue.leasing.num_hedges) > self._num_hedges[life]:
                    self.counters["jobs hedged"] += num_hedges - self._num_hedges[life]
                    self._num_hedges[life] = num_hedges
        elif isinstance(machine, WorkerMachine):
            check_worker(node.name, machine, num_brokers=self._num_brokers)
            if isinstance(event, (Ran, ShareTaken)):
                self._check_single(machine)

    def _check_single(self, counter: WorkerMachine) -> None:
        """I1: no two live workers have counted the same microbatch."""
        coordinator = self._coordinator
        if coordinator is None or counter.state.version != coordinator.committer.version:
            return
        live = coordinator.roster.records
        mine = counter.membership
        if mine.session not in live:
            return
        for node, other in self._workers():
            if other is counter or other.membership.stage != mine.stage or other.membership.session not in live:
                continue
            if other.state.version != counter.state.version or not other.membership.is_welcome:
                continue
            if both := list(members(counter.state.ledger & other.state.ledger)):
                who = f"the live sessions {mine.session} and {other.membership.session} ({node.name})"
                raise Violation("I1", f"microbatch {both[0]} (of {both}) is counted by {who}")

    def check_conservation(self, now_s: float) -> None:
        """I6: what has been admitted and is not finished is in the memory of somebody who will act on it.

        Where nobody was given up and nothing was replayed that must be so at any moment. Otherwise what is lost
        is noticed by the coordinator, within a time.
        """
        coordinator = self._coordinator
        if coordinator is None or coordinator.phase in (Phase.GATHERING, Phase.CLOSING):
            return
        schedule, history = self._schedule, self.history
        is_strict = not (schedule.strikes or schedule.poisons or schedule.sync_s or history.left or history.replayed)
        if not is_strict and now_s < self._quiet_from_s:
            return
        held, version = self._held(coordinator), coordinator.committer.version
        unheld = [
            (version, ticket)
            for ticket in coordinator.admission.in_flight
            if ticket not in held and (is_strict or ticket[:2] == (Purpose.TRAIN, version[1]))
        ]
        self._unheld_since_s = {key: self._unheld_since_s.get(key, now_s) for key in unheld}
        patience_s = 0.0 if is_strict else UNHELD_HEARTBEATS * schedule.heartbeat_s
        for (_, (purpose, step, microbatch)), at_s in self._unheld_since_s.items():
            if now_s - at_s >= patience_s:
                what = f"{purpose.name} microbatch {microbatch} of step {step}"
                raise Violation("I6", f"{what} is held by nobody since {at_s:.2f} s")

    def _held(self, coordinator: Coordinator) -> set[Ticket]:
        held = {_ticket(key) for _, key in coordinator.outbox.pending()}
        live = coordinator.roster.records
        for node in self._nodes:
            machine = node.machine if node.exit is None else None
            if isinstance(machine, BrokerMachine):
                held.update(map(_ticket, active_keys(machine)))
            elif isinstance(machine, WorkerMachine):
                held.update(map(_ticket, held_keys(machine)))
                if machine.membership.stage == 0 and machine.membership.session in live:
                    step = machine.state.step
                    held.update((Purpose.TRAIN, step, m) for m in members(machine.state.ledger))
        return held

    # -- the end -------------------------------------------------------------------------------------

    def exited(self, node: Node, command: Exit, now: float) -> None:
        """Check why a process ends."""
        over = self.history.finish is not None
        ends_well = (
            self._may_end_with(command.code)
            or (command.code == REFUSED and over)
            or (command.code == HANGS and self._hangs(node, now))
            or (self.is_poisoned and command.code == 1)
        )
        require(ends_well, "I8", f"{node.name} ends with {command.code}: {command.text}")

    def _hangs(self, node: Node, now: float) -> bool:
        """Has its thread answered nothing for as long as everybody is given, by the clock of its node?

        Not if the machine says so, but if it is true: a healthy one that is unlucky for long may be taken for one that hangs.
        """
        given_s = STUCK_HEARTBEATS * self._settings.heartbeat_s
        thread = node.thread
        return thread is not None and thread.busy and now - thread.silent_since_s >= given_s - 1e-6

    def _may_end_with(self, code: int) -> bool:
        return code == 0 or (code == INTERRUPTED and self._schedule.interrupted_at_s is not None)

    @property
    def was_interrupted(self) -> bool:
        """Has the run ended because the user asked for it?"""
        return self.history.finish is not None and self.history.finish["code"] == INTERRUPTED

    def at_interruption(self, now_s: float) -> None:
        """Check that the trainer has left soon after it was asked to, if nothing kept it."""
        asked_at_s = self._schedule.interrupted_at_s
        assert asked_at_s is not None
        took_s = now_s - asked_at_s
        is_free = not self._schedule.faults & {Fault.FREEZE, Fault.KILL_TRAINER, Fault.BLACKOUT}
        limit_s = LEAVING_HEARTBEATS * self._settings.heartbeat_s
        require(took_s <= limit_s or not is_free, "I8", f"the trainer took {took_s} s to leave")

    def is_drained(self) -> bool:
        """Does nobody hold anything any more?"""
        try:
            check_drained(self._nodes, steps=self._settings.steps)
        except Violation:
            return False
        return True

    def at_end(self, *, drained: bool) -> None:
        """Check that all is done and, if there was time for it, that nothing is left."""
        settings, step = self._settings, self.history.step
        require(step == settings.steps, "I8", f"{step} of {settings.steps} steps were done")
        final = [content for (_, of), content in self._lives.disk.checkpoints.items() if of == settings.steps]
        require(final, "I8", "the run has ended without a checkpoint of its last step")
        self._check_content(final[-1], Step(settings.steps))
        if drained:
            check_drained(self._nodes, steps=settings.steps)
            coordinator = self._coordinator
            if not self.history.left and coordinator is not None:
                # Whoever was given up and came back has forgotten what it had been promised.
                check_books(self._nodes, coordinator)
