"""Rules of the protocol, broken on purpose: a simulator that does not notice proves nothing.

A mutant replaces one or two methods of the real machines while it is in force. Where the breach of a rule
is mended by another one, only breaking both shows; such a pair is one mutant here. Taking workers' reports
in any order, for one, breaks nothing: the next report mends it, and Prepared carries the ledger once more.
"""

# A mutant is surgery: it reaches inside.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from brokers.backlog import Backlog
from brokers.credit import Credits
from brokers.entries import Entry, Worker
from brokers.queue import Queue
from stages.jobs import HeldJob, Jobs
from stages.participant import StepState
from stages.reduction import Inbox, Reduction
from stages.worker import WorkerMachine
from zswarm.errors import UserError
from zswarm.ids import JobStatus, Role, Round, Stage, Step
from zswarm.machine import Send
from zswarm.messages import Load, Prepare, Ready, Result
from zswarm.outbox import Outbox
from zswarm.trainer.commit import Committer, OpenRound
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.roster import Record

Method = Callable[..., Any]
Patches = dict[tuple[type, str], Any]
"""(class, name) -> what replaces the method."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken rule, in words, and the patches that break it."""

    breach: str
    patches: Callable[[], Patches]


@contextlib.contextmanager
def in_force(name: str | None) -> Iterator[None]:
    """Break the rule of that name inside the block; nothing with None.

    Raises:
        UserError: there is no such mutant.

    """
    if name is not None and name not in MUTANTS:
        raise UserError(f"--mutant {name}: there is no such mutant; choose one of {', '.join(sorted(MUTANTS))}")
    with contextlib.ExitStack() as stack:
        for (cls, method), mutated in (MUTANTS[name].patches() if name is not None else {}).items():
            stack.callback(setattr, cls, method, cls.__dict__[method])
            setattr(cls, method, mutated)
        yield


def _nothing(*_: Any, **__: Any) -> list[Any]:
    return []


def _never(*_: Any) -> None:
    return None


# -- what is repeated until true -----------------------------------------------------------------------


def _outputs_once() -> Patches:
    return {(Outbox, "resend_due"): _nothing, (Outbox, "next_deadline_s"): _never}


def _chunks_once() -> Patches:
    return {(Reduction, "resend_due"): _nothing, (Reduction, "next_deadline_s"): _never}


def _prepare_once() -> Patches:
    original: Method = Committer.reported

    def reported(self: Committer, worker: Record) -> list[Any]:
        return [c for c in original(self, worker) if not isinstance(getattr(c, "message", None), Prepare)]

    return {(Committer, "repeat"): _nothing, (Committer, "reported"): reported}


def _commit_once() -> Patches:
    original: Method = Committer.reported

    def reported(self: Committer, worker: Record) -> Any:
        return [] if worker.version < self.version else original(self, worker)

    return {(Committer, "reported"): reported}


def _job_once() -> Patches:
    original: Method = Queue.ready

    def ready(self: Queue, message: Ready, now: float) -> Any:
        worker = self.workers.get(message.session)
        return original(self, replace(message, held=tuple(worker.leases)) if worker else message, now)

    return {(Queue, "ready"): ready}


def _view_once() -> Patches:
    original: Method = Coordinator._answer

    def answer(self: Coordinator, record: Record, view: int) -> Any:
        return original(self, record, max(view, self.roster.view))

    return {(Coordinator, "_answer"): answer}


# -- nothing is done twice, nothing is lost ------------------------------------------------------------


class _Forgetful(set[Any]):
    """A set that remembers nothing."""

    def add(self, _: object, /) -> None:
        """Forget it at once."""


def _broker_forgets() -> Patches:
    init: Method = Queue.__init__
    advance: Method = Queue._advance

    def forgetful_init(self: Queue, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._settled = _Forgetful()

    def forgetful_advance(self: Queue, *args: Any) -> Any:
        result = advance(self, *args)
        self._settled = _Forgetful()
        return result

    return {(Queue, "__init__"): forgetful_init, (Queue, "_advance"): forgetful_advance}


def _worker_counts_twice() -> Patches:
    original: Method = WorkerMachine._begin

    def take(self: Jobs, job: HeldJob) -> None:
        self.results.pop(job.id, None)
        self.held.setdefault(job.id, job)

    def begin(self: WorkerMachine, now: float) -> Any:
        counted, self.state.ledger = self.state.ledger, 0
        commands = original(self, now)
        self.state.ledger = counted
        return commands

    return {(Jobs, "take"): take, (WorkerMachine, "_begin"): begin}


def _needs_input_is_done() -> Patches:
    original: Method = Queue.result

    def result(self: Queue, message: Result, now: float) -> Any:
        done = message.status is JobStatus.NEEDS_INPUT
        return original(self, replace(message, status=JobStatus.DONE) if done else message, now)

    return {(Queue, "result"): result}


def _homeless_gradient() -> Patches:
    original: Method = Outbox.put_to

    def put_to(self: Outbox, peer: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, peer, *args, **kwargs) if peer is not None else []

    return {(Outbox, "put_to"): put_to}


# -- parameters of the right step ----------------------------------------------------------------------


def _any_parameters() -> Patches:
    def following(self: Jobs, _: Any) -> HeldJob | None:
        return next((held for held in self.held.values() if not held.begun), None)

    def choose(self: Backlog, _: Worker) -> Entry | None:
        for shelf in self._shelves.values():
            for line in (*shelf.backwards.values(), shelf.forwards):
                if line:
                    return next(iter(line.values()))
        return None

    return {(Jobs, "next"): following, (Backlog, "choose"): choose}


def _ledger_outlives_step() -> Patches:
    def advance(self: StepState) -> None:
        self.step = Step(self.step + 1)

    return {(StepState, "advance"): advance}


def _late_workers_stay() -> Patches:
    return {(Coordinator, "_send_away_late"): _nothing}


# -- the commit ----------------------------------------------------------------------------------------


def _commit_unchecked() -> Patches:
    original: Method = Committer.owned

    def owned(self: Committer, stage: Stage) -> int:
        return self._full if original(self, stage) else 0

    def opened(self: Committer, stage: Stage) -> list[Send]:
        workers = [w for w in self._roster.of(Role.WORKER, stage) if w.is_ready]
        ledgers = {w.session: w.ledger if w.version == self.version else 0 for w in workers}
        self._num_rounds += 1
        started = self._rounds[stage] = OpenRound(round=Round(self._num_rounds), stage=stage, ledgers=ledgers)
        return [self._prepare(started, worker) for worker in workers]

    return {(Committer, "owned"): owned, (Committer, "_open"): opened}


def _commit_before_log() -> Patches:
    original: Method = Committer.decide

    def decide(self: Committer) -> Any:
        decided = original(self)
        return (decided[0], [*decided[1][1:], decided[1][0]]) if decided is not None else None

    return {(Committer, "decide"): decide}


def _commit_not_durable() -> Patches:
    original: Method = Committer.decide

    def decide(self: Committer) -> Any:
        decided = original(self)
        return (decided[0], [replace(decided[1][0], durable=False), *decided[1][1:]]) if decided is not None else None

    return {(Committer, "decide"): decide}


def _each_stage_skips_alone() -> Patches:
    original: Method = Committer._commit

    def commit(self: Committer, opened: OpenRound, decision: Any) -> Any:
        return replace(original(self, opened, decision), apply=opened.result.finite)

    return {(Committer, "_commit"): commit}


def _sum_of_what_is_there() -> Patches:
    def shard(self: Inbox, sender: Any, phase: Any, index: int) -> tuple[Load, ...] | None:
        chunks = self.chunks.get((sender, phase, index))
        return tuple(chunks[place] for place in sorted(chunks)) if chunks else None

    return {(Inbox, "shard"): shard}


# -- bounds --------------------------------------------------------------------------------------------


def _credit_without_end() -> Patches:
    return {(Credits, "free_bytes"): property(lambda self: 4 * self._unit_bytes)}


def _reserve_once() -> Patches:
    original: Method = Credits.take

    def take(self: Credits, producer: Any, size_bytes: int) -> Any:
        took = original(self, producer, size_bytes)
        self.reserved_bytes -= size_bytes if took else 0
        return took

    return {(Credits, "take"): take}


MUTANTS: dict[str, Mutant] = {
    "outputs-once": Mutant("a worker's output is sent once", _outputs_once),
    "chunks-once": Mutant("a chunk of an all-reduce is sent once", _chunks_once),
    "prepare-once": Mutant("Prepare is sent once", _prepare_once),
    "commit-once": Mutant("Commit is sent once", _commit_once),
    "job-once": Mutant("a job is sent once", _job_once),
    "view-once": Mutant("a view is sent once", _view_once),
    "broker-forgets": Mutant("a broker does not know what it has finished", _broker_forgets),
    "worker-counts-twice": Mutant("a worker knows neither finished jobs nor its ledger", _worker_counts_twice),
    "needs-input-is-done": Mutant("a backward without its input passes for done", _needs_input_is_done),
    "homeless-gradient": Mutant("a gradient whose home broker is in no view yet is dropped", _homeless_gradient),
    "any-parameters": Mutant("brokers give and workers run jobs of any step", _any_parameters),
    "ledger-outlives-step": Mutant("the ledger of a step is that of the next one, too", _ledger_outlives_step),
    "late-workers-stay": Mutant("a worker that missed a commit stays a member", _late_workers_stay),
    "commit-unchecked": Mutant("a round opens without looking at the ledgers", _commit_unchecked),
    "commit-before-log": Mutant("a commit is told before it is in the log", _commit_before_log),
    "commit-not-durable": Mutant("a commit is in the log, but not synced", _commit_not_durable),
    "each-stage-skips-alone": Mutant("a stage skips a step that the others take", _each_stage_skips_alone),
    "sum-of-what-is-there": Mutant("a shard is summed before all of its chunks are there", _sum_of_what_is_there),
    "credit-without-end": Mutant("a broker promises room that it does not have", _credit_without_end),
    "reserve-once": Mutant("a broker reserves no room for the gradient", _reserve_once),
}
