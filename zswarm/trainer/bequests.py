"""Who takes over what a worker has counted that leaves before the step is committed.

    a leaver  IDLE, has counted something --an heir is chosen--> Inherit, repeated --the heir holds it--> may go

The heir is a worker of the same stage that stays and has counted least, if possible on a machine that nobody leaves;
each has one leaver at a time. It holds the share aside, so that nothing has happened yet if either of them is lost meanwhile, or if the commit comes first. The leaver is
taken out by one record of the log, which names the heir, and every view until the end of the step does so, too: from
there on what it had counted is the heir's, also for brokers and for a trainer that starts again. The heir's next
reports say so; a round of the stage begins only with that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from zswarm import ledger, limits
from zswarm.ids import Attempt, Leaving, Role, Session, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Inherit
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster


@dataclass(slots=True, kw_only=True)
class Handover:
    """A share that is on its way, and whose it is."""

    heir: Session
    version: Version
    bequest: int
    """What the leaver has counted."""
    sent_at_s: float


class Bequests:
    """See the module."""

    def __init__(self, roster: Roster, committer: Committer, header: Header, *, heartbeat_s: float) -> None:
        self._roster = roster
        self._committer = committer
        self._header = header
        self._heartbeat_s = heartbeat_s
        self._handovers: dict[Session, Handover] = {}
        """By leaver."""
        self._bequeathed: dict[Session, Handover] = {}
        """By heir, what was last left to it, until it has had time to count it."""

    def orders(self, leavers: Iterable[Session], attempt: Attempt, now: float, *, avoid: Collection[str]) -> list[Send]:
        """Tell heirs what they are to get from those of these that have nothing in hand any more.

        `attempt` is the newest that a Void has made room for; on the machines to `avoid` somebody leaves.
        """
        self._handovers = {leaver: of for leaver, of in self._handovers.items() if self._is_good(leaver, of)}
        sends: list[Send] = []
        for session in leavers:
            leaver = self._roster.records[session]
            if not self._has_share(leaver):
                continue
            handover = self._handovers.get(session) or self._begin(leaver, now, avoid)
            if handover is None or now < handover.sent_at_s + self._heartbeat_s:
                continue
            heir = self._roster.records[handover.heir]
            if heir.inherits != session:
                handover.sent_at_s = now
                sends.append(self._order(leaver, heir, attempt))
        return sends

    def heir_of(self, leaver: Record) -> Record | None:
        """Return who holds what a leaver has counted, so that this one may go; None if nobody does."""
        handover = self._handovers.get(leaver.session)
        if handover is None or not self._is_good(leaver.session, handover):
            return None
        heir = self._roster.records[handover.heir]
        return heir if heir.inherits == leaver.session and len(self._roster.bequests) < limits.MAX_BEQUESTS else None

    def take_out(self, leaver: Record, heir: Record, now: float) -> None:
        """A leaver is out, and what it had counted is its heir's."""
        self._roster.bequeath(leaver, heir, now)
        self._bequeathed[heir.session] = Handover(
            heir=heir.session, version=leaver.version, bequest=leaver.ledger, sent_at_s=now
        )

    def _has_share(self, leaver: Record) -> bool:
        """Is there something to hand over that will not change? No round may have begun that waits for it."""
        return (
            leaver.role is Role.WORKER
            and leaver.leaving is Leaving.IDLE
            and self._roster.is_informed(leaver.session)
            and leaver.holds(self._committer.version)
            and leaver.ledger != 0
            and not self._committer.is_open(leaver.stage)
        )

    def _is_good(self, session: Session, handover: Handover) -> bool:
        """Are both still there, and is the share what it was?"""
        leaver, heir = self._roster.records.get(session), self._roster.records.get(handover.heir)
        version = self._committer.version
        if leaver is None or heir is None or handover.version != version or not self._has_share(leaver):
            return False
        return leaver.ledger == handover.bequest and heir.leaving is Leaving.NO and heir.holds(version)

    def _counts(self, bequest: Handover, now: float) -> bool:
        """Is this heir in the middle of counting what was left to it? It takes nothing else meanwhile."""
        heir = self._roster.records.get(bequest.heir)
        if heir is None or heir.version != bequest.version or now >= bequest.sent_at_s + self._heartbeat_s:
            return False
        return bool(bequest.bequest & ~heir.ledger)

    def _begin(self, leaver: Record, now: float, avoid: Collection[str]) -> Handover | None:
        version = self._committer.version
        roster = self._roster
        self._bequeathed = {heir: bequest for heir, bequest in self._bequeathed.items() if self._counts(bequest, now)}
        taken = {handover.heir for handover in self._handovers.values()} | self._bequeathed.keys()
        # Who does not know yet that a share is its own would give that up for the next one.
        taken |= {s for s in roster.bequests.values() if s in roster.records and not roster.is_informed(s)}
        able = [
            worker
            for worker in roster.staying(Role.WORKER, leaver.stage)
            if worker.session not in taken and worker.holds(version)
        ]
        if not able:
            return None
        heir = min(able, key=lambda worker: (worker.host in avoid, worker.ledger.bit_count()))
        handover = self._handovers[leaver.session] = Handover(
            heir=heir.session, version=version, bequest=leaver.ledger, sent_at_s=float("-inf")
        )
        return handover

    def _order(self, leaver: Record, heir: Record, attempt: Attempt) -> Send:
        branch, step = self._committer.version
        message = Inherit(
            **self._header,
            branch=branch,
            step=step,
            leaver=leaver.session,
            address=leaver.addresses[0],
            attempt=attempt,
            ledger=ledger.to_bytes(leaver.ledger),
            loss_sum=leaver.loss_sum,
            num_targets=leaver.num_targets,
        )
        return Send(peer=heir.peer, message=message)
