"""How workers get the parameters of the present step, and when nobody can give them any more.

A worker that is not ready at the present step, and does not only lack the last Commit, is told where to
get its stage's state: from workers of its stage that are ready, from the trainer's checkpoint where that
is of this step, or, at step 0, from nobody: fresh parameters are made, not given. A step later the same workers are named,
if they are ready again: they keep what somebody is in the middle of.

    a stage   HELD: somebody is ready, or lacks only the last Commit, or may still be found to (silent since
              the trainer began), or a source outside the stage has its state
              EMPTY for EMPTY_STAGE_HEARTBEATS, or at once if nobody ever was there --> roll back
"""

from __future__ import annotations

from collections import Counter

from zswarm import limits
from zswarm.ids import TRAINER, Address, Leaving, Role, Session, Stage, Step, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Restore, Source
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster

Order = tuple[Version, tuple[Session, ...]]
"""The version to get, and from whom, those first who were named first."""


class Restorer:
    """See the module. `checkpoint_step` is the step of a checkpoint whose state is that of the present step."""

    def __init__(self, roster: Roster, committer: Committer, header: Header, *, heartbeat_s: float) -> None:
        self._roster = roster
        self._committer = committer
        self._header = header
        self._heartbeat_s = heartbeat_s
        self._orders: dict[Session, Order] = {}
        self._told_at_s: dict[Session, float] = {}
        self._empty_since_s: dict[Stage, float] = {}
        self._was_held: set[Stage] = set()

    def orders(self, now: float, *, checkpoint_step: Step | None) -> list[Send]:
        """Tell every worker that needs it where its state is; news at once, the rest once per heartbeat."""
        version = self._committer.version
        sends = []
        for worker in self._roster.workers():
            if not self._needs_state(worker):
                self._orders.pop(worker.session, None)
                continue
            donors = self._donors(worker, version, checkpoint_step)
            if not donors:
                continue
            order = (version, donors)
            is_news = self._orders.get(worker.session) != order
            if is_news or now - self._told_at_s[worker.session] >= self._heartbeat_s:
                self._orders[worker.session], self._told_at_s[worker.session] = order, now
                sends.append(Send(peer=worker.peer, message=self._restore(order)))
        self._forget_departed()
        return sends

    def gives(self, donor: Session) -> bool:
        """Is somebody getting his state from this worker, and has it not yet?"""
        takers = [self._roster.records.get(taker) for taker, order in self._orders.items() if donor in order[1]]
        return any(taker is not None and not taker.holds(self._committer.version) for taker in takers)

    def _restore(self, order: Order) -> Restore:
        (branch, step), (first, *others) = order
        return Restore(
            **self._header,
            branch=branch,
            step=step,
            donor=first,
            address=self._address(first),
            others=tuple(Source(donor=session, address=self._address(session)) for session in others),
        )

    def _address(self, donor: Session) -> Address:
        return self._roster.records[donor].addresses[0] if donor != TRAINER else Address("")

    def _forget_departed(self) -> None:
        for session in [session for session in self._told_at_s if session not in self._roster.records]:
            self._orders.pop(session, None)
            del self._told_at_s[session]

    def _needs_state(self, worker: Record) -> bool:
        """Not one that has never reported to this generation: it is still being built, or silent. Nor one that leaves."""
        is_in_need = worker.report > 0 and worker.leaving is Leaving.NO
        return is_in_need and not self._committer.has_state(worker)

    def _donors(self, taker: Record, version: Version, checkpoint_step: Step | None) -> tuple[Session, ...]:
        """Return those who were named before, who keep what a load in work still lacks, and then who gives to the fewest."""
        if version[1] == 0:
            return (TRAINER,)
        able = [w for w in self._roster.of(Role.WORKER, taker.stage) if w.holds(version)]
        able = [worker for worker in able if worker.leaving is Leaving.NO] or able
        if not able:
            return (TRAINER,) if checkpoint_step == version[1] else ()
        before = self._orders.get(taker.session)
        named = before[1] if before is not None and before[0][0] == version[0] else ()
        load = Counter(donor for _, donors in self._orders.values() for donor in donors)

        def rank(worker: Record) -> tuple[int, int]:
            session = worker.session
            return (named.index(session), 0) if session in named else (len(named), load[session])

        return tuple(worker.session for worker in sorted(able, key=rank)[: limits.MAX_DONORS])

    # -- stages without state ------------------------------------------------------------------------

    def lost_stage(self, now: float, *, checkpoint_step: Step | None) -> Stage | None:
        """Return a stage whose state nobody has and nobody will have: the swarm must go back."""
        step = self._committer.step
        if step in (0, checkpoint_step):
            self._empty_since_s.clear()
            self._was_held.update(Stage(index) for index in range(self._committer.num_stages))
            return None
        for index in range(self._committer.num_stages):
            stage = Stage(index)
            workers = self._roster.of(Role.WORKER, stage)
            if any(w.is_silent or self._committer.has_state(w) for w in workers):
                self._empty_since_s.pop(stage, None)
                self._was_held.add(stage)
                continue
            since_s = self._empty_since_s.setdefault(stage, now)
            patience_s = limits.EMPTY_STAGE_HEARTBEATS * self._heartbeat_s if stage in self._was_held else 0.0
            if now - since_s >= patience_s:
                return stage
        return None

    def is_safe(self, stage: Stage, *, checkpoint_step: Step | None) -> bool:
        """Do two workers who are well hold a stage's state, so that it outlives one of them, or does a checkpoint?"""
        if self._committer.step in (0, checkpoint_step):
            return True
        return sum(map(self._committer.keeps_state, self._roster.of(Role.WORKER, stage))) >= limits.SAFE_COPIES

    def begin(self) -> None:
        """The swarm has gone back: what was said and what was empty is of no account."""
        self._orders.clear()
        self._told_at_s.clear()
        self._empty_since_s.clear()

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        for stage in self._empty_since_s:
            self._empty_since_s[stage] += stall_s
