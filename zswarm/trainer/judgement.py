"""Who is to be given up, and why, in words that are told to the user.

    silent       not heard of for SILENCE_HEARTBEATS
    gone         its connection was lost, and it has not spoken over another one for GONE_HEARTBEATS
    stuck        busy with one task for far longer than such a one usually takes; minutes where nobody knows
    cut off      what others wait for: both ends of such a pair live, and one of them goes; or it does not hear the trainer
    needed       another stage has had nobody of its role for EMPTY_STAGE_HEARTBEATS, or all its brokers are out and none
                 has been heard for NO_BROKER_HEARTBEATS, and its own has several: whoever begins a new life goes to the
                 stage with the fewest

A judgement costs time if it is wrong, and never correctness: whoever was given up in error begins a new
life. Those that owe nobody anything need not be judged any other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf

from zswarm import limits
from zswarm.ids import TRAINER, Leaving, Role, Session, Stage
from zswarm.messages import Register
from zswarm.patience import most_busy_s
from zswarm.trainer.commit import Committer
from zswarm.trainer.quarantine import Quarantine
from zswarm.trainer.roster import Record, Roster

ROUNDING_S = 1e-6
"""A worker reports as soon as its device is stuck, and its clock may be a little off when it says for how long."""


class Judge:
    """See the module. `verdicts` names each session once."""

    def __init__(self, roster: Roster, committer: Committer, *, num_stages: int, heartbeat_s: float) -> None:
        self._roster = roster
        self._committer = committer
        self._num_stages = num_stages
        self._heartbeat_s = heartbeat_s
        self._never_stuck_s = min(limits.STUCK_HEARTBEATS * heartbeat_s, limits.STUCK_FIRST_S) - ROUNDING_S
        """Whoever has been busy for less is not stuck, however long jobs take."""
        self._places = [(role, Stage(index)) for role in Role for index in range(num_stages)]
        self._accusations_after_s = float("-inf")
        """Reports that are older than this blame somebody for whom another has been given up."""
        self._quarantine = Quarantine(heartbeat_s=heartbeat_s)
        self._has_stalled = True
        """The trainer was not running, or has just begun: who has not heard it meanwhile is not to blame."""
        self._believes_from_s = inf
        """From when on it believes whoever says that he does not hear the trainer."""
        self._deaf_since_s: dict[Session, float] = {}
        """Who says now that he does not hear the trainer, and since when."""
        self._lacking_since_s: dict[tuple[Role, Stage, bool], float] = {}
        """Since when a stage has had nobody of a role who has spoken, or (True) has not heard of any broker."""

    def next_deadline_s(self) -> float:
        """Return when a lost connection becomes a verdict; everything else is looked at with every heartbeat."""
        gone = [r.gone_at_s for r in self._roster.records.values() if r.gone_at_s is not None]
        return min(gone) + limits.GONE_HEARTBEATS * self._heartbeat_s if gone else inf

    def verdicts(self, now: float) -> Iterator[tuple[Session, str]]:
        """Yield who is to be given up now."""
        silence_s = limits.SILENCE_HEARTBEATS * self._heartbeat_s
        for record in list(self._roster.records.values()):
            silent_s = now - record.heard_at_s
            if silent_s > silence_s:
                text = f"silent for {silent_s:.1f} s"
                # Whoever never says a word has not heard that it was let in.
                yield record.session, text if record.report else self._keep_out(record, text, now)
            elif record.gone_at_s is not None and now >= record.gone_at_s + limits.GONE_HEARTBEATS * self._heartbeat_s:
                yield record.session, "its connection was lost"
            elif record.busy_s >= self._never_stuck_s and (reason := self._stuck(record)):
                yield record.session, reason
        yield from self._deaf(now)
        if (cut_off := self._cut_off(now)) is not None:
            yield cut_off
        of = self._roster.of
        if not self._lacking_since_s and all(any(r.report for r in of(role, stage)) for role, stage in self._places):
            return
        for role in Role:
            if (needed := self._needed_elsewhere(role, now)) is not None:
                yield needed

    def _stuck(self, record: Record) -> str:
        if record.role is not Role.WORKER:
            return ""
        if record.busy_s < most_busy_s(record.usual_s, self._heartbeat_s) - ROUNDING_S:
            return ""
        usual = (
            f"which usually takes {record.usual_s:.2g} s" if record.usual_s else "and nobody knows how long it takes"
        )
        return f"stuck: busy with one task for {record.busy_s:.1f} s, {usual}"

    def _deaf(self, now: float) -> Iterator[tuple[Session, str]]:
        """Those that say that they do not hear the trainer, which hears them."""
        if self._has_stalled:
            self._has_stalled, self._believes_from_s = False, now + limits.SILENCE_HEARTBEATS * self._heartbeat_s
        before, self._deaf_since_s = self._deaf_since_s, {}
        for record in list(self._roster.records.values()):
            if TRAINER not in record.accused or record.reported_at_s < self._believes_from_s:
                continue
            since_s = self._deaf_since_s[record.session] = before.get(record.session, record.reported_at_s)
            if record.reported_at_s >= since_s + limits.DEAF_AGAIN_HEARTBEATS * self._heartbeat_s:
                yield record.session, self._keep_out(record, "cut off: it does not hear the trainer", now)

    def _cut_off(self, now: float) -> tuple[Session, str] | None:
        """Of all pairs, the process that is part of the most; of equals one that is quiet, of those one that its stage can do
        without, of those the accused, of those the youngest."""
        records = self._roster.records
        pairs = [
            (accuser, records[accused])
            for accuser in records.values()
            if accuser.accused and accuser.reported_at_s > self._accusations_after_s
            for accused in accuser.accused
            if accused in records
        ]
        if not pairs:
            return None
        parts = Counter(record.session for pair in pairs for record in pair)
        accused = {record.session for _, record in pairs}

        quiet_s = limits.QUIET_HEARTBEATS * self._heartbeat_s

        def guilt(session: Session) -> tuple[int, bool, bool, bool, Session]:
            record = records[session]
            is_quiet = now - record.heard_at_s > quiet_s
            has_others = len(self._roster.of(record.role, record.stage)) > 1
            return parts[session], is_quiet, has_others, session in accused, session

        most = max(parts, key=guilt)
        self._accusations_after_s = now + limits.SILENCE_HEARTBEATS * self._heartbeat_s
        partner = next(a if b.session == most else b for a, b in pairs if most in (a.session, b.session))
        text = f"cut off: it and {partner.place} do not reach each other"
        return most, self._keep_out(records[most], text, now)

    def _keep_out(self, record: Record, text: str, now: float) -> str:
        """Note why a process is given up that may come back at once; returns what the log says."""
        wait_s = self._quarantine.note(record.node, now)
        return f"{text}, again: let in after {wait_s:.0f} s, or where it is needed" if wait_s else text

    def keeps_out(self, message: Register, now: float, *, is_gathering: bool) -> bool:
        """Is it too early for a process to come back? Never as long as some stage has nobody who could do its work."""
        at_most_s = limits.FIRST_QUARANTINE_HEARTBEATS * self._heartbeat_s if is_gathering else inf
        if (
            not self._quarantine.holds(message.node, now, at_most_s=at_most_s)
            or self._roster.known(message) is not None
        ):
            return False
        places = [stage for role, stage in self._places if role is message.role]
        return all(any(map(self._serves, self._roster.of(message.role, stage))) for stage in places)

    def _serves(self, record: Record) -> bool:
        """Does it do its stage's work, and goes on with that?"""
        is_able = record.role is Role.BROKER or self._committer.has_state(record)
        return record.report > 0 and record.leaving is Leaving.NO and is_able

    def _needed_elsewhere(self, role: Role, now: float) -> tuple[Session, str] | None:
        """The youngest of the stage that has the most, if some stage has had nobody for long."""
        pools = {Stage(index): self._spoken(role, Stage(index)) for index in range(self._num_stages)}
        heard_s = now - limits.QUIET_HEARTBEATS * self._heartbeat_s
        spare = [[r for r in self._roster.staying(role, stage) if r.heard_at_s >= heard_s] for stage in pools]
        richest = max(spare, key=len)
        for stage, pool in pools.items():
            # Who holds a stage's parameters may return with them; for what a broker has kept nobody waits.
            is_out = role is Role.BROKER and not self._roster.of(role, stage)
            if not is_out:
                self._lacking_since_s.pop((role, stage, True), None)
            if pool:
                self._lacking_since_s.pop((role, stage, False), None)
                continue
            heard_at_s = self._roster.broker_heard_at_s.get(stage, now) if is_out else now
            since_s = self._lacking_since_s.setdefault((role, stage, is_out), heard_at_s)
            most_heartbeats = limits.NO_BROKER_HEARTBEATS if is_out else limits.EMPTY_STAGE_HEARTBEATS
            if now - since_s >= most_heartbeats * self._heartbeat_s and len(richest) > 1:
                self._lacking_since_s |= {(role, stage, True): now, (role, stage, False): now}
                return richest[-1].session, f"stage {stage} has no {role.value} left: it is needed there"
        return None

    def _spoken(self, role: Role, stage: Stage) -> list[Record]:
        """Those who have said a word since they were let in: the others may never have heard of it."""
        return [record for record in self._roster.of(role, stage) if record.report]

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        self._has_stalled = True
        self._quarantine.excuse(stall_s)
        for place in self._lacking_since_s:
            self._lacking_since_s[place] += stall_s
