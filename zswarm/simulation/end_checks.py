"""What must be left of a swarm that has had time to become empty: nothing, and books that balance."""

from __future__ import annotations

from collections.abc import Iterator

from brokers.machine import BrokerMachine
from brokers.queue import Queue
from stages.worker import WorkerMachine
from zswarm.ids import TRAINER, Direction, Session
from zswarm.outbox import Outbox
from zswarm.simulation.node_checks import check_empty_queue
from zswarm.simulation.nodes import Node
from zswarm.simulation.violation import require
from zswarm.trainer.coordinator import Coordinator


def check_drained(nodes: list[Node], *, steps: int) -> None:
    """I8: check that nobody holds anything any more."""
    for node in nodes:
        machine = node.machine
        if isinstance(machine, BrokerMachine) and machine.queue is not None:
            check_empty_queue(node.name, machine.queue)
        elif isinstance(machine, WorkerMachine) and node.exit is None:
            _check_idle(node, machine, steps=steps)


def _check_idle(node: Node, machine: WorkerMachine, *, steps: int) -> None:
    assert node.thread is not None
    if not machine.is_built or machine.outbox is None:
        return
    require(not node.thread.busy and not node.thread.waiting, "I8", f"{node.name} still computes")
    if machine.state.step < steps:
        # The trainer leaves with the model as soon as one worker of each stage has it: the last Commit
        # may not have come to the others, who keep what they have of that step.
        return
    require(not machine.jobs.held, "I8", f"{node.name} still holds {list(machine.jobs.held)}")
    require(not node.thread.compute.kept, "I8", f"{node.name} keeps {list(node.thread.compute.kept)}")
    left = [key for key in machine.outbox.pending() if key[0] is not Direction.LOSS]
    require(not left, "I8", f"{node.name} still wants to send {left}")
    owing = [state.broker for state in machine.outbox.brokers() if machine.outbox.unanswered_bytes(state.broker)]
    require(not owing, "I8", f"{node.name} still waits for the answers of {owing}")


def check_books(nodes: list[Node], coordinator: Coordinator) -> None:
    """I7: what a producer says that it sent is what the broker says that it received: no credit has leaked.

    Only of what has not been answered nobody knows yet: with a trainer that leaves, answers may be on their way.
    """
    queues = dict(_queues(nodes))
    for producer, outbox in _producers(nodes, coordinator):
        for state in outbox.brokers():
            queue = queues.get(state.broker)
            account = queue.credits.account(producer) if queue is not None else None
            if account is None:
                continue
            unknown_bytes = outbox.unanswered_bytes(state.broker)
            require(
                0 <= state.sent_bytes - account.received_bytes <= unknown_bytes,
                "I7",
                f"session {producer} sent {state.sent_bytes} bytes to broker {state.broker}, "
                f"which received {account.received_bytes}, and lacks the answers to {unknown_bytes}",
            )


def _queues(nodes: list[Node]) -> Iterator[tuple[Session, Queue]]:
    for node in nodes:
        if isinstance(node.machine, BrokerMachine) and node.machine.queue is not None:
            yield node.machine.membership.session, node.machine.queue


def _producers(nodes: list[Node], coordinator: Coordinator) -> Iterator[tuple[Session, Outbox]]:
    for node in nodes:
        if isinstance(node.machine, WorkerMachine) and node.machine.outbox is not None:
            yield node.machine.membership.session, node.machine.outbox
    yield TRAINER, coordinator.outbox
