"""The invariants have teeth: each breach, made by hand in a run that is otherwise clean, is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from brokers.machine import BrokerMachine
from stages.tasks import Run
from stages.worker import WorkerMachine
from zswarm.errors import HANGS
from zswarm.ids import TRAINER, Attempt, Branch, Direction, Link, Microbatch, Purpose, Session, Step
from zswarm.ledger import from_bytes
from zswarm.machine import Exit, Send
from zswarm.messages import Backward, Commit, Forward, Stop, Welcome, WorkerHeartbeat
from zswarm.outbox import Entry
from zswarm.simulation.nodes import Node
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.trace import Trace
from zswarm.simulation.violation import Violation
from zswarm.trainer.settings import Append, EvaluationDone, Store

CALM = Schedule(
    seed=1,
    num_stages=2,
    brokers_per_stage=1,
    workers_per_stage=2,
    num_microbatches=3,
    steps=2,
    num_held_out=1,
    drains=True,
    codec_one_in=1,
)

Tamper = Callable[[Swarm, Any], Any]
"""Changes a command, or the swarm, when a command comes by."""


def swarm_of(schedule: Schedule = CALM) -> Swarm:
    return Swarm(schedule, Trace(length=100))


def run_with(tamper: Tamper, schedule: Schedule = CALM) -> None:
    """Run a schedule in which every command of every node goes through `tamper`."""
    swarm = swarm_of(schedule)
    for node in swarm.nodes:
        tap(node, swarm, tamper)
    swarm.run()


def tap(node: Node, swarm: Swarm, tamper: Tamper) -> None:
    original = node.machine.handle
    node.machine.handle = lambda event, now: [tamper(swarm, c) for c in original(event, now)]  # type: ignore[method-assign]


def computes(swarm: Swarm) -> list[Any]:
    return [node.thread.compute for node in swarm.nodes if node.thread is not None]


def at_commit(step: int, change: Callable[[Swarm, Append], Append | None]) -> Tamper:
    """Change the record of a step's commit, or the swarm just before it is checked."""

    def tamper(swarm: Swarm, command: Any) -> Any:
        if isinstance(command, Append) and command.record["event"] == "commit" and command.record["step"] == step:
            return change(swarm, command) or command
        return command

    return tamper


def with_record(**changes: object) -> Callable[[Swarm, Append], Append]:
    return lambda _, append: replace(append, record=append.record | changes)


def test_a_clean_run_is_clean() -> None:
    """Every message of it passes through the wire codec, and nothing is left behind."""
    swarm = swarm_of()
    swarm.run()
    assert swarm.counters["commit records"] == 2
    assert swarm.counters["evaluation records"] == 2


def ledgers(change: Callable[[dict[str, list[int]]], None]) -> Callable[[Swarm, Append], None]:
    return lambda _, append: change(append.record["stages"][1]["contributions"])


def give_twice(contributions: dict[str, list[int]]) -> None:
    for ledger in contributions.values():
        ledger.append(0)


def take_away(contributions: dict[str, list[int]]) -> None:
    next(ledger for ledger in contributions.values() if ledger).pop()


@pytest.mark.parametrize("change", [give_twice, take_away])
def test_i1_sees_ledgers_that_are_not_the_step(change: Callable[[dict[str, list[int]]], None]) -> None:
    with pytest.raises(Violation, match=r"I1: .*the ledgers together are"):
        run_with(at_commit(1, ledgers(change)))


def test_i1_sees_a_gradient_that_is_not_the_step() -> None:
    """The ledgers say one thing and the sum is another: a snapshot that is not its ledger's."""

    def change(swarm: Swarm, _: Append) -> None:
        for compute in computes(swarm):
            compute.rounds.assembled = {r: (*c, c[0]) for r, c in compute.rounds.assembled.items()}

    with pytest.raises(Violation, match=r"I1: .*the sum of"):
        run_with(at_commit(0, change))


@pytest.mark.parametrize("field", ["path", "way_back"])
def test_i2_sees_parameters_of_another_step(field: str) -> None:
    def change(swarm: Swarm, _: Append) -> None:
        for compute in computes(swarm):
            compute.rounds.assembled = {
                r: tuple(each._replace(**{field: (1, *getattr(each, field)[1:])}) for each in c)
                for r, c in compute.rounds.assembled.items()
            }

    with pytest.raises(Violation, match=r"I2: .*not of this step"):
        run_with(at_commit(1, change))


@pytest.mark.parametrize("changes", [{"loss": 0.5}, {"lr": 2.0}, {"scale": 0.9}, {"apply": False}], ids=str)
def test_i3_sees_a_decision_that_is_not_the_references(changes: dict[str, object]) -> None:
    with pytest.raises(Violation, match=r"I3: .*of step 1 are"):
        run_with(at_commit(1, with_record(**changes)))


def test_i3_sees_a_replica_that_drifts() -> None:
    def change(swarm: Swarm, _: Append) -> None:
        computes(swarm)[0].version += 1

    with pytest.raises(Violation, match="I3: worker-0 holds other parameters before or after step 1"):
        run_with(at_commit(1, change))


def test_i3_sees_a_model_that_is_not_what_was_trained() -> None:
    def tamper(_: Swarm, command: Any) -> Any:
        if isinstance(command, Store) and command.layer == 1:
            return replace(command, load=replace(command.load, frames=(bytes(command.load.parcel.size_bytes),)))
        return command

    with pytest.raises(Violation, match=r"I3: .* of layer 1 in the checkpoint of step 2 is not the reference's"):
        run_with(tamper)


def test_i4_sees_a_commit_that_is_told_before_it_is_logged() -> None:
    def tamper(_: Swarm, command: Any) -> Any:
        if isinstance(command, Send) and isinstance(command.message, Commit):
            return replace(command, message=replace(command.message, step=Step(command.message.step + 1)))
        return command

    with pytest.raises(Violation, match="I4: trainer tells of the commit of step 1"):
        run_with(tamper)


def test_i4_sees_a_step_committed_twice() -> None:
    with pytest.raises(Violation, match="I4: step 0 of branch 0 is committed, next is 1 of branch 0"):
        run_with(at_commit(1, with_record(step=0)))


def test_i4_sees_a_commit_that_a_crash_could_undo() -> None:
    with pytest.raises(Violation, match=r"I4: .*not durable"):
        run_with(at_commit(0, lambda _, append: replace(append, durable=False)))


def test_i4_sees_a_result_that_nobody_holds() -> None:
    def change(swarm: Swarm, _: Append) -> None:
        for compute in computes(swarm):
            compute.rounds.assembled = {}

    with pytest.raises(Violation, match=r"I4: .*nobody holds"):
        run_with(at_commit(0, change))


def test_i1_sees_a_held_out_loss_that_is_wrong() -> None:
    def tamper(_: Swarm, command: Any) -> Any:
        return replace(command, loss=command.loss / 2) if isinstance(command, EvaluationDone) else command

    with pytest.raises(Violation, match="I1: the held-out loss"):
        run_with(tamper)


def after_forwards(count: int, change: Callable[[Swarm], None]) -> Tamper:
    """Change the swarm when the `count`-th Forward is on its way."""
    seen = [0]

    def tamper(swarm: Swarm, command: Any) -> Any:
        if isinstance(command, Send) and isinstance(command.message, Forward):
            seen[0] += 1
            if seen[0] == count:
                change(swarm)
        return command

    return tamper


def brokers(swarm: Swarm) -> list[BrokerMachine]:
    return [node.machine for node in swarm.nodes if isinstance(node.machine, BrokerMachine)]


def workers(swarm: Swarm) -> list[WorkerMachine]:
    return [node.machine for node in swarm.nodes if isinstance(node.machine, WorkerMachine)]


def test_i6_sees_a_microbatch_that_everybody_has_forgotten() -> None:
    """A worker that forgets an output before it is acknowledged: if it is lost, nobody would ever act again."""

    def tamper(swarm: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        if not isinstance(message, Forward) or message.purpose is not Purpose.TRAIN or message.session == TRAINER:
            return command
        for worker in workers(swarm):
            assert worker.outbox is not None
            worker.outbox._sent.pop((Direction.FORWARD, message.key), None)
        return replace(command, peer=Link(b"nobody"))

    with pytest.raises(Violation, match=r"I6: TRAIN microbatch . of step 0 is held by nobody"):
        run_with(tamper)


def reserve_more(swarm: Swarm) -> None:
    for broker in brokers(swarm):
        assert broker.queue is not None
        broker.queue.credits.reserved_bytes += 1


def promise_more(swarm: Swarm) -> None:
    for broker in brokers(swarm):
        assert broker.queue is not None
        for account in broker.queue.credits.accounts.values():
            account.granted_bytes += 10**9


def take_back(swarm: Swarm) -> None:
    for broker in brokers(swarm):
        assert broker.queue is not None
        for account in broker.queue.credits.accounts.values():
            account.granted_bytes = -1


def spend_more(swarm: Swarm) -> None:
    for worker in workers(swarm):
        assert worker.outbox is not None
        for state in worker.outbox.brokers():
            state.sent_bytes += 10**9


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (reserve_more, "its entries take"),
        (promise_more, "and promises"),
        (take_back, "bytes of credit"),
        (spend_more, "owes broker"),
    ],
)
def test_i7_sees_books_that_do_not_balance(change: Callable[[Swarm], None], match: str) -> None:
    with pytest.raises(Violation, match=f"I7: .*{match}"):
        run_with(after_forwards(2, change))


def test_i7_sees_credit_that_has_leaked() -> None:
    """A producer that believes that more has come than it sent will wait one day for credit that it has."""

    def change(swarm: Swarm) -> None:
        (state,) = swarm.coordinator.outbox.brokers()
        state.received_bytes += 10**6
        state.granted_bytes += 10**6

    with pytest.raises(Violation, match=r"I7: session 0 sent .* which received"):
        run_with(after_forwards(1, change))


def test_i8_sees_a_run_that_never_ends() -> None:
    deaf = replace(CALM, weather=replace(CALM.weather, loss=1.0, fair_from_s=1e9))
    swarm = swarm_of(deaf)
    swarm._ends_at_s = 50.0
    with pytest.raises(Violation, match=r"I8: after 5. s and .* events the run is at step 0 of 2"):
        swarm.run()


def test_i8_sees_a_run_that_fails() -> None:
    with pytest.raises(Violation, match=r"I8: worker-. ends with 1: out of memory"):
        run_with(lambda _, command: Exit(code=1, text="out of memory") if isinstance(command, Run) else command)


def test_i8_sees_a_process_that_ends_for_a_device_that_does_not_hang() -> None:
    with pytest.raises(Violation, match=r"I8: worker-. ends with 71: it hangs"):
        run_with(lambda _, command: Exit(code=HANGS, text="it hangs") if isinstance(command, Run) else command)


def test_i8_sees_what_is_left_behind() -> None:
    """An entry in a broker that nobody will ever ask for is a leak, however little it costs now."""

    def tamper(swarm: Swarm, command: Any) -> Any:
        if isinstance(command, Send) and isinstance(command.message, Stop):
            for compute in computes(swarm):
                compute.kept[Branch(0), Step(9), Purpose.TRAIN, Microbatch(0), Attempt(0)] = None
        return command

    with pytest.raises(Violation, match=r"I8: worker-. keeps"):
        run_with(tamper)


def test_i8_sees_an_output_that_is_never_taken() -> None:
    outputs: list[Backward] = []

    def tamper(swarm: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        if isinstance(message, Backward):
            outputs.append(message)
        elif isinstance(message, Stop):
            for worker in workers(swarm):
                assert worker.outbox is not None
                worker.outbox.put_to(None, outputs[-1], broker=Session(99), now=0.0)
        return command

    with pytest.raises(Violation, match=r"I8: worker-. still wants to send"):
        run_with(tamper)


def test_i8_sees_an_answer_that_never_comes() -> None:
    """Nobody needs what was given up, but the credit that it took stays lost until its broker says whether it came."""
    outputs: list[Forward] = []

    def tamper(swarm: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        if isinstance(message, Forward) and message.session != TRAINER:
            outputs.append(message)
        elif isinstance(message, Stop):
            (outbox,) = (worker.outbox for worker in workers(swarm) if worker.membership.session == outputs[-1].session)
            assert outbox is not None
            entry = Entry(outputs[-1], (), outputs[-1].route[-1], None, 0.0, 0.0, is_given_up=True, credit_bytes=1)
            outbox._sent[Direction.FORWARD, outputs[-1].key] = entry
        return command

    with pytest.raises(Violation, match=r"I8: worker-. still waits for the answers"):
        run_with(tamper)


@pytest.mark.parametrize("at_s", [0.0, 0.3, 1.0, 1.5, 2.0])
def test_a_run_ends_soon_after_it_is_interrupted(at_s: float) -> None:
    """Whatever it is doing: gathering, training, collecting."""
    swarm = swarm_of(replace(CALM, interrupted_at_s=at_s))
    swarm.run()
    assert swarm.disk.records[-1]["event"] == "finish"
    assert swarm.disk.records[-1]["code"] == 130
    assert swarm.now_s <= at_s + 2.5


def test_i8_sees_a_trainer_that_does_not_leave() -> None:
    swarm = swarm_of(replace(CALM, interrupted_at_s=1.0))
    swarm.coordinator._leave_if_alone = lambda now: []  # type: ignore[method-assign]
    with pytest.raises(Violation, match=r"I8: trainer asks for tick after tick"):
        swarm.run()


def test_a_machine_that_raises_is_a_violation() -> None:
    swarm = swarm_of()

    def broken(event: Any, now: float) -> list[Any]:
        raise KeyError("gone")

    swarm.nodes[1].machine.handle = broken  # type: ignore[method-assign]
    with pytest.raises(Violation, match="crash: broker-0 raised KeyError"):
        swarm.run()


def test_a_machine_that_asks_for_ticks_without_end_is_a_violation() -> None:
    """A service would spin: poll with no time to wait, tick, poll."""
    swarm = swarm_of()
    swarm.nodes[1].machine.next_deadline_s = lambda: 0.0  # type: ignore[method-assign]
    swarm.nodes[1].machine.handle = lambda event, now: []  # type: ignore[method-assign]
    with pytest.raises(Violation, match="I8: broker-0 asks for tick after tick"):
        swarm.run()


def test_i1_sees_two_live_workers_that_have_counted_the_same() -> None:
    """Long before a commit: the commit would not happen, and that is another promise."""

    def tamper(swarm: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        if isinstance(message, WorkerHeartbeat) and message.ledger:
            for worker in workers(swarm):
                if worker.membership.stage == message.stage and worker.state.version == (0, message.step):
                    worker.state.ledger |= from_bytes(message.ledger)
        return command

    with pytest.raises(Violation, match=r"I1: microbatch . .* is counted by the live sessions"):
        run_with(tamper, replace(CALM, num_microbatches=8))


def test_i3_sees_a_worker_that_is_ready_with_other_parameters() -> None:
    def tamper(_: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        if isinstance(message, WorkerHeartbeat) and message.ready and message.step == 1:
            return replace(command, message=replace(message, parameter_digest=message.parameter_digest ^ 1))
        return command

    with pytest.raises(Violation, match=r"I3: worker-. is ready at step 1"):
        run_with(tamper)


def test_i4_sees_a_checkpoint_that_is_in_the_log_only() -> None:
    def tamper(swarm: Swarm, command: Any) -> Any:
        if isinstance(command, Append) and command.record["event"] == "checkpoint":
            swarm.disk.checkpoints.clear()
        return command

    with pytest.raises(Violation, match=r"I4: .*'checkpoint'.* is in the log, and not on the disk"):
        run_with(tamper)


def test_i8_sees_a_run_that_ends_without_its_last_checkpoint() -> None:
    def tamper(swarm: Swarm, command: Any) -> Any:
        if isinstance(command, Exit):
            swarm.disk.checkpoints.clear()
        return command

    with pytest.raises(Violation, match="I8: the run has ended without a checkpoint of its last step"):
        run_with(tamper)


def test_r3_sees_a_session_that_is_issued_twice() -> None:
    def tamper(_: Swarm, command: Any) -> Any:
        message = getattr(command, "message", None)
        return replace(command, message=replace(message, yours=Session(1))) if isinstance(message, Welcome) else command

    with pytest.raises(Violation, match="R3: session 1 of life"):
        run_with(tamper)
