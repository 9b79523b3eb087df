"""Workers and brokers as far as the trainer has to do with them, for whole runs without a payload.

A worker is its real machine and a compute thread of symbols: a gradient is the name of a microbatch, parameters the
list of all gradients that were ever applied. A broker is the right to have its stage's microbatches counted: it gets
one with an attempt whose mask has its stage, lends it to one worker of its view at a time, lends it again
when that worker has left, and loses it to a Void, with its own death, or with the step.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from stages.tasks import (
    Adopt,
    Adopted,
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Discard,
    Export,
    Exported,
    Import,
    Imported,
    Ran,
    Reset,
    Run,
    ShareTaken,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    TakeShare,
    WasReset,
)
from stages.worker import WorkerMachine
from tests.letters import ack, broker_heartbeat, credit, drained, heartbeat_ack, job, load
from zswarm import ledger
from zswarm.ids import Address, Direction, JobKind, JobStatus, NodeId, Role, Session, StatePart
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Attach, Fence, Forward, Key, Ready, Result, View, Void, Welcome

TRAINER_AT = Address("sim://trainer")
MUCH_BYTES = 10**9
Version = tuple[int, int]


class Computer:
    """A worker: its machine and a compute thread that does what it is told."""

    def __init__(self, index: int, *, life: int = 0) -> None:
        self.index, self.life = index, life
        self.address = Address(f"sim://w{index}")
        self.machine = WorkerMachine(
            node=NodeId(f"w{index}"),
            boot_nonce=1000 * life + index,
            addresses=(self.address,),
            coordinator=TRAINER_AT,
            random=lambda: 0.5,
        )
        self.tasks: deque[Any] = deque()
        self.accumulator: list[int] = []
        self.results: dict[int, tuple[int, ...]] = {}
        self.parameters: list[tuple[int, ...]] = []
        self.copy: list[tuple[int, ...]] = []
        self.retained: dict[int, list[tuple[int, ...]]] = {}
        self.gradients: dict[int, tuple[int, ...]] = {}
        self.imported: dict[StatePart, list[tuple[int, ...]]] = {}
        self.shares: dict[int, list[int]] = {}
        self.has_ended = False

    @property
    def digest(self) -> int:
        return zlib.crc32(repr(self.parameters).encode())

    def carry_out(self, task: Any) -> Any:
        match task:
            case Build():
                self.parameters = []
                self.reset()
                return Built(
                    num_parameters=1,
                    parameter_digest=self.digest,
                    job_s=0.0,
                    round_s=0.1,
                )
            case Run():
                if task.accumulate:
                    self.accumulator.append(task.key[3])
                done = {"status": JobStatus.DONE, "y": None, "kept": False, "compute_s": 0.1}
                return Ran(lease=task.lease, loss_sum=1.0, num_targets=1, **done)
            case Reset():
                self.reset()
                return WasReset()
            case Apply():
                self.apply(task)
                return Applied(step=task.step, parameter_digest=self.digest)
            case Export():
                content = load(self.content(task), 10)
                return Exported(part=task.part, layer=task.layer, offset_bytes=0, total_bytes=10, load=content)
            case Import():
                self.take(task)
                return Imported(part=task.part)
            case TakeShare():
                assert task.ledger in self.shares, "a share is taken that is not here"
                self.accumulator = self.accumulator + self.shares.pop(task.ledger)
                return ShareTaken()
            case Adopt():
                self.reset()
                return Adopted(parameter_digest=self.digest)
            case _:
                return self.reduce(task)

    def content(self, task: Export) -> tuple[Any, ...]:
        """What is in a file of the only layer."""
        if task.part is StatePart.SHARE:
            return tuple(self.accumulator)
        if task.part is StatePart.GRADIENT:
            return (task.step, self.gradients[task.step])
        if task.step is not None:
            return tuple(self.retained[task.step])
        return tuple(self.copy if task.from_snapshot else self.parameters)

    def take(self, task: Import) -> None:
        """Files are of one range."""
        (content,) = task.load.frames
        if task.part is StatePart.SHARE:
            assert sorted(content) == list(ledger.members(task.ledger)), "a share is not what is said of it"
            kept = {ledger_: share for ledger_, share in self.shares.items() if ledger_ == task.kept}
            self.shares = kept | {task.ledger: list(content)}
            return
        if task.part is StatePart.GRADIENT:
            step, update = content
            assert len(self.parameters) == step, "a step is taken where the one before it has led"
            self.parameters.append(update)
            return
        self.imported[task.part] = list(content)
        if task.part is StatePart.OPTIMIZER:
            self.parameters = self.imported.pop(StatePart.PARAMETERS)
            assert self.imported.pop(StatePart.OPTIMIZER) == self.parameters

    def reduce(self, task: Any) -> Any:
        """The part that a thread has in a round."""
        match task:
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
        raise AssertionError(f"no such task: {task}")

    def apply(self, task: Apply) -> None:
        assert len(self.parameters) == task.step, "steps are applied one after the other, once"
        retained = {**self.retained, task.step: list(self.parameters)}
        self.retained = {step: retained[step] for _, step in task.retained}
        self.parameters.append(self.results.pop(task.round))
        updates = {**self.gradients, task.step: self.parameters[-1]}
        self.gradients = {step: updates[step] for step in task.gradients}
        self.reset()
        if task.snapshot:
            self.copy = list(self.parameters)

    def reset(self) -> None:
        self.accumulator, self.results, self.shares = [], {}, {}


@dataclass(slots=True)
class Right:
    """To have a microbatch counted at a stage, once."""

    attempt: int
    lease: int = 0
    lent_to: int | None = None
    """A session of the view."""
    is_done: bool = False


class Broker:
    """See the module. Messages are handed over one by one; what follows is returned."""

    def __init__(self, index: int, *, life: int = 0) -> None:
        self.index, self.life = index, life
        self.address = Address(f"sim://b{index}")
        self.work_address = Address(f"sim://b{index}/work")
        self.membership = Membership(
            node=NodeId(f"b{index}"),
            boot_nonce=1000 * life + 900 + index,
            role=Role.BROKER,
            addresses=(self.address, self.work_address),
            coordinator=TRAINER_AT,
        )
        self.num_reports = 0
        self.num_leases = 0
        self.begin()

    @property
    def stage(self) -> int:
        return self.membership.stage

    def begin(self) -> None:
        """Hold nothing."""
        self.rights: dict[tuple[int, int, int], Right] = {}
        """By (branch, step, microbatch)."""
        self.passed: set[Key] = set()
        self.floors: dict[tuple[int, int, int], int] = {}
        self.leavers: set[int] = set()
        self.voided = 0
        self.version: Version = (0, 0)

    def handle(self, message: Any, frames: Any, peer: Any) -> list[Send]:
        me = self.membership
        match message:
            case Welcome():
                me.welcome(message)
            case _ if not me.is_welcome or me.is_foreign(message):
                pass
            case Fence() if me.is_fenced(message):
                self.begin()
                me.begin_new_life()
                return [me.register()]
            case View() if me.see(message, frames):
                return self.see()
            case Void():
                return self.void(message)
            case Attach() if message.session == 0:
                return [Send(peer=peer, message=self.mine(credit(me.session, MUCH_BYTES, trainer=message.generation)))]
            case Ready():
                self.version = max(self.version, (message.branch, message.step))
                self.rights = {place: right for place, right in self.rights.items() if place[:2] >= self.version}
                return [Send(peer=peer, message=heartbeat_ack(me.view, of=me.session)), *self.let_go(message, peer)]
            case Result():
                self.result(message)
        return []

    def mine(self, message: Any) -> Any:
        """Return a message of `letters` as one of this run's present generation."""
        return replace(message, **self.membership.header())

    def let_go(self, message: Ready, peer: Any) -> list[Send]:
        """Tell a worker that leaves that it has nothing to do any more, if that is so."""
        if message.leaves:
            self.leavers.add(message.session)
        is_lent = any(right.lent_to == message.session and not right.is_done for right in self.rights.values())
        if is_lent or not message.leaves:
            return []
        return [Send(peer=peer, message=self.mine(drained(self.membership.session, worker=message.session)))]

    def see(self) -> list[Send]:
        live = {member.member for member in self.membership.members}
        for place, right in self.rights.items():
            while right.lent_to not in live and self.has_left(right.lent_to, place):
                right.lent_to, right.is_done = self.membership.bequests[right.lent_to].heir, True
            if right.lent_to is not None and right.lent_to not in live:
                right.lent_to, right.is_done = None, False
        return [self.report()]

    def has_left(self, worker: Session | None, place: tuple[int, int, int]) -> bool:
        bequest = self.membership.bequests.get(worker)
        return bequest is not None and bequest.ledger >> place[2] & 1 == 1

    def void(self, message: Void) -> list[Send]:
        for microbatch in ledger.members(ledger.from_bytes(message.ledger)):
            place = (message.branch, message.step, microbatch)
            self.floors[place] = max(message.attempt, self.floors.get(place, 0))
            if place in self.rights and self.rights[place].attempt < message.attempt:
                del self.rights[place]
        self.voided = max(self.voided, message.attempt)
        return [self.report()]

    def take(self, message: Forward) -> bool:
        """Let an attempt pass through this stage, with a right if its mask has the stage; False for the second time."""
        place = (message.branch, message.step, message.microbatch)
        is_stale = message.attempt < self.floors.get(place, 0) or place[:2] < self.version
        if not self.membership.is_welcome or is_stale or message.key in self.passed:
            return False
        self.passed.add(message.key)
        if ledger.from_bytes(message.mask) >> self.stage & 1:
            assert place not in self.rights, "a later attempt is begun when all earlier ones are void"
            self.rights[place] = Right(message.attempt)
        return True

    def acknowledge(self, message: Forward, peer: Any) -> Send:
        branch, step, purpose, microbatch, attempt = message.key
        of = {"branch": branch, "step": step, "purpose": purpose, "attempt": attempt}
        answer = ack(self.membership.session, microbatch, Direction.FORWARD, **of)
        return Send(peer=peer, message=self.mine(answer))

    def result(self, message: Result) -> None:
        for right in self.rights.values():
            if right.lease == message.lease and right.lent_to == message.session and not right.is_done:
                if message.status is JobStatus.DONE:
                    right.is_done = True
                else:
                    right.lent_to = None

    def jobs(self, nature: Random, share: float) -> Iterator[Send]:
        """Lend what is not lent, and repeat what is."""
        me = self.membership
        workers = {m.member: m.addresses[0] for m in me.members if m.role is Role.WORKER and m.stage == self.stage}
        able = sorted(workers.keys() - self.leavers)
        for (branch, step, microbatch), right in self.rights.items():
            if right.is_done or not workers or nature.random() >= share:
                continue
            if right.lent_to is None:
                if not able:
                    continue
                self.num_leases += 1
                right.lease, right.lent_to = self.num_leases, nature.choice(able)
            of = {"branch": branch, "step": step, "attempt": right.attempt, "route": (me.session,) * 2}
            letter = job(me.session, right.lease, JobKind.BACKWARD, microbatch, worker=right.lent_to, emit=False, **of)
            yield Send(peer=workers[right.lent_to], message=self.mine(letter), frames=("dy",))

    def forget_kept(self) -> None:
        """Credit needs the room of what is done."""
        self.rights = {place: right for place, right in self.rights.items() if not right.is_done}

    def tick(self) -> Send:
        return self.report() if self.membership.is_welcome else self.membership.register()

    def report(self) -> Send:
        self.num_reports += 1
        branch, step = self.version
        of = {"active": self.active(branch, step), "ahead": self.active(branch, step + 1), "voided": self.voided}
        place = {"branch": branch, "step": step, "stage": self.stage, "view": self.membership.view}
        message = broker_heartbeat(self.membership.session, self.num_reports, **of, **place)
        return Send(peer=TRAINER_AT, message=self.mine(message))

    def active(self, branch: int, step: int) -> int:
        """Return what this broker will do something about."""
        places = [place for place, right in self.rights.items() if not right.is_done]
        return sum(1 << place[2] for place in places if place[:2] == (branch, step))
