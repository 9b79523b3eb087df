"""Microbatches that nobody has any more: noticed, voided everywhere, admitted again.

    in work --nobody reports it--> UNSEEN --2 heartbeats, or half of one after a loss--> LOST
                 ^                                                                         |
                 |                                        Void(step, attempt) to everybody |
                 +----- admitted as that attempt, for the stages that lack it <--answers---+

One wave of LOST microbatches at a time. When every live worker and broker has voided the earlier attempts
nobody can count them any more, so that the ledgers say for good which stages lack them: these are the
mask of the new attempt. Everybody has to answer, also who is of another step according to its last report: it may
have come to this one meanwhile, and a job of an earlier attempt with it.

The first microbatches of the next step wait at stage 0 while this one is finished. If what has to be admitted again
finds no room there because of them, they are recalled: voided and admitted again in the same way.

A microbatch is seen while it is in the newest report of somebody of the present step (a worker's jobs and outputs, a
broker's queue), or in the trainer's own outbox, and whenever a stage has newly counted it or a report names it among
those that have passed; what a worker that has left has handed over counts as seen in that moment: so one that is alive is
seen at least once per interval, however quickly it moves. After a loss reports that reach back to before it do not tell
whether what has passed is alive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from zswarm import ledger, limits
from zswarm.ids import Attempt, Branch, Generation, Microbatch, Stage, Step, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Void
from zswarm.trainer.roster import Roster


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Microbatches of a step that are being voided."""

    step: Step
    attempt: Attempt
    bitmap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A microbatch to admit again."""

    step: Step
    microbatch: Microbatch
    attempt: Attempt
    mask: int
    """Bitmap of the stages that shall count it."""


def first_attempt(generation: Generation) -> Attempt:
    """Return the attempt of whatever a generation admits for the first time: above all of earlier generations."""
    return Attempt((generation - 1) << 32)


class Replays:
    """See the module. `covered` says what a stage has counted: everything, once its round is open."""

    def __init__(
        self, roster: Roster, header: Header, *, num_stages: int, heartbeat_s: float, covered: Callable[[Stage], int]
    ) -> None:
        self._roster = roster
        self._header = header
        self._stages = [Stage(stage) for stage in range(num_stages)]
        self._heartbeat_s = heartbeat_s
        self._covered = covered
        self._version = (Branch(0), Step(0))
        self._is_suspect = False
        self._admitted_again = 0
        """Microbatches of this step that are not suspect any more: what was admitted anew may be on its way."""
        self._seen_at_s: dict[Microbatch, float] = {}
        self._counted: list[int] = []
        self._demanded = 0
        self._num_waves = 0
        self.wave: Wave | None = None

    @property
    def newest(self) -> Attempt:
        """The newest attempt that anything was voided for."""
        return Attempt(first_attempt(self._header["generation"]) + self._num_waves)

    @property
    def is_voiding(self) -> bool:
        """Is anything of the step in work being voided?"""
        return self.wave is not None and self.wave.step == self._version[1]

    def begin(self, version: Version, *, is_suspect: bool = False) -> None:
        """Another step is in work; with `is_suspect` what is in nobody's report by now is lost."""
        self._is_suspect, self._admitted_again = is_suspect, 0
        if self.wave is not None and (self._version[0], self.wave.step) != version:
            self.wave = None
        self._version = version
        self._seen_at_s = {}
        self._counted = [0 for _ in self._stages]
        self._demanded = 0

    def demand(self, bitmap: int) -> None:
        """Have these microbatches voided and admitted again, whoever reports them."""
        self._demanded |= bitmap

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        for microbatch in self._seen_at_s:
            self._seen_at_s[microbatch] += stall_s

    def look(self, *, admitted: int, own: int, now: float) -> list[Send]:
        """Look whether something is lost; begin a wave if so.

        `admitted` are the microbatches of the step that have ever been let in, `own` those in the outbox.
        """
        lost = self._demanded | self._lost(admitted, self._seen() | own, now)
        if self.wave is not None or not lost:
            return []
        self._demanded = 0
        return self._void(self._version[1], lost)

    def recall(self, bitmap: int) -> list[Send]:
        """Void these microbatches of the next step, which wait where something of this one needs the room."""
        return self._void(Step(self._version[1] + 1), bitmap) if self.wave is None and bitmap else []

    def _void(self, step: Step, bitmap: int) -> list[Send]:
        self._num_waves += 1
        self.wave = Wave(step=step, attempt=self.newest, bitmap=bitmap)
        return self.repeat()

    def _seen(self) -> int:
        branch, step = version = self._version
        before = (branch, step - 1)
        seen = 0
        for record in self._roster.records.values():
            if record.version == version:
                seen |= record.pending
                if record.passed_from_s >= self._roster.lost_at_s:
                    seen |= record.passed
                record.passed = 0
            elif record.version == before:
                seen |= record.ahead
        return seen

    def _lost(self, admitted: int, seen: int, now: float) -> int:
        counted = [self._covered(stage) for stage in self._stages]
        complete, progress = admitted, 0
        for before, after in zip(self._counted, counted, strict=True):
            complete &= after
            progress |= after & ~before
        self._counted = counted
        lost = 0
        for microbatch in ledger.members(admitted & ~complete):
            bit = 1 << microbatch
            if (seen | progress) & bit:
                self._seen_at_s[microbatch] = now
            elif microbatch not in self._seen_at_s:
                lost |= bit if self._is_suspect and not self._admitted_again & bit else 0
                self._seen_at_s[microbatch] = now
            else:
                seen_at_s = max(self._seen_at_s[microbatch], self._roster.bequeathed_at_s.get(microbatch, -inf))
                lost |= bit if self._is_lost(seen_at_s, now) else 0
        return lost

    def _is_lost(self, seen_at_s: float, now: float) -> bool:
        heartbeat_s = self._heartbeat_s
        roster = self._roster
        records = roster.records.values()
        if roster.lost_at_s >= seen_at_s:
            return now - roster.lost_at_s >= limits.UNSEEN_AFTER_LOSS_HEARTBEATS * heartbeat_s and all(
                record.reported_view >= roster.lost_view for record in records
            )
        return now - seen_at_s >= limits.UNSEEN_HEARTBEATS * heartbeat_s and all(
            record.reported_at_s >= seen_at_s + 0.5 * heartbeat_s for record in records
        )

    def repeat(self) -> list[Send]:
        """Ask everybody who has not answered; to be called with every heartbeat."""
        wave = self.wave
        if wave is None:
            return []
        message = Void(
            **self._header,
            branch=self._version[0],
            step=wave.step,
            attempt=wave.attempt,
            ledger=ledger.to_bytes(wave.bitmap),
        )
        owing = [record for record in self._roster.records.values() if record.voided < wave.attempt]
        return [Send(peer=record.peer, message=message) for record in owing]

    def take(self) -> list[Replay]:
        """Return what is to be admitted again, once everybody has answered; what no stage lacks is not."""
        wave = self.wave
        if wave is None or any(record.voided < wave.attempt for record in self._roster.records.values()):
            return []
        self.wave = None
        is_next = wave.step > self._version[1]
        covered = [0 if is_next else self._covered(stage) for stage in self._stages]
        replays = []
        for microbatch in ledger.members(wave.bitmap):
            mask = sum(1 << stage for stage in self._stages if not covered[stage] >> microbatch & 1)
            if not is_next:
                self._seen_at_s.pop(microbatch, None)
                self._admitted_again |= 1 << microbatch
            if mask:
                replays.append(Replay(step=wave.step, microbatch=microbatch, attempt=wave.attempt, mask=mask))
        return replays
