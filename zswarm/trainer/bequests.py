"""Who takes over what a worker has counted that leaves, or is lost, before the step is committed.

    a leaver  IDLE, has counted something --an heir is chosen--> Inherit, repeated --the heir holds all of it--> may go
    others    have counted for long, or wait for slower stages -> Inherit, repeated --the heir holds it--> until the next one

The heir is a worker of the same stage that stays: for a leaver who has counted least, if possible on a machine that nobody
leaves; for others the next one by session, if possible on another machine. Each holds a copy of one share. It holds it aside, so
that nothing has happened yet if either of them is lost meanwhile, or if the commit comes first. The owner is taken out by one
record of the log, which names the heir and what is in its copy, and every view until the end of the step does so, too: from
there on that is the heir's, also for brokers and for a trainer that starts again. What the owner has counted since is done again.
The heir's next reports say so; a round of the stage begins only with that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from zswarm import ledger, limits
from zswarm.bequests import Left, fit
from zswarm.ids import TRAINER, Attempt, Leaving, Role, Session, Stage, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Inherit
from zswarm.trainer.backups import Backups
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import CoordinatorSettings


@dataclass(slots=True, kw_only=True)
class Handover:
    """A copy of a share that is on its way, and whose it is."""

    heir: Session
    version: Version
    bequest: int
    """What the owner had counted when it was ordered."""
    begun_at_s: float
    sent_at_s: float = float("-inf")


class Bequests:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, committer: Committer, header: Header) -> None:
        self._roster = roster
        self._committer = committer
        self._header = header
        self._heartbeat_s = settings.heartbeat_s
        self._backups = Backups(settings.state_bytes, every_s=settings.backup_every_s)
        self._handovers: dict[Session, Handover] = {}
        """By owner."""
        self._bequeathed: dict[Session, Handover] = {}
        """By heir, what was last left to it, until it has had time to count it."""
        self._copied_at_s: dict[Session, float] = {}
        """By owner, when the copy was begun that was made last."""
        self._step: tuple[Version | None, float] = (None, 0.0)
        """The step in work, and since when."""

    # -- who leaves ----------------------------------------------------------------------------------

    def orders(self, leavers: Iterable[Session], attempt: Attempt, now: float, *, avoid: Collection[str]) -> list[Send]:
        """Tell heirs what they are to get from those of these that have nothing in hand any more.

        `attempt` is the newest that a Void has made room for; on the machines to `avoid` somebody leaves.
        """
        self._drop_bad()
        sends: list[Send] = []
        for session in leavers:
            leaver = self._roster.records[session]
            if not self._is_final(leaver):
                continue
            if (known := self._handovers.get(session)) is not None and known.bequest != leaver.ledger:
                del self._handovers[session]
            sends += self._ask(leaver, attempt, now, avoid)
        return sends

    def _is_final(self, leaver: Record) -> bool:
        """Is there something to hand over that will not change? No round may have begun that waits for it."""
        return leaver.leaving is Leaving.IDLE and self._roster.is_informed(leaver.session) and self._has_share(leaver)

    def heir_of(self, leaver: Record) -> Record | None:
        """Return who holds all that a leaver has counted, so that this one may go; None if nobody does."""
        heir = self._copyist_of(leaver) if self._is_final(leaver) else None
        is_whole = heir is not None and heir.inherited == leaver.ledger
        return heir if heir is not None and is_whole and self._has_room(heir.inherited) else None

    # -- who stays -----------------------------------------------------------------------------------

    def copies(self, attempt: Attempt, now: float, *, avoid: Collection[str], waiting: Collection[Stage]) -> list[Send]:
        """Have copies made of what has been counted since the last ones, where that is worth it; once per heartbeat.

        The stages that are `waiting` for slower ones have time for it.
        """
        self._backups.counted(self._roster.num_live_workers, now)
        version = self._committer.version
        if self._step[0] != version:
            self._step = (version, now)
            self._copied_at_s.clear()
        self._drop_bad()
        sends: list[Send] = []
        for worker in self._roster.workers():
            has_time = worker.stage in waiting
            if (
                worker.leaving is Leaving.NO
                and self._has_share(worker)
                and self._is_due(worker, now, has_time=has_time)
            ):
                sends += self._ask(worker, attempt, now, avoid)
        return sends

    def _is_due(self, worker: Record, now: float, *, has_time: bool) -> bool:
        if worker.session in self._handovers:
            return True
        due_s = now - self._backups.every_s(worker.stage, has_time=has_time)
        if due_s < self._copied_at_s.get(worker.session, self._step[1]) or not self._has_room(worker.ledger):
            return False
        copyist = self._copyist_of(worker)
        return bool(worker.ledger & ~(copyist.inherited if copyist is not None else 0))

    def note(self, heir: Record, now: float) -> None:
        """Take in a report: a copy of the share of somebody who stays may be complete."""
        handover, owner = self._handovers.get(heir.inherits), self._roster.records.get(heir.inherits)
        if handover is None or owner is None or owner.leaving is not Leaving.NO or handover.heir != heir.session:
            return
        if not handover.bequest & ~heir.inherited:
            del self._handovers[owner.session]
            self._copied_at_s[owner.session] = handover.begun_at_s
            self._backups.took(owner.stage, now - handover.begun_at_s)

    def heir_of_lost(self, lost: Record, now: float) -> Record | None:
        """Return who holds most of what a worker has counted that is out, if that is in no round that goes on; nobody who may be
        lost himself."""
        if not lost.holds(self._committer.version) or self._committer.is_open(lost.stage):
            return None
        heir = self._copyist_of(lost, heard_from_s=now - (1.0 + limits.DOUBT_HEARTBEATS) * self._heartbeat_s)
        return heir if heir is not None and self._has_room(heir.inherited) else None

    def _copyist_of(self, owner: Record, *, heard_from_s: float = float("-inf")) -> Record | None:
        """Return who holds the best copy of a worker's share that is complete, and could count it."""
        version = self._committer.version
        copyists = (
            worker
            for worker in self._roster.staying(Role.WORKER, owner.stage)
            if worker.inherits == owner.session
            and worker.inherited
            and worker.holds(version)
            and worker.heard_at_s >= heard_from_s
        )
        return max(copyists, key=lambda worker: worker.inherited.bit_count(), default=None)

    def _has_room(self, bequest: int) -> bool:
        """Can a view say it, too?"""
        return fit({**self._roster.bequests, TRAINER: Left(TRAINER, bequest)})

    # -- both ----------------------------------------------------------------------------------------

    def take_out(self, owner: Record, heir: Record, now: float) -> None:
        """An owner is out, and what is in its heir's copy is that one's."""
        self._roster.bequeath(owner, heir, now)
        self._withdraw(heir.session)
        self._bequeathed[heir.session] = Handover(
            heir=heir.session, version=owner.version, bequest=heir.inherited, begun_at_s=now, sent_at_s=now
        )

    def _withdraw(self, heir: Session) -> None:
        """Ask for nothing more of an heir: it would give up what it has, or is getting."""
        self._handovers = {owner: of for owner, of in self._handovers.items() if of.heir != heir}

    def lost(self) -> None:
        """A worker is lost."""
        self._backups.lost()

    def _has_share(self, owner: Record) -> bool:
        """Has a worker counted something that no round has begun with?"""
        is_counting = owner.role is Role.WORKER and owner.holds(self._committer.version)
        return is_counting and owner.ledger != 0 and not self._committer.is_open(owner.stage)

    def _drop_bad(self) -> None:
        self._handovers = {owner: of for owner, of in self._handovers.items() if self._is_good(owner, of)}

    def _is_good(self, session: Session, handover: Handover) -> bool:
        """Are both still there, and is the share no less than it was?"""
        owner, heir = self._roster.records.get(session), self._roster.records.get(handover.heir)
        version = self._committer.version
        if owner is None or heir is None or handover.version != version or not self._has_share(owner):
            return False
        return not handover.bequest & ~owner.ledger and heir.leaving is Leaving.NO and heir.holds(version)

    def _counts(self, bequest: Handover, now: float) -> bool:
        """Is this heir in the middle of counting what was left to it? It takes nothing else meanwhile."""
        heir = self._roster.records.get(bequest.heir)
        if heir is None or heir.version != bequest.version or now >= bequest.sent_at_s + self._heartbeat_s:
            return False
        return bool(bequest.bequest & ~heir.ledger)

    def _ask(self, owner: Record, attempt: Attempt, now: float, avoid: Collection[str]) -> list[Send]:
        """Tell the heir of a share to get it, once per heartbeat until it has."""
        handover = self._handovers.get(owner.session) or self._begin(owner, now, avoid)
        if handover is None or now < handover.sent_at_s + self._heartbeat_s:
            return []
        heir = self._roster.records[handover.heir]
        if heir.inherits == owner.session and not handover.bequest & ~heir.inherited:
            return []
        handover.sent_at_s = now
        return [self._order(owner, heir, handover.bequest, attempt)]

    def _begin(self, owner: Record, now: float, avoid: Collection[str]) -> Handover | None:
        version = self._committer.version
        roster, leaves = self._roster, owner.leaving is not Leaving.NO
        self._bequeathed = {heir: bequest for heir, bequest in self._bequeathed.items() if self._counts(bequest, now)}
        taken = {of.heir for other, of in self._handovers.items() if self._goes_first(other) or not leaves}
        taken |= self._bequeathed.keys()
        # Who does not know yet that a share is its own would give that up for the next one.
        heirs = {bequest.heir for bequest in roster.bequests.values()}
        taken |= {s for s in heirs if s in roster.records and not roster.is_informed(s)}
        able = [
            worker
            for worker in roster.staying(Role.WORKER, owner.stage)
            if worker is not owner and worker.session not in taken and worker.holds(version)
        ]
        if not leaves:
            able = [worker for worker in able if not self._is_needed(worker, owner)]
        if not able:
            return None

        def rank(worker: Record) -> tuple[int, ...]:
            if leaves:
                return worker.host in avoid, self._is_needed(worker, owner), worker.ledger.bit_count()
            is_other = worker.inherits != owner.session
            return (
                worker.host in avoid,
                worker.host == owner.host,
                is_other,
                worker.session < owner.session,
                worker.session,
            )

        heir = min(able, key=rank).session
        self._withdraw(heir)
        handover = self._handovers[owner.session] = Handover(
            heir=heir, version=version, bequest=owner.ledger, begun_at_s=now
        )
        return handover

    def _is_needed(self, copyist: Record, owner: Record) -> bool:
        """Does a worker hold the best copy of the share of somebody else than this one?"""
        other = self._roster.records.get(copyist.inherits)
        return other is not None and other is not owner and self._copyist_of(other) is copyist

    def _goes_first(self, session: Session) -> bool:
        """Is this a leaver, which has no time to lose?"""
        return self._roster.records[session].leaving is not Leaving.NO

    def _order(self, owner: Record, heir: Record, bequest: int, attempt: Attempt) -> Send:
        branch, step = self._committer.version
        message = Inherit(
            **self._header,
            branch=branch,
            step=step,
            owner=owner.session,
            address=owner.addresses[0],
            attempt=attempt,
            ledger=ledger.to_bytes(bequest),
        )
        return Send(peer=heir.peer, message=message)
