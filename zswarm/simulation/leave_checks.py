"""What must hold when processes leave because they were asked to, or are moved.

    L1  whoever is called drained has nothing in hand, nothing is on its way to it, and what it has counted is certain, or its
        heir's, who has all of it
    L2  where nothing else goes wrong, whoever drains costs nothing: no microbatch of the step in work is voided, and
        nothing is done again for a count that was lost
    L3  whoever is moved between two steps has counted nothing of the step in work, and is not the last to hold the
        parameters of its stage, nor to have the result of the last commit; its next life is where it was moved to

L1 and L3 hold whatever happens meanwhile.
"""

from __future__ import annotations

from typing import Any

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm.ids import Attempt, Role, Session, Stage
from zswarm.ledger import from_bytes, members
from zswarm.messages import Job, Void
from zswarm.simulation.census import is_done_again
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

        self._moved: dict[str, int] = {}
        """Whose next life shall be of which stage."""

        self._recalled: set[Attempt] = set()
        """Those of microbatches of a step that was not yet in work: they waited where something of the one before needed
        the room, and nothing of them was done. Repeated until everybody has answered, also when their step has begun."""

    def recorded(self, record: dict[str, Any], coordinator: Coordinator) -> None:
        """Check a record of the log, if it is one of these."""
        match record["event"]:
            case "start":
                # Of what was not synced the trainer that takes the run up knows nothing.
                self._moved.clear()
            case "move" if not record.get("problem"):
                self._moved[record["node"]] = record["to"]
            case "join" if (to := self._moved.pop(record["node"], None)) is not None:
                text = f"{record['node']} joins stage {record['stage']}, and was moved to stage {to}"
                require(record["stage"] == to, "L3", text)
            case "leave":
                self._left(record, coordinator)

    def _left(self, record: dict[str, Any], coordinator: Coordinator) -> None:
        """L1, L3: check a leave record against the process itself, if it is still there."""
        if record["reason"] == f"moved to stage {self._moved.get(record['node'])}":
            self._check_moved(record, coordinator)
            return
        if record["reason"] != DRAINED:
            self._is_free = False
            return
        session = Session(record["session"])
        for node in self._nodes:
            if not node.is_up:
                continue
            if isinstance(node.machine, WorkerMachine) and node.machine.membership.session == session:
                _check_worker(node.name, node.machine, coordinator, has_heir="heir" in record)
                if "heir" in record:
                    self._check_share(node, Session(record["heir"]))
                self._check_leases(node.machine)
            elif isinstance(node.machine, BrokerMachine) and node.machine.membership.session == session:
                still = node.machine.queue.entries if node.machine.queue is not None else {}
                require(not still, "L1", f"{node.name} has drained and is home to {list(still)}")

    def _check_share(self, leaver: Node, heir: Session) -> None:
        """L1: check that the heir has all that the leaver has counted, unless it was told meanwhile that some of it is void."""
        assert isinstance(leaver.machine, WorkerMachine)
        assert leaver.thread is not None
        session, counted = leaver.machine.membership.session, sorted(leaver.thread.compute.accumulator.elements())
        for node in self._nodes:
            machine = node.machine
            if node.is_up and isinstance(machine, WorkerMachine) and machine.membership.session == heir:
                assert node.thread is not None
                shares = node.thread.compute.shares
                is_whole = counted in map(list, shares.values())
                is_void = machine.work.heir.held.owner != session
                require(is_whole or is_void, "L1", f"{leaver.name} leaves {counted} to {node.name}, which has {shares}")

    def _check_leases(self, drained: WorkerMachine) -> None:
        """L1: check that no broker that the worker knows of has something on its way to it."""
        me = drained.membership
        known = me.brokers(me.stage)
        for node in self._nodes:
            machine = node.machine
            if (
                node.is_up
                and isinstance(machine, BrokerMachine)
                and machine.queue
                and machine.membership.session in known
            ):
                worker = machine.queue.workers.get(me.session)
                leases = list(worker.leases) if worker is not None else []
                require(not leases, "L1", f"{me.node} has drained, and {node.name} has the leases {leases} there")

    def _check_moved(self, record: dict[str, Any], coordinator: Coordinator) -> None:
        committer, name = coordinator.committer, record["node"]
        for node in self._nodes:
            machine = node.machine
            if not (node.is_up and node.name == name and isinstance(machine, WorkerMachine)):
                continue
            if machine.membership.session == record["session"] and machine.state.version == committer.version:
                lost = list(members(machine.state.ledger))
                require(not lost, "L3", f"{name} is moved and has counted {lost} of the step in work")
        others = coordinator.roster.of(Role.WORKER, Stage(record["stage"]))
        is_held = any(map(committer.has_state, others))
        text = f"{name} is moved, and was the last to hold the parameters of stage {record['stage']}"
        require(is_held, "L3", text)

    def sent(self, message: Job | Void, coordinator: Coordinator | None) -> None:
        """L2: check that nothing is done again."""
        if not self._is_free or coordinator is None:
            return
        if isinstance(message, Void):
            version = coordinator.committer.version
            if (message.branch, message.step) > version:
                self._recalled.add(message.attempt)
            elif (message.branch, message.step) == version and message.attempt not in self._recalled:
                lost = list(members(from_bytes(message.ledger)))
                raise Violation("L2", f"microbatch {lost[0]} (of {lost}) is voided, and everybody who left had drained")
        elif is_done_again(message):
            text = f"microbatch {message.microbatch} is done again, and everybody who left had drained"
            raise Violation("L2", text)


def _check_worker(name: str, machine: WorkerMachine, coordinator: Coordinator, *, has_heir: bool) -> None:
    held = [each.job.key for each in machine.jobs.held.values()]
    require(not held, "L1", f"{name} has drained and has the jobs {held}")
    still = list(machine.outbox.pending()) if machine.outbox is not None else []
    require(not still, "L1", f"{name} has drained and still wants to send {still}")
    state, committer = machine.state, coordinator.committer
    if state.version != committer.version:
        return
    stage = Stage(machine.membership.stage)
    lost = list(members(state.ledger & ~committer.covered(stage)))
    require(not lost or has_heir, "L1", f"{name} has drained, and with it what it has counted is lost: {lost}")
    others = coordinator.roster.of(Role.WORKER, stage)
    is_held = any(worker.is_ready for worker in others)
    is_anew = state.step in (0, coordinator.archive.step) or not machine.parameters.is_ready
    require(is_held or is_anew, "L1", f"{name} has drained, and was the last to hold the parameters of stage {stage}")
