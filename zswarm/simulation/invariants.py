"""The promises of the protocol, looked at after every event that could break them.

    I1  every committed step holds every microbatch exactly once at every stage
    I2  every contribution was computed forward and backward with the parameters of its step
    I3  all replicas of a stage hold the same parameters, those of a run without a swarm
    I4  steps are committed once, in order, durable before anybody is told, and applied only then
    I6  a microbatch that is not finished is held by somebody
    I7  bytes, credits and leases are within their bounds, and books balance
    I8  the run ends in bounded time, and nothing is left behind

I5 (a fenced session contributes nothing) has no subject as long as no session is fenced.
"""

from __future__ import annotations

from typing import Any

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm.ids import TRAINER, Direction, Microbatch, Purpose, Round, Stage, Step
from zswarm.ledger import members
from zswarm.machine import REFUSED, Exit, Send
from zswarm.messages import Commit, Key
from zswarm.simulation.node_checks import active_keys, check_empty_queue, check_queue, check_worker, held_keys
from zswarm.simulation.nodes import Node
from zswarm.simulation.reference import Reference
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.symbolic import STATE_BYTES
from zswarm.simulation.violation import require
from zswarm.trainer.coordinator import Coordinator, Phase
from zswarm.trainer.settings import Append, CoordinatorSettings, EvaluationDone, Store

INTERRUPTED = 130
"""Exit code of a trainer whose user has asked for the end."""
LEAVING_HEARTBEATS = 2.5
"""How long a trainer may take to leave then, by a clock that may run slow."""


def _ticket(key: Key) -> tuple[Purpose, Step, Microbatch]:
    _, step, purpose, microbatch, _ = key
    return (purpose, step, microbatch)


class Invariants:
    """See the module. Reads the machines, never changes them."""

    def __init__(
        self, schedule: Schedule, settings: CoordinatorSettings, coordinator: Coordinator, nodes: list[Node]
    ) -> None:
        self.reference = Reference(settings, seed=schedule.seed)
        self._schedule = schedule
        self._settings = settings
        self._coordinator = coordinator
        self._nodes = nodes
        self._workers = [node for node in nodes if isinstance(node.machine, WorkerMachine)]
        self._rounds: list[dict[Stage, Round]] = []
        """Of every step in the log, the round that was committed per stage."""
        self._is_finished = False
        self._stored: dict[int, bytes] = {}
        self._bounds_bytes: dict[int, int] = {}

    # -- the commit ----------------------------------------------------------------------------------

    def appended(self, append: Append) -> None:
        """Check a record of the event log: I1 to I4."""
        record = append.record
        require(not self._is_finished, "I4", f"{record} comes after the end of the log")
        if record["event"] == "finish":
            self._is_finished = True
            require(self._may_end_with(record["code"]), "I8", f"the run failed: {record['reason']}")
        if record["event"] != "commit":
            return
        step = record["step"]
        require(append.durable, "I4", f"the commit of step {step} is not durable")
        require(step == len(self._rounds), "I4", f"step {step} is committed after {len(self._rounds)} steps")
        self._rounds.append({Stage(each["stage"]): Round(each["round"]) for each in record["stages"]})
        require(len(self._rounds[-1]) == self._settings.num_stages, "I1", f"step {step} lacks a stage")
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
        for node in self._workers:
            assert node.thread is not None
            found = node.thread.compute.assembled.get(round_)
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
        require(held, "I4", f"step {step}, stage {stage}: nobody holds the result of round {round_}")

    def sent(self, node: Node, send: Send) -> None:
        """Check that a commit is told only after it has been decided."""
        message = send.message
        if isinstance(message, Commit):
            require(
                message.step < len(self._rounds) and message.round in self._rounds[message.step].values(),
                "I4",
                f"{node.name} tells of the commit of step {message.step}, round {message.round}, before it is durable",
            )

    def applied(self, node: Node) -> None:
        """Check the parameters that an optimizer step has led to."""
        assert node.thread is not None
        assert isinstance(node.machine, WorkerMachine)
        compute = node.thread.compute
        step, version = compute.applied[-1]
        require(step < len(self._rounds), "I4", f"{node.name} applied step {step}, which is not committed")
        require(
            [each for each, _ in compute.applied] == list(range(compute.applied[0][0], step + 1)),
            "I4",
            f"{node.name} applied the steps {[each for each, _ in compute.applied]}",
        )
        wanted = self.reference.versions[step + 1][node.machine.membership.stage]
        require(version == wanted, "I3", f"{node.name} holds other parameters than a run without a swarm after {step}")

    def evaluated(self, done: EvaluationDone) -> None:
        """Check the held-out loss."""
        wanted = self.reference.held_out_loss(self._settings, done.step)
        require(done.loss == wanted, "I1", f"the held-out loss at {done.step} is {done.loss}, not {wanted}")

    def stored(self, store: Store) -> None:
        """Collect the final parameters."""
        (content,) = store.load.frames
        before = self._stored.get(store.layer, b"")
        require(len(before) == store.offset_bytes, "I3", f"layer {store.layer} is stored with a gap or twice")
        self._stored[store.layer] = before + content

    # -- every event ---------------------------------------------------------------------------------

    def after_event(self, node: Node) -> None:
        """Check the state of the node that handled an event."""
        machine = node.machine
        if isinstance(machine, BrokerMachine):
            if machine.queue is not None:
                # A bound shrinks when producers leave; what was promised under the larger one stays promised.
                bound_bytes = max(self._bounds_bytes.get(node.number, 0), machine.queue.credits.bound_bytes)
                self._bounds_bytes[node.number] = bound_bytes
                check_queue(node.name, machine.queue, bound_bytes)
        elif isinstance(machine, WorkerMachine):
            check_worker(node.name, machine)

    def check_conservation(self) -> None:
        """I6: what has been admitted and is not finished is in the memory of somebody who will act on it."""
        coordinator = self._coordinator
        if coordinator.phase is Phase.CLOSING:
            return
        held = {_ticket(key) for _, key in coordinator.outbox.pending()}
        for node in self._nodes:
            machine = node.machine
            if isinstance(machine, BrokerMachine):
                held.update(map(_ticket, active_keys(machine)))
            elif isinstance(machine, WorkerMachine):
                held.update(map(_ticket, held_keys(machine)))
                if machine.membership.stage == 0:
                    step = machine.state.step
                    held.update((Purpose.TRAIN, step, m) for m in members(machine.state.ledger))
        for ticket in coordinator.admission.in_flight:
            purpose, step, microbatch = ticket
            require(ticket in held, "I6", f"{purpose.name} microbatch {microbatch} of step {step} is held by nobody")

    # -- the end -------------------------------------------------------------------------------------

    def exited(self, node: Node, command: Exit) -> None:
        """Check why a process ends."""
        schedule = self._schedule
        may_be_late = schedule.late_brokers or schedule.late_workers or schedule.interrupted_at_s is not None
        late = command.code == REFUSED and may_be_late
        ends_well = self._may_end_with(command.code) or late
        require(ends_well, "I8", f"{node.name} ends with {command.code}: {command.text}")

    def _may_end_with(self, code: int) -> bool:
        return code == 0 or (code == INTERRUPTED and self._schedule.interrupted_at_s is not None)

    def at_interruption(self, now_s: float) -> None:
        """Check that the trainer has left soon after it was asked to."""
        asked_at_s = self._schedule.interrupted_at_s
        assert asked_at_s is not None
        took_s = now_s - asked_at_s
        require(
            took_s <= LEAVING_HEARTBEATS * self._settings.heartbeat_s, "I8", f"the trainer took {took_s} s to leave"
        )

    def at_end(self, *, drained: bool) -> None:
        """Check that all is done and, if there was time for it, that nothing is left."""
        settings = self._settings
        require(len(self._rounds) == settings.steps, "I8", f"{len(self._rounds)} of {settings.steps} steps were done")
        for stage, version in enumerate(self.reference.versions[-1]):
            wanted = (version.to_bytes(8, "little") * STATE_BYTES)[:STATE_BYTES]
            require(self._stored.get(stage) == wanted, "I3", f"the model's layer {stage} is not the reference's")
        if drained:
            for node in self._nodes:
                if isinstance(node.machine, BrokerMachine) and node.machine.queue is not None:
                    check_empty_queue(node.name, node.machine.queue)
                elif isinstance(node.machine, WorkerMachine) and node.exit is None:
                    self._check_idle(node, node.machine)
            self._check_books()

    def _check_idle(self, node: Node, machine: WorkerMachine) -> None:
        assert node.thread is not None
        if not machine.is_built:
            return
        require(not node.thread.busy and not node.thread.waiting, "I8", f"{node.name} still computes")
        if machine.state.step < self._settings.steps:
            # The trainer leaves with the model as soon as one worker of each stage has it: the last Commit
            # may not have come to the others, who keep what they have of that step.
            require(machine.state.step == self._settings.steps - 1, "I8", f"{node.name} is at {machine.state.step}")
            return
        require(not machine.jobs.held, "I8", f"{node.name} still holds {list(machine.jobs.held)}")
        require(not node.thread.compute.kept, "I8", f"{node.name} keeps {list(node.thread.compute.kept)}")
        assert machine.outbox is not None
        left = [key for key in machine.outbox.pending() if key[0] is not Direction.LOSS]
        require(not left, "I8", f"{node.name} still wants to send {left}")

    def _check_books(self) -> None:
        """What a producer says that it sent is what the broker says that it received: no credit has leaked."""
        queues = {
            node.machine.membership.session: node.machine.queue
            for node in self._nodes
            if isinstance(node.machine, BrokerMachine)
        }
        producers = [
            (node.machine.membership.session, node.machine.outbox)
            for node in self._nodes
            if isinstance(node.machine, WorkerMachine) and node.machine.outbox is not None
        ]
        producers.append((TRAINER, self._coordinator.outbox))
        for producer, outbox in producers:
            for state in outbox.brokers():
                queue = queues[state.broker]
                account = queue.credits.account(producer) if queue is not None else None
                if account is not None:
                    require(
                        account.received_bytes == state.sent_bytes,
                        "I7",
                        f"session {producer} sent {state.sent_bytes} bytes to broker {state.broker}, "
                        f"which received {account.received_bytes}",
                    )
