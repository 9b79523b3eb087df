"""Mutants of the broker: what it remembers, whom it leases to, what it promises."""

# A mutant is surgery: it reaches inside.
# ruff: noqa: SLF001

from __future__ import annotations

from dataclasses import replace
from typing import Any

from brokers.credit import Credits
from brokers.entries import Entry, EntryState, Worker
from brokers.leasing import Leasing
from brokers.queue import Queue
from brokers.retention import Retention
from brokers.voids import Voids
from zswarm.ids import JobStatus, Session, Version
from zswarm.messages import Ready, Result, Room
from zswarm.outbox import Outbox
from zswarm.simulation.surgery import Forgetful, Method, Mutant, Patches, no, nothing


def _job_once() -> Patches:
    def repeat(*_: Any) -> list[Any]:
        return []

    return {(Leasing, "repeat"): repeat}


def _forgets() -> Patches:
    init: Method = Queue.__init__
    advance: Method = Queue._advance

    def forgetful_init(self: Queue, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._settled = Forgetful()

    def forgetful_advance(self: Queue, *args: Any) -> Any:
        result = advance(self, *args)
        self._settled = Forgetful()
        return result

    return {(Queue, "__init__"): forgetful_init, (Queue, "_advance"): forgetful_advance}


def _needs_input_is_done() -> Patches:
    original: Method = Queue.result

    def result(self: Queue, message: Result, now: float) -> Any:
        done = message.status is JobStatus.NEEDS_INPUT
        return original(self, replace(message, status=JobStatus.DONE) if done else message, now)

    return {(Queue, "result"): result}


def _leases_again_on_time_out() -> Patches:
    def repeat(self: Leasing, worker: Worker, _: Any, now: float) -> list[Any]:
        for record in list(worker.leases.values()):
            if now - record.sent_at_s > 1.0:
                self.requeue(record)
        return []

    return {(Leasing, "repeat"): repeat}


def _redo_of_the_living() -> Patches:
    def take_back(self: Retention, _: Any) -> list[Entry]:
        lost = list(self._entries.values())
        for entry in lost:
            del self._entries[entry.key]
            self._credits.reserve_again(entry.credit_bytes)
        return lost

    return {(Retention, "take_back"): take_back}


def _void_forgotten() -> Patches:
    return {(Voids, "covers"): no}


def _waiting_is_active() -> Patches:
    def active(self: Queue, version: Version) -> int:
        bitmap = 0
        for entry in (*self.entries.values(), *self.retention._entries.values()):
            if entry.version == version and entry.trains:
                bitmap |= 1 << entry.microbatch
        return bitmap

    return {(Queue, "active"): active}


def _branch_unchecked() -> Patches:
    original: Method = Queue.ready

    def ready(self: Queue, message: Ready, *args: Any) -> Any:
        worker = self.workers.get(message.session)
        if worker is not None and worker.version is not None:
            message = replace(message, branch=worker.version[0])
        return original(self, message, *args)

    return {(Queue, "ready"): ready}


def _hedges_anything() -> Patches:
    return {(Entry, "is_hedgeable"): property(lambda _: True)}


def _producer_charges_the_size() -> Patches:
    original: Method = Outbox.update_room

    def update_room(self: Outbox, broker: Session, room: Room, *args: Any) -> Any:
        return original(self, broker, replace(room, unit_bytes=0), *args)

    return {(Outbox, "update_room"): update_room}


def _credit_without_end() -> Patches:
    return {(Credits, "free_bytes"): property(lambda self: 4 * self._unit_bytes)}


def _reserve_once() -> Patches:
    original: Method = Credits.take

    def take(self: Credits, producer: Any, size_bytes: int) -> Any:
        took = original(self, producer, size_bytes)
        self.reserved_bytes -= size_bytes if took else 0
        return took

    return {(Credits, "take"): take}


def _lost_forward_again() -> Patches:
    original: Method = Queue._let_go

    def let_go(self: Queue, leaver: Worker, now: float) -> None:
        for record in list(leaver.leases.values()):
            if record.entry.state is EntryState.FORWARD_LEASED:
                self.leasing.requeue(record)
                leaver.leases.pop(record.lease, None)
        original(self, leaver, now)

    return {(Queue, "_let_go"): let_go}


def _leaves_with_homes() -> Patches:
    return {(Queue, "is_settled"): property(lambda self: self.is_closed)}


def _leaves_while_something_comes() -> Patches:
    return {(Queue, "is_settled"): property(lambda self: self.is_closed and self.is_empty)}


def _view_tells_no_step() -> Patches:
    original: Method = Queue.set_members

    def set_members(self: Queue, members: Any, _: Version, now: float) -> Any:
        return original(self, members, self.version, now)

    return {(Queue, "set_members"): set_members}


def _heirs_unknown() -> Patches:
    return {(Retention, "bequeath"): nothing}


def _results_that_are_lost() -> Patches:
    original: Method = Queue._bequeath

    def bequeath(self: Queue, workers: Any) -> None:
        kept = {session: self.workers.pop(session) for session in [*self.workers] if session not in workers}
        original(self, workers)
        self.workers.update(kept)

    return {(Queue, "_bequeath"): bequeath}


MUTANTS: dict[str, Mutant] = {
    "results-that-are-lost": Mutant(
        "what a copy has is done again if the word that it was done has not come (R4, R10)", _results_that_are_lost
    ),
    "heirs-unknown": Mutant("what a leaver has handed over is done again all the same (R4)", _heirs_unknown),
    "job-once": Mutant("a job is sent once", _job_once),
    "broker-forgets": Mutant("a broker does not know what it has finished", _forgets),
    "needs-input-is-done": Mutant("a backward without its input passes for done", _needs_input_is_done),
    "leases-again-on-time-out": Mutant("a job is leased again while somebody has it (R4)", _leases_again_on_time_out),
    "forward-sent-on-again": Mutant("a forward is done again that may have been sent on (R4)", _lost_forward_again),
    "redo-of-the-living": Mutant("what a live worker has counted is done again (R4)", _redo_of_the_living),
    "broker-forgets-voids": Mutant("a broker takes attempts that it has voided (R9)", _void_forgotten),
    "waiting-is-active": Mutant("a broker reports what waits or is done as in work", _waiting_is_active),
    "branch-unchecked": Mutant("a broker does not hear that the run has gone back", _branch_unchecked),
    "leaves-with-homes": Mutant("a broker is let go that is home to something", _leaves_with_homes),
    "leaves-while-something-comes": Mutant(
        "a broker is let go while something is on its way to it", _leaves_while_something_comes
    ),
    "view-tells-no-step": Mutant("what is committed is done again for who leaves with the commit", _view_tells_no_step),
    "hedges-anything": Mutant(
        "a job that counts, or a forward to train on, is given to two workers (R4)", _hedges_anything
    ),
    "charges-the-size": Mutant(
        "a producer pays for what it sends, not for what comes back", _producer_charges_the_size
    ),
    "credit-without-end": Mutant("a broker promises room that it does not have", _credit_without_end),
    "reserve-once": Mutant("a broker reserves no room for the gradient", _reserve_once),
}
