"""Mutants of the trainer: whom it believes, what it decides, what it writes down before it speaks."""

# A mutant is surgery: it reaches inside.
# ruff: noqa: SLF001

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zswarm.ids import Attempt, Generation, Role, Round, Session, Stage
from zswarm.machine import Send
from zswarm.messages import Abort, Fence, Move, Prepare, Restore
from zswarm.simulation.surgery import Method, Mutant, Patches, nothing, yes
from zswarm.trainer import replays
from zswarm.trainer.admission import Admission
from zswarm.trainer.archive import Archive
from zswarm.trainer.commit import Committer, OpenRound
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.departures import Departures
from zswarm.trainer.moves import Moves
from zswarm.trainer.reception import Reception
from zswarm.trainer.replays import Replays
from zswarm.trainer.restores import Restorer
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings, Sealed

# -- what is repeated until true -----------------------------------------------------------------------


def _prepare_once() -> Patches:
    original: Method = Committer.reported

    def reported(self: Committer, worker: Record) -> list[Any]:
        return [c for c in original(self, worker) if not isinstance(getattr(c, "message", None), Prepare)]

    return {(Committer, "repeat"): nothing, (Committer, "reported"): reported}


def _commit_once() -> Patches:
    original: Method = Committer.reported

    def reported(self: Committer, worker: Record) -> Any:
        return [] if worker.version < self.version else original(self, worker)

    return {(Committer, "reported"): reported}


def _view_once() -> Patches:
    return {(Reception, "answer"): nothing}


def _restore_once() -> Patches:
    original: Method = Restorer.orders
    told: set[tuple[int, object]] = set()

    def orders(self: Restorer, *args: Any, **kwargs: Any) -> list[Send]:
        sends = []
        for send in original(self, *args, **kwargs):
            assert isinstance(send.message, Restore)
            news = (id(self), (send.peer, send.message.branch, send.message.step))
            if news not in told:
                told.add(news)
                sends.append(send)
        return sends

    return {(Restorer, "orders"): orders}


def _void_once() -> Patches:
    original: Method = Replays.repeat
    told: set[tuple[int, int]] = set()

    def repeat(self: Replays) -> Any:
        wave = (id(self), self.wave.attempt if self.wave is not None else 0)
        if wave in told:
            return []
        told.add(wave)
        return original(self)

    return {(Replays, "repeat"): repeat}


# -- who is in -----------------------------------------------------------------------------------------


def _fenced_still_counts() -> Patches:
    original: Method = Roster.remove

    def remove(self: Roster, session: Session, now: float, **of: Any) -> Record:
        record: Record = original(self, session, now, **of)
        if record.role is Role.WORKER:
            self._places[record.role, record.stage] = (*self.of(record.role, record.stage), record)
        return record

    return {(Roster, "remove"): remove}


def _prepared_is_kept() -> Patches:
    return {(Committer, "given_up"): nothing}


def _session_issued_again() -> Patches:
    original: Method = Roster.__init__

    def init(self: Roster, **kwargs: Any) -> None:
        original(self, **kwargs | {"first_session": Session(1)})

    return {(Roster, "__init__"): init}


def _leave_not_durable() -> Patches:
    original: Method = Coordinator._give_up

    def give_up(self: Coordinator, *args: Any) -> Any:
        return [replace(c, durable=False) if isinstance(c, Append) else c for c in original(self, *args)]

    return {(Coordinator, "_give_up"): give_up}


# -- what goes in once more ----------------------------------------------------------------------------


def hasty() -> Patches:
    """Take for lost what nobody has named for a third of a heartbeat, though it may be on its way.

    That costs time and nothing else, as long as what is taken for lost is voided before it is done again: a mutant that breaks
    this is noticed sooner.
    """

    def is_lost(self: Replays, seen_at_s: float, now: float) -> bool:
        return now - seen_at_s >= self._heartbeat_s / 3

    return {(Replays, "_is_lost"): is_lost}


def _replay_unvoided() -> Patches:
    original: Method = Replays.take

    def take(self: Replays) -> Any:
        told = {session: record.voided for session, record in self._roster.records.items()}
        for record in self._roster.records.values():
            record.voided = Attempt(2**63)
        result = original(self)
        for session, voided in told.items():
            self._roster.records[session].voided = voided
        return result

    return {(Replays, "take"): take} | hasty()


def _replay_for_everybody() -> Patches:
    original: Method = Replays.take

    def take(self: Replays) -> Any:
        return [replace(each, mask=(1 << len(self._stages)) - 1) for each in original(self)]

    return {(Replays, "take"): take}


def _never_lost() -> Patches:
    def lost(*_: Any) -> int:
        return 0

    return {(Replays, "_lost"): lost}


def _all_anew_after_restart() -> Patches:
    original: Method = Admission.begin

    def begin(self: Admission, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs | {"is_taken_up": False})
        self._first_attempt = replays.first_attempt(Generation(self._settings.generation))

    return {(Admission, "begin"): begin}


# -- leaving -------------------------------------------------------------------------------------------


def _goes_before_its_commit() -> Patches:
    return {(Committer, "is_certain"): yes}


def _last_of_its_stage_goes() -> Patches:
    return {(Departures, "_is_spare"): yes}


def _moves_amid_a_step() -> Patches:
    original: Method = Coordinator._received

    def received(self: Coordinator, event: Any, now: float) -> Any:
        return [*original(self, event, now), *(self._move(now) if isinstance(event.message, Move) else [])]

    return {(Coordinator, "_received"): received}


def _moves_the_last() -> Patches:
    def problem(*_: Any) -> str:
        return ""

    return {(Moves, "_problem"): problem}


def _moves_nowhere() -> Patches:
    return {(Roster, "want"): nothing}


def _moves_without_fence() -> Patches:
    original: Method = Coordinator._relocate

    def relocate(self: Coordinator, relocation: Any, reason: str, now: float) -> Any:
        return [
            c for c in original(self, relocation, reason, now) if not isinstance(getattr(c, "message", None), Fence)
        ]

    def received(self: Coordinator, event: Any, now: float) -> Any:
        return [c for c in known(self, event, now) if not isinstance(getattr(c, "message", None), Fence)]

    known: Method = Coordinator._received
    return {(Coordinator, "_relocate"): relocate, (Coordinator, "_received"): received}


# -- the commit ----------------------------------------------------------------------------------------


def _commit_unchecked() -> Patches:
    original: Method = Committer.owned

    def owned(self: Committer, stage: Stage) -> int:
        return self._full if original(self, stage) else 0

    def opened(self: Committer, stage: Stage) -> list[Send]:
        workers = [w for w in self._roster.of(Role.WORKER, stage) if w.is_ready and w.version == self.version]
        ledgers = {w.session: w.ledger for w in workers}
        self._num_rounds += 1
        started = self._rounds[stage] = OpenRound(round=Round(self._num_rounds), stage=stage, ledgers=ledgers)
        return [self._prepare(started, worker) for worker in workers]

    return {(Committer, "owned"): owned, (Committer, "_open"): opened}


def _round_used_again() -> Patches:
    original: Method = Committer._abort

    def abort(self: Committer, opened: OpenRound, reason: str) -> list[Any]:
        self._num_rounds = min(self._num_rounds, (opened.round & 0xFFFFFFFF) - 1)
        return [c for c in original(self, opened, reason) if not isinstance(getattr(c, "message", None), Abort)]

    return {(Committer, "_abort"): abort}


def _commit_before_log() -> Patches:
    original: Method = Committer.decide

    def decide(self: Committer, **kwargs: Any) -> Any:
        decided = original(self, **kwargs)
        return (decided[0], [*decided[1][1:], decided[1][0]]) if decided is not None else None

    return {(Committer, "decide"): decide}


def _commit_not_durable() -> Patches:
    original: Method = Committer.decide

    def decide(self: Committer, **kwargs: Any) -> Any:
        decided = original(self, **kwargs)
        return (decided[0], [replace(decided[1][0], durable=False), *decided[1][1:]]) if decided is not None else None

    return {(Committer, "decide"): decide}


def _each_stage_skips_alone() -> Patches:
    original: Method = Committer._commit

    def commit(self: Committer, opened: OpenRound, decision: Any) -> Any:
        return replace(original(self, opened, decision), apply=opened.result.finite)

    return {(Committer, "_commit"): commit}


# -- back to a checkpoint ------------------------------------------------------------------------------


def _rollback_unlogged() -> Patches:
    original: Method = Coordinator._roll_back

    def roll_back(self: Coordinator, *args: Any) -> Any:
        return [c for c in original(self, *args) if not (isinstance(c, Append) and c.record["event"] == "rollback")]

    return {(Coordinator, "_roll_back"): roll_back}


def _never_back() -> Patches:
    def lost_stage(*_: Any, **__: Any) -> None:
        return None

    return {(Restorer, "lost_stage"): lost_stage}


def _failed_checkpoint_is_newest() -> Patches:
    original: Method = Archive.told

    def told(self: Archive, event: Any) -> Any:
        return original(self, replace(event, problem="") if isinstance(event, Sealed) else event)

    return {(Archive, "told"): told}


def _heirs_forgotten() -> Patches:
    original: Method = Committer.__init__

    def init(self: Committer, settings: CoordinatorSettings, *args: Any) -> None:
        original(self, settings, *args)
        self._roster.bequests.clear()

    return {(Committer, "__init__"): init}


MUTANTS: dict[str, Mutant] = {
    "heirs-forgotten": Mutant("a trainer that starts again does not know who was whose heir", _heirs_forgotten),
    "prepare-once": Mutant("Prepare is sent once", _prepare_once),
    "commit-once": Mutant("Commit is sent once", _commit_once),
    "view-once": Mutant("a view is sent once", _view_once),
    "restore-once": Mutant("Restore is sent once", _restore_once),
    "void-once": Mutant("Void is sent once", _void_once),
    "fenced-still-counts": Mutant("what a session had counted counts when it is void (R3)", _fenced_still_counts),
    "round-outlives-its-member": Mutant("a round goes on without one of its members (R3)", _prepared_is_kept),
    "session-issued-again": Mutant("a trainer that takes a run up begins with session 1 (R3)", _session_issued_again),
    "leave-not-durable": Mutant("others hear first that a session is void, then the disk (R3)", _leave_not_durable),
    "hasty": Mutant("what is on its way is taken for lost", hasty),
    "replay-unvoided": Mutant("a later attempt begins before the earlier ones are void (R9)", _replay_unvoided),
    "replay-for-everybody": Mutant(
        "a later attempt is for the stages that have counted, too (R2)", _replay_for_everybody
    ),
    "never-lost": Mutant("nothing is ever admitted again", _never_lost),
    "all-anew-after-restart": Mutant("a trainer that takes a run up admits all of it (R9)", _all_anew_after_restart),
    "leaver-goes-before-its-commit": Mutant("who leaves is let go with what it has counted", _goes_before_its_commit),
    "last-of-its-stage-goes": Mutant("who leaves is let go though nobody else has its state", _last_of_its_stage_goes),
    "moves-amid-a-step": Mutant("a worker is moved that has counted something (R3)", _moves_amid_a_step),
    "moves-the-last": Mutant("the last worker of a stage is moved", _moves_the_last),
    "moves-nowhere": Mutant("where a worker was moved to is forgotten", _moves_nowhere),
    "moves-without-fence": Mutant("whoever is moved does not hear of it (R3)", _moves_without_fence),
    "commit-unchecked": Mutant("a round opens without looking at the ledgers", _commit_unchecked),
    "round-used-again": Mutant("the number of an aborted round is used again (R5)", _round_used_again),
    "commit-before-log": Mutant("a commit is told before it is in the log (R6)", _commit_before_log),
    "commit-not-durable": Mutant("a commit is in the log, but not synced (R6)", _commit_not_durable),
    "each-stage-skips-alone": Mutant("a stage skips a step that the others take", _each_stage_skips_alone),
    "rollback-unlogged": Mutant("the log does not say that the run has gone back (R6)", _rollback_unlogged),
    "never-back": Mutant("a run whose stage has lost its parameters waits for them", _never_back),
    "failed-checkpoint-is-newest": Mutant("a checkpoint counts that is not on the disk", _failed_checkpoint_is_newest),
}
