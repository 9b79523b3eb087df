"""What must hold of one broker or one worker at any moment, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator

from brokers.entries import Entry, EntryState
from brokers.machine import BrokerMachine
from brokers.queue import Queue
from stages.device import most_unfinished
from stages.worker import WorkerMachine
from zswarm import limits
from zswarm.ids import JobKind, Purpose, Stage
from zswarm.messages import Key
from zswarm.simulation.violation import Violation, require

LATE_COPIES = 3
LEASED = (EntryState.FORWARD_LEASED, EntryState.BACKWARD_LEASED)


def most_leases(stage: Stage) -> int:
    """Return how many jobs one broker may have out at a worker of this stage."""
    return limits.PREFETCH + most_unfinished(stage)


def check_queue(name: str, queue: Queue, bound_bytes: int, *, most: int) -> None:
    """I7 at a broker: bytes and credits within the bound, every lease of one entry and at most so many of a worker,
    books that balance."""
    credits = queue.credits
    reserved = num_leased = 0
    held = kept = queue.credits.kept_bytes
    for entry in queue.entries.values():
        reserved += 2 * entry.credit_bytes
        held += entry.x.parcel.size_bytes + (entry.dy.parcel.size_bytes if entry.dy is not None else 0)
        is_leased = entry.record is not None
        num_leased += is_leased
        if entry.hedge is not None:
            num_leased += 1
            if not is_leased or not _may_be_hedged(entry):
                raise Violation("I7", f"{name}: {entry.key} is {entry.state.name}, and is hedged")
        if is_leased != (entry.state in LEASED):
            raise Violation("I7", f"{name}: {entry.key} is {entry.state.name}, its lease is {entry.record}")
    if credits.reserved_bytes != reserved:
        raise Violation("I7", f"{name} reserves {credits.reserved_bytes}, its entries take {reserved} bytes")
    promised = 0
    for producer, account in credits.accounts.items():
        credit_bytes = account.granted_bytes - account.received_bytes
        promised += credit_bytes
        if credit_bytes < 0:
            raise Violation("I7", f"{name}: session {producer} has {credit_bytes} bytes of credit")
    if reserved + kept + 2 * promised > bound_bytes or held > bound_bytes or kept < 0:
        raise Violation(
            "I7",
            f"{name} holds {held}, reserves {reserved}, keeps {kept} and promises 2 * {promised} of {bound_bytes} bytes",
        )
    for worker in queue.workers.values():
        if not worker.leases:
            continue
        num_leased -= sum(not record.is_needless for record in worker.leases.values())
        if len(worker.leases) > most:
            raise Violation("I7", f"{name} leases {len(worker.leases)} jobs to session {worker.session}")
        for record in worker.leases.values():
            if record is not record.entry.record and record is not record.entry.hedge and not record.is_needless:
                raise Violation("I7", f"{name}: lease {record.lease} is not its entry's")
    if num_leased:
        raise Violation("I7", f"{name} has {num_leased} leased entries too many")


def _may_be_hedged(entry: Entry) -> bool:
    """Does the job of a leased entry count nothing, and has what comes of it one home, or none that matters?"""
    assert entry.record is not None
    if entry.key[2] is Purpose.EVALUATE:
        return True
    return not entry.accumulate and entry.record.kind is not JobKind.FORWARD


def check_worker(name: str, machine: WorkerMachine, *, num_brokers: int) -> None:
    """I7 at a worker: no debt, and what it holds is bounded; there are `num_brokers` in the whole swarm.

    Not only those of its view count: a job may come before the view that names its broker, and one that has
    begun is held until it ends, also when its broker has left.
    """
    outbox = machine.outbox
    if outbox is None:
        return
    for state in outbox.brokers():
        if state.granted_bytes < state.sent_bytes:
            raise Violation("I7", f"{name} owes broker {state.broker} {-state.credit_bytes} bytes")
    num_held, num_waiting = len(machine.jobs.held), outbox.num_waiting
    if num_held > 1 or num_waiting > 1:
        most = most_leases(machine.membership.stage) * num_brokers + 1
        if num_held > most:
            raise Violation("I7", f"{name} holds {num_held} jobs, more than {most}")
        # Each broker may have sent what it was told to before it heard that the outbox is full, and once
        # more for every late copy of an older message.
        if num_waiting >= limits.OUTBOX_LENGTH + LATE_COPIES * most:
            raise Violation("I7", f"{name} has {num_waiting} outputs without credit")


def check_empty_queue(name: str, queue: Queue) -> None:
    """I8 at a broker, after the run: nothing is left."""
    require(not queue.entries, "I8", f"{name} still holds {list(queue.entries.values())}")
    still = queue.credits.reserved_bytes + queue.credits.kept_bytes
    require(still == 0 and not len(queue.retention), "I8", f"{name} still reserves or keeps {still} bytes")


def active_keys(machine: BrokerMachine) -> Iterator[Key]:
    """Yield what a broker will act on by itself: not what waits for a gradient from elsewhere."""
    if machine.queue is not None:
        for key, entry in machine.queue.entries.items():
            if entry.state is not EntryState.WAITING:
                yield key


def held_keys(machine: WorkerMachine) -> Iterator[Key]:
    """Yield what a worker will act on by itself: jobs that are not finished, outputs not acknowledged."""
    if machine.outbox is not None:
        for _, key in machine.outbox.pending():
            yield key
    for held in machine.jobs.held.values():
        yield held.job.key
