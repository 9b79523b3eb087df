"""What must hold when processes leave because they were asked to.

L1  whoever is called drained has nothing in hand, and what it has counted is certain
L2  where nothing else goes wrong, whoever drains costs nothing: no microbatch of the step in work is voided, and
nothing is done again for a count that was lost
"""

from __future__ import annotations

from typing import Any

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm.ids import JobKind, Purpose, Role, Session, Stage
from zswarm.ledger import from_bytes, members
from zswarm.messages import Job, Void
from zswarm.simulation.faults import ON_PURPOSE
from zswarm.simulation.nodes import Node
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.violation import Violation, require
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.departures import DRAINED


class LeaveChecks:
    """See the module."""

    def __init__(self, schedule: Schedule, nodes: list[Node]) -> None:
        self._nodes = nodes
        is_fair = schedule.weather.is_fair and not schedule.poisons
        self._is_free = is_fair and all(strike.fault in ON_PURPOSE for strike in schedule.strikes)
        """Nobody has left so far but without a loss, and nothing else goes wrong."""

    def left(self, record: dict[str, Any], coordinator: Coordinator) -> None:
        """L1: check a leave record against the process itself, if it is still there."""
        if record["reason"] != DRAINED:
            self._is_free = False
            return
        session = Session(record["session"])
        for node in self._nodes:
            if node.is_up and isinstance(node.machine, WorkerMachine):
                if node.machine.membership.session == session:
                    _check_worker(node.name, node.machine, coordinator)
            elif node.is_up and isinstance(node.machine, BrokerMachine):
                queue = node.machine.queue
                is_it = node.machine.membership.session == session
                still = queue.entries if is_it and queue is not None else {}
                require(not still, "L1", f"{node.name} has drained and is home to {list(still)}")

    def sent(self, message: Job | Void, coordinator: Coordinator | None) -> None:
        """L2: check that nothing is done again."""
        if not self._is_free or coordinator is None:
            return
        if isinstance(message, Void):
            version = coordinator.committer.version
            if (message.branch, message.step) == version:
                lost = list(members(from_bytes(message.ledger)))
                raise Violation("L2", f"microbatch {lost[0]} (of {lost}) is voided, and everybody who left had drained")
        elif message.purpose is Purpose.TRAIN and message.kind is not JobKind.FORWARD:
            below = (1 << len(message.route) - 1) - 1
            if message.accumulate and not message.emit and from_bytes(message.mask) & below:
                text = f"microbatch {message.microbatch} is done again, and everybody who left had drained"
                raise Violation("L2", text)


def _check_worker(name: str, machine: WorkerMachine, coordinator: Coordinator) -> None:
    held = [each.job.key for each in machine.jobs.held.values()]
    require(not held, "L1", f"{name} has drained and has the jobs {held}")
    still = list(machine.outbox.pending()) if machine.outbox is not None else []
    require(not still, "L1", f"{name} has drained and still wants to send {still}")
    state, committer = machine.state, coordinator.committer
    if state.version != committer.version:
        return
    stage = Stage(machine.membership.stage)
    lost = list(members(state.ledger & ~committer.covered(stage)))
    require(not lost, "L1", f"{name} has drained, and with it what it has counted is lost: {lost}")
    others = coordinator.roster.of(Role.WORKER, stage)
    is_held = any(worker.is_ready for worker in others)
    is_anew = state.step in (0, coordinator.archive.step) or not machine.parameters.is_ready
    require(is_held or is_anew, "L1", f"{name} has drained, and was the last to hold the parameters of stage {stage}")
