"""The coordinator, real workers and the rights of brokers over whole runs, on a network that keeps nothing.

Whatever is lost, repeated or reordered, and whoever is killed, cut off or begins anew, the trainer too: every
step is committed once on its branch and counts each microbatch once at every stage, and no two workers have ever
counted the same one. See `processes` for what a worker and a broker are here.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.letters import load, move
from tests.trainer.processes import TRAINER_AT, Broker, Computer
from tests.trainer.settings import settings
from zswarm import ledger
from zswarm.errors import HANGS
from zswarm.ids import STATE_FILES, Address, StatePart
from zswarm.machine import ASKED, Exit, Leave, Received, Send, Tick
from zswarm.messages import Forward, Load
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.phases import Phase
from zswarm.trainer.recovery import recover
from zswarm.trainer.settings import (
    Append,
    EvaluationDone,
    Forsake,
    Read,
    Sample,
    Sampled,
    Seal,
    Sealed,
    StepDone,
    Store,
    WasRead,
)

STEPS, MICROBATCHES, STAGES = 6, 3, 2
EVERYTHING = list(range(MICROBATCHES))
FAIR_TURNS = 200
MUTE_S = 4.0
NATURE = st.integers(0, 2**32).map(Random)

Version = tuple[int, int]


class Swarm:
    """The processes, what is on its way between them, and the trainer's disk."""

    def __init__(self, *, per_stage: int) -> None:
        self.now_s = 0.0
        self.per_stage = per_stage
        self.records: list[dict[str, Any]] = []
        self.unsealed: dict[Version, dict[tuple[int, StatePart], Load]] = {}
        self.disk: dict[Version, dict[tuple[int, StatePart], Load]] = {}
        self.disk_events: list[Sealed | WasRead] = []
        self.trainer = self.start_trainer()
        self.commands_left: int | None = None
        """After so many more commands the trainer dies."""
        self.workers = {worker.address: worker for worker in map(Computer, range(per_stage * STAGES))}
        self.brokers = [Broker(index) for index in range(STAGES)]
        self.muted_until_s: dict[Address, float] = {}
        self.mail: list[tuple[Address, Address, Any, Any]] = []
        """(to, from, message, frames)"""
        self.version: Version = (0, 0)
        """That which the log says."""
        self.commits: list[dict[str, Any]] = []
        """Those that no rollback has made void."""
        self.exit: Exit | None = None

    # -- the trainer -----------------------------------------------------------------------------

    def start_trainer(self) -> Coordinator:
        found = recover(self.records)
        self.unsealed.clear()
        self.disk_events.clear()
        of: dict[str, Any] = {}
        if found is not None:
            of = {"generation": found.generation, "first_session": found.next_session, "recovered": found}
            of["checkpoint"] = found.checkpoint
        run = settings(
            steps=STEPS,
            num_microbatches=MICROBATCHES,
            workers_per_stage=self.per_stage,
            checkpoint_every=2,
            window=2 * MICROBATCHES,
            backup_every_s=0.0,
            **of,
        )
        return Coordinator(run, random=lambda: 0.5)

    def tell_trainer(self, event: Any) -> None:
        trainer = self.trainer
        for command in trainer.handle(event, self.now_s):
            if self.commands_left is not None:
                self.commands_left -= 1
                if self.commands_left < 0:
                    self.trainer, self.commands_left = self.start_trainer(), None
            if self.trainer is not trainer:
                return
            self.obey(command)

    def obey(self, command: Any) -> None:
        match command:
            case Send() if command.peer == "sim://operator":
                pass
            case Send():
                self.mail.append((command.peer, TRAINER_AT, command.message, command.frames))
            case Append():
                self.append(command)
            case Sample():
                of = {"purpose": command.purpose, "step": command.step, "microbatch": command.microbatch}
                self.tell_trainer(Sampled(**of, load=load("x")))
            case Store():
                files = self.unsealed.setdefault((command.branch, command.step), {})
                files[command.layer, command.part] = command.load
            case Seal():
                version = (command.branch, command.step)
                self.disk[version] = self.unsealed.pop(version)
                self.disk_events.append(Sealed(branch=command.branch, step=command.step))
            case Read():
                content = self.disk[command.checkpoint][command.pull.layer, command.pull.part]
                read = WasRead(peer=command.peer, pull=command.pull, total_bytes=10, load=content)
                self.disk_events.append(read)
            case Exit():
                self.exit = command
            case _:
                assert isinstance(command, StepDone | Forsake | EvaluationDone)

    def append(self, command: Append) -> None:
        record = command.record
        self.records.append(record)
        match record["event"]:
            case "commit":
                assert command.durable
                assert (record["branch"], record["step"]) == self.version, "steps follow each other on their branch"
                self.version = (self.version[0], self.version[1] + 1)
                self.commits.append(record)
            case "rollback":
                assert command.durable
                assert record["branch"] == self.version[0] + 1
                assert record["step"] <= self.version[1]
                self.version = (record["branch"], record["step"])
                del self.commits[record["step"] :]
            case "leave":
                assert "counted" not in record["reason"], "two live workers have counted the same microbatch"

    # -- everybody -------------------------------------------------------------------------------

    def is_muted(self, address: Address) -> bool:
        return self.muted_until_s.get(address, 0.0) > self.now_s

    def deliver(self, to: Address, sender: Address, message: Any, frames: Any) -> None:
        if self.is_muted(to) or self.is_muted(sender):
            return
        event = Received(peer=sender, message=message, frames=frames)
        if to == TRAINER_AT:
            self.tell_trainer(event)
        elif to in self.workers:
            worker = self.workers[to]
            if not worker.has_ended:
                self.obey_worker(worker, worker.machine.handle(event, self.now_s))
        else:
            (broker,) = [broker for broker in self.brokers if to in (broker.address, broker.work_address)]
            self.deliver_to_broker(broker, event)

    def deliver_to_broker(self, broker: Broker, event: Received) -> None:
        message = event.message
        if not isinstance(message, Forward):
            self.post(broker.address, broker.handle(message, event.frames, event.peer))
        elif message.route == (broker.membership.session,) and not broker.membership.is_foreign(message):
            # What passes from stage to stage has no part in this: it is there at once, or never.
            if broker.take(message):
                for other in self.brokers:
                    other.take(message)
            self.post(broker.work_address, [broker.acknowledge(message, event.peer)])

    def ask_to_leave(self, worker: Computer) -> None:
        if not worker.has_ended:
            self.obey_worker(worker, worker.machine.handle(Leave(), self.now_s))

    def post(self, sender: Address, sends: list[Send]) -> None:
        self.mail += [(send.peer, sender, send.message, send.frames) for send in sends]

    def obey_worker(self, worker: Computer, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.post(worker.address, [command])
            elif isinstance(command, Exit) and (command.code == HANGS or command.text == ASKED):
                # Whoever looks after the processes starts it again.
                worker.has_ended = True
                self.workers[worker.address] = Computer(worker.index, life=worker.life + 1)
                return
            elif isinstance(command, Exit):
                assert command.code == 0 or self.trainer.phase is Phase.CLOSING, command
                worker.has_ended = True
            else:
                worker.tasks.append(command)

    def tick(self) -> None:
        self.tell_trainer(Tick())
        events, self.disk_events = self.disk_events, []
        for event in events:
            self.tell_trainer(event)
        for broker in self.brokers:
            self.post(broker.address, [broker.tick()])
        for worker in list(self.workers.values()):
            if not worker.has_ended:
                self.obey_worker(worker, worker.machine.handle(Tick(), self.now_s))

    def hand_out(self, nature: Random, share: float) -> None:
        for broker in self.brokers:
            self.post(broker.address, list(broker.jobs(nature, share)))

    def compute(self, nature: Random, share: float) -> None:
        for worker in list(self.workers.values()):
            while worker.tasks and not worker.has_ended and nature.random() < share:
                outcome = worker.carry_out(worker.tasks.popleft())
                if outcome is not None:
                    self.obey_worker(worker, worker.machine.handle(outcome, self.now_s))

    def carry(self, nature: Random, loss: float, repetition: float) -> None:
        letters, self.mail = self.mail, []
        nature.shuffle(letters)
        for letter in letters:
            if nature.random() < repetition:
                self.mail.append(letter)
            if nature.random() >= loss:
                self.deliver(*letter)


class ExactlyOnce(RuleBasedStateMachine):
    @initialize(per_stage=st.sampled_from([1, 2, 3]), nature=NATURE)
    def begin(self, per_stage, nature):
        self.nature = nature
        self.swarm = Swarm(per_stage=per_stage)

    # -- time ------------------------------------------------------------------------------------

    @rule(
        num_turns=st.integers(1, 6),
        nature=NATURE,
        loss=st.sampled_from([0.0, 0.0, 0.3]),
        repetition=st.sampled_from([0.0, 0.3]),
    )
    def turns(self, num_turns, nature, loss, repetition):
        swarm = self.swarm
        for _ in range(num_turns):
            if swarm.exit is not None:
                return
            swarm.now_s += nature.choice([0.2, 1.1])
            swarm.tick()
            swarm.hand_out(nature, 0.6)
            swarm.carry(nature, loss, repetition)
            swarm.compute(nature, 0.8)

    @rule(num_turns=st.integers(1, 4))
    def fair_turns(self, num_turns):
        swarm = self.swarm
        for _ in range(num_turns):
            if swarm.exit is not None:
                return
            swarm.now_s += 1.1
            swarm.tick()
            swarm.hand_out(self.nature, 1.0)
            for _ in range(3):
                swarm.carry(self.nature, 0.0, 0.0)
                swarm.compute(self.nature, 1.0)

    # -- faults ----------------------------------------------------------------------------------

    @rule(nature=NATURE)
    def worker_starts_again(self, nature):
        old = nature.choice(list(self.swarm.workers.values()))
        self.swarm.workers[old.address] = Computer(old.index, life=old.life + 1)

    @rule(nature=NATURE)
    def worker_is_asked_to_leave(self, nature):
        """It is started again when it has left."""
        self.swarm.ask_to_leave(nature.choice(list(self.swarm.workers.values())))

    @rule(nature=NATURE)
    def worker_is_moved(self, nature):
        message = move(f"w{nature.randrange(len(self.swarm.workers))}", nature.randrange(STAGES))
        self.swarm.tell_trainer(Received(peer=Address("sim://operator"), message=message, frames=()))

    @rule(nature=NATURE)
    def worker_is_cut_off(self, nature):
        """For longer than anybody's patience, or shorter."""
        worker = nature.choice(list(self.swarm.workers.values()))
        self.swarm.muted_until_s[worker.address] = self.swarm.now_s + nature.uniform(0.5, MUTE_S)

    @rule(nature=NATURE)
    def broker_starts_again(self, nature):
        old = nature.choice(self.swarm.brokers)
        self.swarm.brokers[old.index] = Broker(old.index, life=old.life + 1)

    @rule(nature=NATURE)
    def broker_needs_room(self, nature):
        nature.choice(self.swarm.brokers).forget_kept()

    @rule(num_commands=st.integers(0, 12))
    def trainer_starts_again(self, num_commands):
        """Between any two of its next commands, so that what it has written may not be told."""
        if self.swarm.trainer.phase is not Phase.CLOSING and self.swarm.records:
            self.swarm.commands_left = num_commands

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def every_commit_counts_every_microbatch_once_at_every_stage(self):
        if not hasattr(self, "swarm"):
            return
        assert [record["step"] for record in self.swarm.commits] == list(range(self.swarm.version[1]))
        for record in self.swarm.commits:
            for stage in record["stages"]:
                names = [name for names in stage["contributions"].values() for name in names]
                assert sorted(names) == EVERYTHING

    @invariant()
    def every_replica_applies_what_was_committed_and_nothing_else(self):
        if not hasattr(self, "swarm"):
            return
        held: dict[tuple[int, Version], list[tuple[int, ...]]] = {}
        for worker in self.swarm.workers.values():
            machine = worker.machine
            assert all(sorted(names) == EVERYTHING for names in worker.parameters)
            if machine.parameters.is_ready and not worker.tasks:
                assert len(worker.parameters) == machine.state.step
                place = (machine.membership.stage, machine.state.version)
                assert held.setdefault(place, worker.parameters) == worker.parameters

    @invariant()
    def ledgers_say_what_is_in_the_accumulators(self):
        for worker in self.swarm.workers.values() if hasattr(self, "swarm") else ():
            if not worker.tasks:
                assert sorted(worker.accumulator) == list(ledger.members(worker.machine.state.ledger))

    def teardown(self):
        if not hasattr(self, "swarm"):
            return
        swarm = self.swarm
        swarm.muted_until_s.clear()
        self.fair_turns(FAIR_TURNS)
        assert swarm.exit == Exit(code=0, text="all steps are done")
        assert swarm.version[1] == STEPS
        model = swarm.disk[swarm.version]
        assert set(model) == {(layer, part) for layer in range(STAGES) for part in STATE_FILES}
        for content in model.values():
            (applied,) = content.frames
            assert [sorted(names) for names in applied] == [EVERYTHING] * STEPS
        self.every_commit_counts_every_microbatch_once_at_every_stage()
        self.every_replica_applies_what_was_committed_and_nothing_else()


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = hypothesis_settings(derandomize=True, max_examples=80, stateful_step_count=50)
