"""The coordinator and real workers over whole runs, on a network that keeps nothing.

Brokers are left out: each microbatch of each stage is handed to one worker, which may get its job again
under another lease. A gradient is the name of a microbatch, parameters the list of all gradients that
were ever applied. Whatever is lost, repeated or reordered, every step must apply each name once.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Discard,
    Export,
    Exported,
    Ran,
    Run,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
)
from stages.worker import WorkerMachine
from tests.letters import job, load, register
from tests.trainer.settings import settings
from zswarm import ledger
from zswarm.ids import Address, JobKind, JobStatus, NodeId, Role
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.messages import Job
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import Append, Sample, Sampled, StepDone, Store

TRAINER_AT = Address("sim://trainer")
STEPS, MICROBATCHES, STAGES = 2, 3, 2
EVERYTHING = tuple(range(MICROBATCHES))
FAIR_TURNS = 60
NATURE = st.integers(0, 2**32).map(Random)


class Computer:
    """A worker: its machine and a compute thread that does what it is told."""

    def __init__(self, index: int) -> None:
        self.address = Address(f"sim://w{index}")
        self.machine = WorkerMachine(
            node=NodeId(f"w{index}"),
            boot_nonce=index,
            addresses=(self.address,),
            coordinator=TRAINER_AT,
            random=lambda: 0.5,
        )
        self.tasks: deque[Any] = deque()
        self.accumulator: list[int] = []
        self.results: dict[int, tuple[int, ...]] = {}
        self.parameters: list[tuple[int, ...]] = []
        self.has_ended = False

    def carry_out(self, task: Any) -> Any:
        match task:
            case Build():
                return Built(num_parameters=1, first_layer=task.stage, num_layers=1, parameter_digest=0)
            case Run():
                if task.accumulate:
                    self.accumulator.append(task.key[3])
                return Ran(
                    lease=task.lease,
                    status=JobStatus.DONE,
                    y=None,
                    kept=False,
                    loss_sum=1.0,
                    num_targets=1,
                    compute_s=0.1,
                )
            case Snapshot():
                share = load(tuple(self.accumulator))
                return Snapshotted(round=task.round, shards=((share,),) * task.num_shards)
            case Sum():
                names = tuple(name for (chunk,) in task.contributions for name in chunk.frames[0])
                return Summed(round=task.round, shard=task.shard, chunks=(load(names),))
            case Assemble():
                names = {chunk.frames[0] for (chunk,) in task.shards}
                assert len(names) == 1, "the shards of a round are sums of the same contributions"
                (self.results[task.round],) = names
                return Assembled(round=task.round, digest=task.round, finite=True, square_norm=1.0)
            case Discard():
                self.results.pop(task.round, None)
                return None
            case Apply():
                self.parameters.append(self.results.pop(task.round))
                assert len(self.parameters) == task.step + 1, "steps are applied one after the other, once"
                self.accumulator, self.results = [], {}
                return Applied(step=task.step, parameter_digest=task.step + 1)
            case Export():
                content = load(tuple(self.parameters), 10)
                return Exported(part=task.part, layer=task.layer, offset_bytes=0, total_bytes=10, load=content)


class ExactlyOnce(RuleBasedStateMachine):
    @initialize(per_stage=st.sampled_from([1, 2, 3]), nature=NATURE)
    def begin(self, per_stage, nature):
        self.nature = nature
        self.now_s = 0.0
        run = settings(
            steps=STEPS, num_microbatches=MICROBATCHES, workers_per_stage=per_stage, silence_heartbeats=10**6
        )
        self.trainer = Coordinator(run, random=lambda: 0.5)
        self.workers = {worker.address: worker for worker in map(Computer, range(per_stage * STAGES))}
        self.owners: dict[tuple[int, int, int], Computer] = {}
        """Who gets the jobs of a microbatch: by (stage, step, microbatch)."""
        self.num_leases = 0
        self.mail: list[tuple[Address, Address, Any, Any]] = []
        """(to, from, message, frames)"""
        self.commits: list[dict[str, Any]] = []
        self.stored: list[tuple[Any, ...]] = []
        self.done: list[int] = []
        self.exit: Exit | None = None

    # -- the world -------------------------------------------------------------------------------

    def deliver(self, to: Address, sender: Address, message: Any, frames: Any) -> None:
        event = Received(peer=sender, message=message, frames=frames)
        if to == TRAINER_AT:
            self.do_trainer(self.trainer.handle(event, self.now_s))
        elif (worker := self.workers.get(to)) is not None and not worker.has_ended:
            self.do_worker(worker, worker.machine.handle(event, self.now_s))

    def do_trainer(self, commands: list[Any]) -> None:
        for command in commands:
            match command:
                case Send():
                    self.mail.append((command.peer, TRAINER_AT, command.message, command.frames))
                case Append(record={"event": "commit"}):
                    assert command.durable
                    self.commits.append(command.record)
                case Sample():
                    drawn = Sampled(
                        purpose=command.purpose, step=command.step, microbatch=command.microbatch, load=load("x")
                    )
                    self.do_trainer(self.trainer.handle(drawn, self.now_s))
                case StepDone():
                    self.done.append(command.step)
                case Store():
                    self.stored.append(command.load.frames[0])
                case Exit():
                    self.exit = command
                case _:
                    assert isinstance(command, Append)

    def do_worker(self, worker: Computer, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.mail.append((command.peer, worker.address, command.message, command.frames))
            elif isinstance(command, Exit):
                worker.has_ended = True
            else:
                worker.tasks.append(command)

    def hand_out(self, nature: Random, share: float) -> None:
        """Send jobs of the step that a worker is at, and of the next one."""
        for worker in self.workers.values():
            machine = worker.machine
            if not machine.is_built or nature.random() >= share:
                continue
            for step in (machine.state.step, machine.state.step + 1):
                for microbatch in EVERYTHING:
                    place = (machine.membership.stage, step, microbatch)
                    if step < STEPS and nature.random() < share and self.owners.setdefault(place, worker) is worker:
                        self.mail.append((worker.address, Address("sim://b0"), self.job(step, microbatch), ("dy",)))

    def job(self, step: int, microbatch: int) -> Job:
        self.num_leases += 1
        return job(90, self.num_leases, JobKind.BACKWARD, microbatch, step=step, route=(90, 90))

    def tick(self) -> None:
        self.do_trainer(self.trainer.handle(Tick(), self.now_s))
        for index in range(STAGES):
            self.mail.append((TRAINER_AT, Address(f"sim://b{index}"), register(f"b{index}", role=Role.BROKER), ()))
        for worker in self.workers.values():
            if not worker.has_ended:
                self.do_worker(worker, worker.machine.handle(Tick(), self.now_s))

    def compute(self, nature: Random, share: float) -> None:
        for worker in self.workers.values():
            while worker.tasks and not worker.has_ended and nature.random() < share:
                outcome = worker.carry_out(worker.tasks.popleft())
                if outcome is not None:
                    self.do_worker(worker, worker.machine.handle(outcome, self.now_s))

    # -- rules -----------------------------------------------------------------------------------

    @rule(nature=NATURE, loss=st.sampled_from([0.0, 0.0, 0.3]), repetition=st.sampled_from([0.0, 0.3]))
    def turn(self, nature, loss, repetition):
        if self.exit is not None:
            return
        self.now_s += nature.choice([0.2, 1.1])
        self.tick()
        self.hand_out(nature, 0.6)
        letters, self.mail = self.mail, []
        nature.shuffle(letters)
        for letter in letters:
            if nature.random() < repetition:
                self.mail.append(letter)
            if nature.random() >= loss:
                self.deliver(*letter)
        self.compute(nature, 0.8)

    @rule()
    def fair_turn(self):
        if self.exit is not None:
            return
        self.now_s += 1.1
        self.tick()
        self.hand_out(self.nature, 1.0)
        for _ in range(3):
            letters, self.mail = self.mail, []
            for letter in letters:
                self.deliver(*letter)
            self.compute(self.nature, 1.0)

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def every_commit_counts_every_microbatch_once_at_every_stage(self):
        assert [record["step"] for record in self.commits] == list(range(len(self.commits)))
        for record in self.commits:
            for stage in record["stages"]:
                names = [name for names in stage["contributions"].values() for name in names]
                assert sorted(names) == list(EVERYTHING)
        assert self.done == list(range(len(self.commits)))

    @invariant()
    def every_replica_applies_what_was_committed_and_nothing_else(self):
        for worker in self.workers.values():
            assert len(worker.parameters) <= len(self.commits)
            assert all(sorted(names) == list(EVERYTHING) for names in worker.parameters)
        for stage in range(STAGES):
            replicas = [w.parameters for w in self.workers.values() if w.machine.membership.stage == stage]
            longest = max(replicas, key=len, default=[])
            assert all(replica == longest[: len(replica)] for replica in replicas)

    @invariant()
    def ledgers_say_what_is_in_the_accumulators(self):
        for worker in self.workers.values():
            if not worker.tasks:
                counted = list(ledger.members(worker.machine.state.ledger))
                assert sorted(worker.accumulator) == counted

    def teardown(self):
        if not hasattr(self, "trainer"):
            return
        for _ in range(FAIR_TURNS):
            if self.exit is not None:
                break
            self.fair_turn()
        assert self.exit == Exit(code=0, text="all steps are done")
        assert self.done == list(range(STEPS))
        assert len(self.stored) == STAGES
        assert all(sorted(names) == list(EVERYTHING) for parameters in self.stored for names in parameters)
        self.every_commit_counts_every_microbatch_once_at_every_stage()
        self.every_replica_applies_what_was_committed_and_nothing_else()


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = hypothesis_settings(derandomize=True, deadline=None, max_examples=40, stateful_step_count=30)
