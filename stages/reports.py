"""When a worker reports to the coordinator, and whom it accuses of silence.

Once per interval, and at once when something changes that the coordinator decides from; before the first view
that is nothing. A failure that ends the run is repeated in place of the reports. A process that was not running
itself, frozen or without its turn, has heard nobody meanwhile: until the limit has passed once more it accuses
nobody.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from stages.departure import Departure
from stages.parameters import Parameters
from stages.participant import Participant, StepState
from stages.work import Work
from zswarm import ledger, limits
from zswarm.ids import TRAINER, Leaving, Microbatch, Session
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Failure, WorkerHeartbeat
from zswarm.outbox import Outbox
from zswarm.slots import maker

make_heartbeat = maker(WorkerHeartbeat)


class Reports:
    """See the module."""

    def __init__(
        self,
        membership: Membership,
        state: StepState,
        *,
        parameters: Parameters,
        work: Work,
        participant: Participant,
        departure: Departure,
    ) -> None:
        self._me = membership
        self._state = state
        self._parameters = parameters
        self._work = work
        self._participant = participant
        self._departure = departure
        self.number = 0
        """Of the newest report."""
        self.num_losses = 0
        """Views that lacked somebody who was in the one before."""
        self.next_at_s = float("-inf")
        self._is_overdue = False
        """The newest report says that the device is at one task for too long."""
        self._told: Hashable = None
        self._fair_from_s = float("-inf")
        self._fatal: tuple[str, str] | None = None

    def woke(self, now: float) -> bool:
        """Was this process not running for more than a heartbeat? Then nobody is blamed for the silence."""
        if now - self.next_at_s <= self._me.heartbeat_s or self.next_at_s == float("-inf"):
            return False
        self._fair_from_s = now + limits.SILENCE_HEARTBEATS * self._me.heartbeat_s
        return True

    def is_due(self, now: float) -> bool:
        """Has the interval passed? Begins the next one."""
        if now < self.next_at_s:
            return False
        self.next_at_s = now + self._me.heartbeat_s
        return True

    def overdue_at_s(self) -> float | None:
        """Return when the device has been at one task for so long that this is news; None if there is none, or it is told."""
        is_told = self._is_overdue or self._fatal is not None or not self._me.view
        return None if is_told else self._overdue_at_s()

    def _overdue_at_s(self) -> float | None:
        return self._work.device.overdue_at_s(self._me.heartbeat_s)

    def due(self, outbox: Outbox, now: float, *, is_beat: bool) -> list[Send]:
        """Say what is to be said now."""
        if self._fatal is not None:
            return [Send(peer=self._me.coordinator, message=self.failure())] if is_beat else []
        if is_beat:
            return [self.report(outbox, now), *self._participant.send_prepared()]
        overdue_at_s = self.overdue_at_s()
        is_late = overdue_at_s is not None and now >= overdue_at_s
        has_news = is_late or (self._me.view > 0 and self._news(outbox) != self._told)
        return [self.report(outbox, now)] if has_news else []

    def _leaving(self, outbox: Outbox) -> Leaving:
        if not self._departure.is_asked:
            return Leaving.NO
        return self._departure.phase(is_idle=self._work.is_idle and not any(outbox.pending()))

    def _news(self, outbox: Outbox) -> Hashable:
        state = self._state
        version, is_ready, voided = state.version, self._parameters.is_ready, self._work.voided
        trainer = (self._me.generation, self._me.session)
        leaving, held = self._leaving(outbox), self._work.heir.held
        # Nobody is let go before the trainer knows that he knows of everybody.
        view = self._me.view if leaving is not Leaving.NO else 0
        return (*trainer, version, state.ledger, is_ready, voided, self.num_losses, leaving, view, held)

    def report(self, outbox: Outbox, now: float) -> Send:
        """Tell everything that the coordinator decides from."""
        me, state, work, participant = self._me, self._state, self._work, self._participant
        self._told = self._news(outbox)
        overdue_at_s = self._overdue_at_s()
        self._is_overdue = overdue_at_s is not None and now >= overdue_at_s
        self.number += 1
        pending = work.pending() | outbox.pending_ledger(*state.version)
        message = make_heartbeat(
            **me.header(),
            branch=state.branch,
            step=state.step,
            stage=me.stage,
            view=me.view,
            report=self.number,
            ready=self._parameters.is_ready,
            ledger=ledger.to_bytes(state.ledger),
            pending=ledger.to_bytes(pending),
            passed=ledger.to_bytes(work.jobs.custody.passed(state.version, pending)),
            voided=work.voided,
            prepared=participant.prepared_round,
            accused=self._accused(outbox, now),
            busy_s=work.device.busy_s(now),
            job_s=work.device.job_s,
            usual_s=work.device.usual_s,
            parameter_digest=self._parameters.digest,
            leaving=self._leaving(outbox),
            loss_sum=state.loss_sum if math.isfinite(state.loss_sum) else None,
            num_targets=state.num_targets,
            inherits=work.heir.held.owner,
            inherited=ledger.to_bytes(work.heir.held.ledger),
        )
        return Send(peer=me.coordinator, message=message)

    def _accused(self, outbox: Outbox, now: float) -> tuple[Session, ...]:
        """Name those that owe an answer and are silent."""
        if now < self._fair_from_s:
            return ()
        limit_s = limits.SILENCE_HEARTBEATS * self._me.heartbeat_s
        silent = {
            *outbox.silent(now, limit_s),
            *self._participant.silent(now, limit_s),
            *self._work.greetings.silent(now, limit_s),
        }
        silent.intersection_update(member.member for member in self._me.members)
        if self._me.is_deaf(now, is_loading=not self._parameters.is_ready):
            silent.add(TRAINER)
        return tuple(sorted(silent)[: limits.MAX_ACCUSED])

    @property
    def is_fatal(self) -> bool:
        """Has something failed without which the run cannot go on?"""
        return self._fatal is not None

    def fail(self, layer: str, text: str) -> list[Send]:
        """Something has failed that is no job's: from here on every report says this, and not what fails behind it."""
        if self._fatal is not None:
            return []
        self._fatal = (layer, text)
        return [Send(peer=self._me.coordinator, message=self.failure())]

    def failure(self) -> Failure:
        """Return what ends the run."""
        assert self._fatal is not None
        return self.failed(*self._fatal)

    def failed(self, layer: str, text: str, microbatch: Microbatch | None = None) -> Failure:
        """Return what says that a layer raised."""
        return Failure(
            **self._me.header(),
            stage=self._me.stage,
            layer=sendable(layer),
            text=sendable(text),
            microbatch=microbatch,
        )


def sendable(text: str) -> str:
    """Return what of a text fits a header that has two of them; a path may hold what is no character."""
    return text.encode(errors="replace")[: limits.MAX_TEXT_CHARS].decode(errors="ignore")
