"""Who has asked to leave, when it may go without a loss, and who takes over from the last of a stage.

    a worker   DRAINING --no job, no output, let go by its brokers--> IDLE --its count is certain, or another's, its
               state is not needed--> out: "drained"
    a broker   DRAINING --home to nothing, and nothing on its way--> IDLE --> out: "drained"

A worker is idle as far as the brokers of its view know, so that has to be the newest. What it has counted is certain when
it has counted nothing, or the step is committed, or another worker holds it as well (`bequests.py`). Its state is not
needed when another worker of the stage holds it, or will, and nobody is getting it from this one. Until then it waits,
within the time that it gives itself; then it says Stop, and what it had counted is done again. Where everybody of a stage
and role leaves, a process of a stage with several is sent there at once: no step can be completed before, so that to wait
for the end of one would be in vain. What it had counted is done again. So it is where the last of a
stage has gone by itself.

Who leaves is seldom alone: a machine that is switched off or paused asks all its processes at once, and what they say comes
in any order. So whoever is of a machine that somebody has said that he leaves takes over only if nobody else can, and is not
sent to another stage before he had time to say so, too; and where one was sent who says it after all, another is
sent at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from zswarm import limits
from zswarm.ids import Attempt, Leaving, NodeId, Role, Session, Stage
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import BrokerHeartbeat, Fence, Message, Stop, WorkerHeartbeat
from zswarm.trainer.archive import Archive
from zswarm.trainer.bequests import Bequests
from zswarm.trainer.commit import Committer
from zswarm.trainer.log_lines import leave_record
from zswarm.trainer.moves import Relocation
from zswarm.trainer.restores import Restorer
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings

DRAINED = "drained"
Place = tuple[Role, Stage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Successor:
    """Who was sent to a place, from which life, and when."""

    node: NodeId
    session: Session
    sent_at_s: float


class Departures:
    """See the module."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        roster: Roster,
        committer: Committer,
        restorer: Restorer,
        archive: Archive,
        header: Header,
    ) -> None:
        heartbeat_s = settings.heartbeat_s
        self._roster = roster
        self._committer = committer
        self._restorer = restorer
        self._archive = archive
        self._header = header
        self._company = Company(heartbeat_s=heartbeat_s)
        self._bequests = Bequests(settings, roster, committer, header)
        self._patience_s = limits.EMPTY_STAGE_HEARTBEATS * heartbeat_s
        self._heartbeat_s = heartbeat_s
        self._asked: set[Session] = set()
        self._spared_at_s: dict[NodeId, float] = {}
        """Whose device may have hung lately, and when it was told that others hold its stage's state."""
        self._deserted: set[Place] = set()
        """Places that somebody has left by himself who was the last."""
        self._sent: dict[Place, Successor] = {}
        """Who was sent last to a place that everybody leaves."""

    def note(self, record: Record, now: float) -> None:
        """Take in a report."""
        self._bequests.note(record, now)
        if record.leaving is not Leaving.NO:
            self._company.note(record.host, now, is_news=record.session not in self._asked)
            self._asked.add(record.session)

    def overhear(self, message: Message) -> None:
        """Take in the word of somebody who is out: who was sent to another stage may have been asked to leave meanwhile."""
        says_so = isinstance(message, (WorkerHeartbeat, BrokerHeartbeat)) and message.leaving is not Leaving.NO
        if says_so or isinstance(message, Stop):
            self._sent = {place: sent for place, sent in self._sent.items() if sent.session != message.session}

    @property
    def are_none(self) -> bool:
        """Does nobody leave, and was no place left by all?"""
        return not self._asked and not self._deserted

    def due(self, *, is_voiding: bool) -> Iterator[Session]:
        """Yield who may go now; whoever is yielded is to be taken out before the next is asked for.

        Nothing changes hands while something `is_voiding`: which stages lack a microbatch is known when everybody has
        answered, and an heir may have answered before it counts what it has inherited.
        """
        for session in self._here():
            if self._may_go(self._roster.records[session], is_voiding=is_voiding):
                yield session

    def orders(self, attempt: Attempt, now: float) -> list[Send]:
        """Have what they have counted handed over to others; `attempt` is the newest."""
        return self._bequests.orders(self._here(), attempt, now, avoid=self._company.hosts(now))

    def copies(self, attempt: Attempt, now: float, *, waiting: Collection[Stage]) -> list[Send]:
        """Have copies made of what those have counted who stay: anybody may be lost; stages `waiting` have time for it."""
        return self._bequests.copies(attempt, now, avoid=self._company.hosts(now), waiting=waiting)

    def _here(self) -> list[Session]:
        self._asked.intersection_update(self._roster.records)
        return sorted(self._asked)

    def _may_go(self, record: Record, *, is_voiding: bool) -> bool:
        if record.leaving is not Leaving.IDLE or record.role is Role.BROKER:
            return record.leaving is Leaving.IDLE
        if not self._roster.is_informed(record.session):
            # A broker that it does not know of may have given it a job.
            return False
        if self._restorer.gives(record.session) or self._archive.needs(record.session):
            return False
        is_handed_over = not is_voiding and self._bequests.heir_of(record) is not None
        return (is_handed_over or self._committer.is_certain(record)) and self._is_spare(record)

    def _is_spare(self, worker: Record) -> bool:
        """Is there somebody else to get the stage's state from, if this worker holds it?"""
        committer = self._committer
        if not committer.has_state(worker):
            return True
        if committer.step in (0, self._archive.step):
            return True
        others = [other for other in self._roster.of(Role.WORKER, worker.stage) if other is not worker]
        return any(map(committer.has_state, others))

    def take_out(
        self, session: Session, reason: str | None, now: float, *, is_loss: bool, may_leave: bool
    ) -> tuple[Record, list[Send | Append]]:
        """Take a process out of the swarm; returns its last record, and what the log and the others are told of that.

        No reason: it goes by itself. With `may_leave` what there is a copy of is left to whoever holds that.
        """
        record = self._roster.records[session]
        heir = self._bequests.heir_of(record) if reason == DRAINED else None
        self._roster.remove(session, now, is_loss=is_loss)
        aborts = self._committer.given_up(record)
        if is_loss and record.role is Role.WORKER:
            self._bequests.lost()
            heir = self._bequests.heir_of_lost(record, now) if may_leave else None
        if reason in (None, DRAINED):
            self._sent = {place: sent for place, sent in self._sent.items() if sent.node != record.node}
            if not self._roster.of(record.role, record.stage):
                self._deserted.add((record.role, record.stage))
        num_lost = 0
        if heir is not None:
            self._bequests.take_out(record, heir, now)
        if record.version == self._committer.version:
            left = heir.inherited if heir is not None else 0
            num_lost = (record.ledger & ~(left | self._committer.covered(record.stage))).bit_count()
        reason = reason or _farewell(record, num_lost)
        leave = leave_record(record, reason, num_lost=num_lost, now=now, heir=heir)
        return record, [Append(record=leave, durable=True), *aborts]

    def fence(self, record: Record, now: float) -> Send:
        """Tell a process that it is out of the swarm, and, if its device may hang, whether its state is safe without it.

        Not soon again: a device that does not hang, but is slow from time to time, has to learn how long that takes.
        """
        forgiven_s = now - limits.FORGIVEN_HEARTBEATS * self._heartbeat_s
        self._spared_at_s = {node: at_s for node, at_s in self._spared_at_s.items() if at_s > forgiven_s}
        may_hang = record.may_hang(self._heartbeat_s) and record.gone_at_s is None
        is_first = record.node not in self._spared_at_s
        is_spare = may_hang and is_first and self._restorer.is_safe(record.stage, checkpoint_step=self._archive.step)
        if is_spare:
            self._spared_at_s[record.node] = now
        return Send(peer=record.peer, message=Fence(**self._header, fenced=record.session, is_spare=is_spare))

    # -- who takes over ------------------------------------------------------------------------------

    def successors(self, now: float) -> Iterator[Relocation]:
        """Yield who is to take a place that everybody leaves, or has left."""
        records = self._roster.records
        self._deserted = {place for place in self._deserted if not self._roster.of(*place)}
        left = {(records[s].role, records[s].stage) for s in self._asked if s in records}
        for role, stage in sorted(left | self._deserted):
            if self._roster.staying(role, stage) or self._is_coming((role, stage), now):
                continue
            if (chosen := self._spare_elsewhere(role, stage, now)) is not None:
                self._sent[role, stage] = Successor(node=chosen.node, session=chosen.session, sent_at_s=now)
                yield Relocation(record=chosen, stage=stage)

    def _is_coming(self, place: Place, now: float) -> bool:
        """Is somebody on the way there, who has not said meanwhile that he leaves?"""
        sent = self._sent.get(place)
        if sent is None or now - sent.sent_at_s >= self._patience_s:
            return False
        arrived = self._roster.life_of(sent.node)
        return arrived is None or arrived.leaving is Leaving.NO

    def _spare_elsewhere(self, role: Role, stage: Stage, now: float) -> Record | None:
        """Of the stage with most of this role the one who has least to lose, the youngest of equals."""
        pools = [self._able(role, Stage(other)) for other in range(self._committer.num_stages) if other != stage]
        avoid = self._company.hosts(now)
        richest = max((tuple(r for r in pool if r.host not in avoid) for pool in pools), key=len, default=())
        if len(richest) < 2 and self._company.is_settled(now):
            richest = max(pools, key=len, default=())
        if len(richest) < 2:
            return None
        version = self._committer.version

        def loses(record: Record) -> int:
            counted = record.ledger if role is Role.WORKER else record.pending | record.ahead
            return counted.bit_count() if record.version == version else 0

        return min(reversed(richest), key=loses)

    def _able(self, role: Role, stage: Stage) -> tuple[Record, ...]:
        staying = self._roster.staying(role, stage)
        if role is Role.BROKER:
            return staying
        return tuple(worker for worker in staying if worker.holds(self._committer.version))


class Company:
    """Of which machines somebody has said that he leaves."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._heard_at_s: dict[str, float] = {}
        """By machine, when that was said last."""
        self._news_at_s = float("-inf")

    def note(self, host: str, now: float, *, is_news: bool) -> None:
        """Somebody says it; `is_news`: for the first time."""
        self._heard_at_s[host] = now
        if is_news:
            self._news_at_s = now

    def hosts(self, now: float) -> Collection[str]:
        """Return those of which that was said of late."""
        since_s = now - limits.COMPANY_HEARTBEATS * self._heartbeat_s
        self._heard_at_s = {host: at_s for host, at_s in self._heard_at_s.items() if at_s >= since_s}
        return self._heard_at_s.keys()

    def is_settled(self, now: float) -> bool:
        """Has everybody had time to say so who was asked together with the last one?"""
        return now - self._news_at_s >= limits.SETTLING_HEARTBEATS * self._heartbeat_s


def _farewell(record: Record, num_lost: int) -> str:
    """Return the reason of a process that goes by itself, in words."""
    if record.role is Role.BROKER:
        num_active = (record.pending | record.ahead).bit_count()
        return f"asked to leave, {_microbatches(num_active)} in its queue"
    return f"asked to leave, {_microbatches(num_lost)} redone"


def _microbatches(count: int) -> str:
    return f"{count} microbatch{'' if count == 1 else 'es'}"
