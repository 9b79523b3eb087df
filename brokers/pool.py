"""What a broker makes of its workers: who is silent, which lease a busy one, with two or more, could leave to an idle one, and
which the idle one could do as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from brokers.backlog import STEAL_FACTOR, may_do
from brokers.entries import LeaseRecord, Worker
from zswarm import limits
from zswarm.ids import JobKind, Session

HEDGE_TIMES = 3.0
"""How many times longer than one takes for a job another one must have had it, for the one to do it, too."""
Pool = Mapping[Session, Worker]


def silent(workers: Pool, now: float, after_s: float) -> tuple[Session, ...]:
    """Return those with leases out that have not been heard from for so long, the longest first, as a heartbeat
    may name."""
    found = [worker for worker in workers.values() if worker.leases and now - worker.heard_at_s > after_s]
    found.sort(key=lambda worker: (worker.heard_at_s, worker.session))
    return tuple(worker.session for worker in found[: limits.MAX_ACCUSED])


def excuse(workers: Pool, now: float, stall_s: float) -> None:
    """The broker itself was not running: nobody is to blame for what it did not hear meanwhile."""
    for worker in workers.values():
        worker.heard_at_s = min(now, worker.heard_at_s + stall_s)


def to_ask_back(workers: Pool, busy: list[Worker], idle: Worker) -> LeaseRecord | None:
    """Return the lease that a busy worker shall leave to this one, which has nothing to do; None if there is none.

    That is the one for which somebody was asked already, or else one of the worker that takes longest for what it
    has. For each idle worker one is asked for, and each lease for one idle worker.
    """
    for owner in busy:
        for record in owner.leases.values():
            if record.asked_for == idle.session:
                return record
    slowest_first = sorted(busy, key=lambda w: (len(w.leases) * w.job_s, len(w.leases), w.session), reverse=True)
    for owner in slowest_first:
        for record in _not_begun(owner):
            is_asked_for = record.asked_for in workers
            if not is_asked_for and _is_worth_it(record, owner, idle) and may_do(idle, record.entry, workers):
                return record
    return None


def hedgeable(workers: Pool) -> list[LeaseRecord]:
    """Return the leases that a second worker may have as well, oldest first."""
    found = [
        record
        for owner in workers.values()
        for record in owner.leases.values()
        if not record.is_needless and record.entry.is_hedgeable
    ]
    return sorted(found, key=lambda record: record.since_s)


def to_hedge(hedgeable: list[LeaseRecord], workers: Pool, idle: Worker, now: float) -> LeaseRecord | None:
    """Return that of these leases that a worker that has nothing to do shall have a copy of; None if there is none.

    Nobody knows how long a worker takes that has done no job yet.
    """
    before_s = now - HEDGE_TIMES * idle.job_s if idle.job_s else float("-inf")
    for record in hedgeable:
        if record.since_s >= before_s:
            return None
        entry = record.entry
        if entry.hedge is None and entry.version == idle.version and may_do(idle, entry, workers):
            return record
    return None


def _not_begun(owner: Worker) -> Iterator[LeaseRecord]:
    """Yield the leases, newest first, of which neither order of arrival nor backwards first says that it runs."""
    leases = list(owner.leases.values())
    backwards = [record for record in leases if record.kind is JobKind.BACKWARD]
    for record in reversed(leases):
        if record is not leases[0] and record not in backwards[:1] and not record.is_needless:
            yield record


def _is_worth_it(record: LeaseRecord, owner: Worker, idle: Worker) -> bool:
    """Can the idle worker do it, and need it not compute again what its owner, not much slower, has kept?"""
    if record.entry.version != idle.version:
        return False
    return record.entry.affine != owner.session or owner.job_s > STEAL_FACTOR * idle.job_s
