"""Who is in the swarm: sessions, places, and what each process last said of itself.

A process is known by its node and its boot nonce: the same pair gets the same session again however
often it asks; a new nonce is a new life. The coordinator alone decides who is in; the view with the
next number says so to everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zswarm import ledger, limits
from zswarm.ids import Address, Branch, NodeId, Peer, Role, Session, Stage, Step
from zswarm.messages import Member, Register, WorkerHeartbeat


@dataclass(slots=True, kw_only=True)
class Record:
    """One process."""

    session: Session
    node: NodeId
    role: Role
    stage: Stage
    addresses: tuple[Address, ...]
    peer: Peer
    heard_at_s: float
    has_left: bool = False
    refusal: str = ""
    """Why it was sent away, to be said to it whenever it speaks; empty for everybody else."""
    is_ready: bool = False
    report: int = 0
    version: tuple[Branch, Step] = (Branch(0), Step(0))
    ledger: int = 0
    parameter_digest: int = 0
    sent_bytes: int = 0

    def note(self, message: WorkerHeartbeat) -> bool:
        """Take over what a worker reports; False if a newer report is known."""
        if message.report <= self.report:
            return False
        self.report = message.report
        self.is_ready = message.ready
        self.version = (message.branch, message.step)
        self.ledger = ledger.from_bytes(message.ledger)
        self.parameter_digest = message.parameter_digest
        return True


class Roster:
    """See the module."""

    def __init__(self, *, num_stages: int, first_session: Session) -> None:
        self._num_stages = num_stages
        self._next_session = first_session
        self._by_life: dict[tuple[NodeId, int], Session] = {}
        self.records: dict[Session, Record] = {}
        self.view = 1
        self._members: tuple[int, tuple[Member, ...]] = (1, ())

    def register(self, message: Register, peer: Peer, now: float) -> tuple[Record, bool]:
        """Return the process's record and whether it is new."""
        life = (message.node, message.boot_nonce)
        session = self._by_life.get(life)
        if session is not None:
            record = self.records[session]
            record.peer, record.heard_at_s = peer, now
            return record, False
        session = self._next_session
        self._next_session = Session(session + 1)
        record = Record(
            session=session,
            node=message.node,
            role=message.role,
            stage=self._emptiest_stage(message.role),
            addresses=message.addresses,
            peer=peer,
            heard_at_s=now,
        )
        self._by_life[life] = session
        self.records[session] = record
        self.view += 1
        return record, True

    def known(self, message: Register) -> Record | None:
        """Return the record of a process that has registered before."""
        session = self._by_life.get((message.node, message.boot_nonce))
        return self.records[session] if session is not None else None

    def send_away(self, session: Session, reason: str) -> Record:
        """Take a process out of the swarm for good."""
        record = self.records[session]
        record.has_left, record.refusal = True, reason
        self.view += 1
        return record

    def _emptiest_stage(self, role: Role) -> Stage:
        counts = [len(self.of(role, Stage(stage))) for stage in range(self._num_stages)]
        return Stage(counts.index(min(counts)))

    def is_full(self, role: Role) -> bool:
        """Is there no room for one more, neither in a stage nor in a view?"""
        least = len(self.of(role, self._emptiest_stage(role)))
        return least >= limits.MAX_PARTICIPANTS or len(self.records) >= limits.MAX_MEMBERS

    def of(self, role: Role, stage: Stage) -> list[Record]:
        """Return the processes of a role in a stage, sorted by session."""
        return [r for r in self.records.values() if r.role is role and r.stage == stage and not r.has_left]

    def workers(self) -> Iterator[Record]:
        """Yield all workers, sorted by session."""
        return (r for r in self.records.values() if r.role is Role.WORKER and not r.has_left)

    def has(self, *, workers: int, brokers: int) -> bool:
        """Does every stage have that many workers, ready to compute, and brokers?"""
        return all(
            sum(w.is_ready for w in self.of(Role.WORKER, Stage(stage))) >= workers
            and len(self.of(Role.BROKER, Stage(stage))) >= brokers
            for stage in range(self._num_stages)
        )

    def members(self) -> tuple[Member, ...]:
        """Return the view's content, the same object as long as the view is the same."""
        number, content = self._members
        if number != self.view:
            content = tuple(
                Member(member=r.session, node=r.node, role=r.role, stage=r.stage, addresses=r.addresses)
                for r in self.records.values()
                if not r.has_left
            )
            self._members = (self.view, content)
        return content
