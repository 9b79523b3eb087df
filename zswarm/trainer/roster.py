"""Who is in the swarm: sessions, places, and what each process last said of itself.

A process is known by its node and its boot nonce: the same pair gets the same session again however
often it asks; a new nonce of the same node is a new life, and the old one is over. The coordinator alone
decides who is in; the view with the next number says so to everybody. A session that has been given up
leaves the roster for good: it is never issued again, not by a later generation of the trainer either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from zswarm import ledger, limits
from zswarm.bequests import Left
from zswarm.ids import (
    TRAINER,
    Address,
    Attempt,
    Branch,
    Leaving,
    Microbatch,
    NodeId,
    Peer,
    Role,
    Round,
    Session,
    Stage,
    Step,
    Version,
)
from zswarm.messages import BrokerHeartbeat, Member, Register, WorkerHeartbeat
from zswarm.trainer.recovery import RecoveredMember


@dataclass(slots=True, kw_only=True)
class Record:
    """One process."""

    session: Session
    node: NodeId
    boot_nonce: int
    role: Role
    stage: Stage
    addresses: tuple[Address, ...]
    peer: Peer
    heard_at_s: float
    is_silent: bool = False
    """It is from the log of an earlier generation and has not spoken to this one."""
    gone_at_s: float | None = None
    """Since when the connection that it spoke over is known to be gone."""
    has_left: bool = False
    """It has said goodbye while the run is closing."""
    is_ready: bool = False
    report: int = 0
    reported_at_s: float = float("-inf")
    reported_view: int = 0
    version: Version = (Branch(0), Step(0))
    ledger: int = 0
    pending: int = 0
    """Bitmap of microbatches of `version` that it will do something about; a broker's queued and leased ones."""
    passed: int = 0
    """What was `pending` at some moment since `passed_from_s`, and is not any more."""
    passed_from_s: float = float("-inf")
    ahead: int = 0
    """A broker's, of the step after it, at some moment since the report before."""
    voided: Attempt = Attempt(0)
    prepared: Round = Round(0)
    accused: tuple[Session, ...] = ()
    busy_s: float = 0.0
    job_s: float = 0.0
    usual_s: float = 0.0
    parameter_digest: int = 0
    leaving: Leaving = Leaving.NO
    sent_bytes: int = 0
    loss_sum: float | None = 0.0
    num_targets: int = 0
    inherits: Session = TRAINER
    inherited: int = 0
    """Bitmap of what the copy consists of that a worker holds of another one's share."""

    @property
    def place(self) -> str:
        """Say where it works, for people."""
        return f"{self.node} (stage {self.stage})"

    @property
    def host(self) -> str:
        """The machine that it is on: those of one machine often leave together."""
        return host_of(self.addresses[0])

    def holds(self, version: Version) -> bool:
        """Does a worker hold its stage's parameters of this version?"""
        return self.is_ready and self.version == version

    def may_hang(self, heartbeat_s: float) -> bool:
        """Was a worker at one task for longer than that takes, when it last said for how long?"""
        return self.busy_s > max(heartbeat_s, limits.MAY_HANG_TIMES * self.usual_s)

    def note(self, message: WorkerHeartbeat | BrokerHeartbeat, now: float) -> bool:
        """Take over what it reports; False if a newer report is known."""
        self.sent_bytes = max(self.sent_bytes, message.sent_bytes)
        if message.report <= self.report:
            return False
        version, passed = (message.branch, message.step), ledger.from_bytes(message.passed)
        if version == self.version and self.passed:
            self.passed |= passed
        else:
            self.passed, self.passed_from_s = passed, self.reported_at_s
        self.version = version
        self.report, self.reported_at_s = message.report, now
        self.reported_view = message.view
        self.voided, self.accused = message.voided, message.accused
        self.leaving = message.leaving
        if isinstance(message, BrokerHeartbeat):
            self.pending, self.ahead = ledger.from_bytes(message.active), ledger.from_bytes(message.ahead)
            return True
        self.is_ready = message.ready
        self.ledger, self.pending = ledger.from_bytes(message.ledger), ledger.from_bytes(message.pending)
        self.prepared, self.parameter_digest = message.prepared, message.parameter_digest
        self.busy_s, self.job_s, self.usual_s = message.busy_s, message.job_s, message.usual_s
        self.loss_sum, self.num_targets, self.inherits = message.loss_sum, message.num_targets, message.inherits
        self.inherited = ledger.from_bytes(message.inherited)
        return True


def host_of(address: Address) -> str:
    """Return the machine of a process that listens there, as far as that tells; with several machines it is an IP address."""
    where = address.partition("://")[2]
    return where.rpartition(":")[0] or where.partition("/")[0]


class Roster:
    """See the module. `records` holds the live ones, sorted by session."""

    def __init__(self, *, num_stages: int, first_session: Session) -> None:
        self._num_stages = num_stages
        self._next_session = first_session
        self._by_node: dict[NodeId, Session] = {}
        self._ended: dict[NodeId, deque[int]] = {}
        """The nonces of lives that have ended; the node of which one has ended last comes last."""
        self._wanted: dict[NodeId, tuple[Role, Stage]] = {}
        """Where the next life of a process shall be; the one that was moved last comes last."""
        self._places: dict[tuple[Role, Stage], tuple[Record, ...]] = {}
        self.records: dict[Session, Record] = {}
        self.view = 1
        self.bequests: dict[Session, Left] = {}
        """By leaver, whose what of its count is by now, in the step in work."""
        self.bequeathed_at_s: dict[Microbatch, float] = {}
        """Since when a microbatch is an heir's, who need not have said so yet."""
        self.lost_view = 0
        """The view with which the last process left."""
        self.lost_at_s = float("-inf")
        self.broker_heard_at_s: dict[Stage, float] = {}
        """When a stage's brokers were last heard that are out."""
        self._members: tuple[int, tuple[Member, ...]] = (1, ())
        self._departed_bytes = 0
        self.num_workers = 0
        """Lives of workers that have ever joined in this generation."""

    @property
    def sent_bytes(self) -> int:
        """Everything that all processes, also those that have left, say that they have put on the wire."""
        return self._departed_bytes + sum(record.sent_bytes for record in self.records.values())

    def take_over(self, member: RecoveredMember, now: float) -> None:
        """Go on with a session of the log; it is silent until it speaks."""
        self._add(
            Record(
                session=member.session,
                node=member.node,
                boot_nonce=member.boot_nonce,
                role=member.role,
                stage=member.stage,
                addresses=member.addresses,
                peer=member.addresses[0],
                heard_at_s=now,
                is_silent=True,
            )
        )

    def register(self, message: Register, peer: Peer, now: float, *, place: Stage | None = None) -> tuple[Record, bool]:
        """Return the record of a process, and whether it is a new one; its node must have no other life here.

        `place` is where a newcomer belongs; None for the stage with the fewest of its role.
        """
        known = self.known(message)
        if known is not None:
            # That it asks again says that it has not heard the answer: it has not spoken as a member yet.
            known.peer, known.gone_at_s = peer, None
            return known, False
        session = self._next_session
        self._next_session = Session(session + 1)
        record = Record(
            session=session,
            node=message.node,
            boot_nonce=message.boot_nonce,
            role=message.role,
            stage=self._stage_for(message, place),
            addresses=message.addresses,
            peer=peer,
            heard_at_s=now,
        )
        self._add(record)
        return record, True

    def _add(self, record: Record) -> None:
        self.records[record.session] = record
        self._by_node[record.node] = record.session
        self._places[record.role, record.stage] = (*self.of(record.role, record.stage), record)
        self.num_workers += record.role is Role.WORKER
        self.view += 1

    def life_of(self, node: NodeId) -> Record | None:
        """Return the live record of a node."""
        session = self._by_node.get(node)
        return self.records[session] if session is not None else None

    def known(self, message: Register) -> Record | None:
        """Return the record of a life that has registered before."""
        record = self.life_of(message.node)
        return record if record is not None and record.boot_nonce == message.boot_nonce else None

    def is_late_copy(self, message: Register) -> bool:
        """Is this the Register of a life that has ended, while its node lives another one?"""
        return message.boot_nonce in self._ended.get(message.node, ()) and message.node in self._by_node

    def is_comeback(self, message: Register) -> bool:
        """Is this the next life of one that has ended, while another process lives under its node's name?

        A process that is fenced asks again with the next nonce; one that is started anew has a random one.
        """
        live = self.life_of(message.node)
        before = (message.boot_nonce - 1) % 2**64
        return live is not None and live.boot_nonce != before and before in self._ended.get(message.node, ())

    def remove(self, session: Session, now: float, *, is_loss: bool = True) -> Record:
        """Take a process out of the swarm for good; `is_loss`: with something in hand, perhaps."""
        record = self.records.pop(session)
        del self._by_node[record.node]
        others = tuple(other for other in self.of(record.role, record.stage) if other is not record)
        self._places[record.role, record.stage] = others
        if record.role is Role.BROKER:
            before_s = self.broker_heard_at_s.get(record.stage, record.heard_at_s)
            self.broker_heard_at_s[record.stage] = max(before_s, record.heard_at_s)
        self._note_end(record)
        self._departed_bytes += record.sent_bytes
        self.view += 1
        if is_loss:
            self.note_loss(now)
        return record

    def is_informed(self, session: Session) -> bool:
        """Does a process know the newest view?"""
        return self.records[session].reported_view >= self.view

    def bequeath(self, leaver: Record, heir: Record, now: float) -> None:
        """What somebody had counted who has left, and the heir has a copy of, is the heir's for the rest of the step."""
        self.bequests[leaver.session] = Left(heir.session, heir.inherited)
        self.bequeathed_at_s.update(dict.fromkeys(ledger.members(heir.inherited), now))

    def forget_bequests(self) -> None:
        """Another step is in work."""
        self.bequests.clear()
        self.bequeathed_at_s.clear()

    def _note_end(self, record: Record) -> None:
        lives = self._ended.pop(record.node, None) or deque(maxlen=limits.MAX_ENDED_LIVES)
        lives.append(record.boot_nonce)
        self._ended[record.node] = lives
        if len(self._ended) > limits.MAX_ENDED_NODES:
            del self._ended[next(iter(self._ended))]

    def note_loss(self, now: float) -> None:
        """Something may have been lost: the reports that count are those that know the present view."""
        self.lost_view, self.lost_at_s = self.view, now

    def want(self, node: NodeId, role: Role, stage: Stage) -> None:
        """Let the next life of a process be of this stage."""
        self._wanted.pop(node, None)
        self._wanted[node] = (role, stage)
        if len(self._wanted) > limits.MAX_ENDED_NODES:
            del self._wanted[next(iter(self._wanted))]

    def num_wanted(self, stage: Stage) -> int:
        """Return how many workers are on their way to a stage."""
        return sum(place == (Role.WORKER, stage) for place in self._wanted.values())

    def _stage_for(self, message: Register, place: Stage | None) -> Stage:
        """Where it was moved to, or where it belongs, if there is room. Else a new process, or a broker that comes back, goes
        where the fewest are; a worker that comes back, where it was. But a stage that nobody is in comes first, unless nobody
        is where it was, either."""
        role, wanted = self._wanted.pop(message.node, (None, Stage(0)))
        if role is message.role and len(self.of(role, wanted)) < limits.MAX_PARTICIPANTS:
            return wanted
        emptiest, own = self._emptiest_stage(message.role), message.stage
        has_room = place is not None and len(self.of(message.role, place)) < limits.MAX_PARTICIPANTS
        if own is None or own >= self._num_stages:
            return place if place is not None and has_room else emptiest
        num_own, least = len(self.staying(message.role, own)), len(self.staying(message.role, emptiest))
        if num_own > least and (message.role is Role.BROKER or not least):
            return emptiest
        return place if place is not None and has_room else own

    def _emptiest_stage(self, role: Role) -> Stage:
        counts = [len(self.staying(role, Stage(stage))) for stage in range(self._num_stages)]
        return Stage(counts.index(min(counts)))

    def is_full(self, role: Role) -> bool:
        """Is there no room for one more, neither in a stage nor in a view?"""
        least = min(len(self.of(role, Stage(stage))) for stage in range(self._num_stages))
        return least >= limits.MAX_PARTICIPANTS or len(self.records) >= limits.MAX_MEMBERS

    def of(self, role: Role, stage: Stage) -> tuple[Record, ...]:
        """Return the processes of a role in a stage, sorted by session."""
        return self._places.get((role, stage), ())

    def staying(self, role: Role, stage: Stage) -> tuple[Record, ...]:
        """Return those of them that have not been asked to leave."""
        return tuple(record for record in self.of(role, stage) if record.leaving is Leaving.NO)

    def workers(self) -> Iterator[Record]:
        """Yield all workers, sorted by session."""
        return (r for r in self.records.values() if r.role is Role.WORKER)

    @property
    def num_live_workers(self) -> int:
        """Workers that are in the swarm."""
        return sum(len(records) for (role, _), records in self._places.items() if role is Role.WORKER)

    def has(self, *, workers: int, brokers: int) -> bool:
        """Are there that many workers for each stage, ready to compute, and brokers, and no stage without either?

        They need not be dealt evenly: some may have come back to their places after others had filled these.
        """
        stages = [Stage(stage) for stage in range(self._num_stages)]
        ready = [sum(w.is_ready for w in self.staying(Role.WORKER, stage)) for stage in stages]
        present = [len(self.staying(Role.BROKER, stage)) for stage in stages]
        is_enough = sum(ready) >= workers * len(stages) and sum(present) >= brokers * len(stages)
        return is_enough and min(ready) > 0 and min(present) > 0

    def members(self) -> tuple[Member, ...]:
        """Return the view's content, the same object as long as the view is the same."""
        number, content = self._members
        if number != self.view:
            content = tuple(
                Member(member=r.session, node=r.node, role=r.role, stage=r.stage, addresses=r.addresses)
                for r in self.records.values()
            )
            self._members = (self.view, content)
        return content

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running: nobody else is to blame for what it did not hear meanwhile."""
        self.lost_at_s += stall_s
        for stage in self.broker_heard_at_s:
            self.broker_heard_at_s[stage] += stall_s
        for record in self.records.values():
            record.heard_at_s += stall_s
            if record.gone_at_s is not None:
                record.gone_at_s += stall_s
