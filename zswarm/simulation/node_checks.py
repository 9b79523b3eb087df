"""What must hold of one broker or one worker at any moment, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator

from brokers.entries import EntryState
from brokers.machine import BrokerMachine
from brokers.queue import Queue
from stages.worker import WorkerMachine
from zswarm import limits
from zswarm.messages import Key
from zswarm.simulation.violation import require

LEASED = (EntryState.FORWARD_LEASED, EntryState.BACKWARD_LEASED)


def check_queue(name: str, queue: Queue) -> None:
    """I7 at a broker: bytes and credits within the bound, every lease of one entry, books that balance."""
    credits = queue.credits
    reserved = held = num_leased = 0
    for entry in queue.entries.values():
        size_bytes = entry.x.parcel.size_bytes
        reserved += 2 * size_bytes
        held += size_bytes + (entry.dy.parcel.size_bytes if entry.dy is not None else 0)
        num_leased += entry.record is not None
        require(
            (entry.record is not None) == (entry.state in LEASED), "I7", f"{name}: {entry.key} is {entry.state.name}"
        )
    require(credits.reserved_bytes == reserved, "I7", f"{name} reserves {credits.reserved_bytes}, not {reserved} bytes")
    promised = 0
    for producer, account in credits.accounts.items():
        require(account.credit_bytes >= 0, "I7", f"{name}: session {producer} has {account.credit_bytes} bytes of credit")
        promised += account.credit_bytes
    bound = credits.bound_bytes
    require(reserved + 2 * promised <= bound, "I7", f"{name} reserves {reserved} and promises 2 * {promised} of {bound}")
    require(held <= bound, "I7", f"{name} holds {held} of {bound} bytes")
    for worker in queue.workers.values():
        num_leases = len(worker.leases)
        require(num_leases <= limits.PREFETCH, "I7", f"{name} leases {num_leases} jobs to session {worker.session}")
        num_leased -= num_leases
        for record in worker.leases.values():
            require(record.entry.record is record, "I7", f"{name}: lease {record.lease} is not its entry's")
    require(num_leased == 0, "I7", f"{name} has {-num_leased} leases without an entry")


def check_worker(name: str, machine: WorkerMachine) -> None:
    """I7 at a worker: no debt, and what it holds is bounded."""
    outbox = machine.outbox
    if outbox is None:
        return
    for state in outbox.brokers():
        require(state.credit_bytes >= 0, "I7", f"{name} owes broker {state.broker} {-state.credit_bytes} bytes")
    most = limits.PREFETCH * len(machine.membership.brokers(machine.membership.stage))
    require(len(machine.jobs.held) <= most, "I7", f"{name} holds {len(machine.jobs.held)} jobs, more than {most}")
    waiting = outbox.num_waiting
    require(waiting < limits.OUTBOX_LENGTH + max(most, 1), "I7", f"{name} has {waiting} outputs without credit")


def check_empty_queue(name: str, queue: Queue) -> None:
    """I8 at a broker, after the run: nothing is left."""
    require(not queue.entries, "I8", f"{name} still holds {list(queue.entries.values())}")
    require(queue.credits.reserved_bytes == 0, "I8", f"{name} still reserves {queue.credits.reserved_bytes} bytes")


def active_keys(machine: BrokerMachine) -> Iterator[Key]:
    """Yield what a broker will act on by itself: not what waits for a gradient from elsewhere."""
    if machine.queue is not None:
        for key, entry in machine.queue.entries.items():
            if entry.state is not EntryState.WAITING:
                yield key


def held_keys(machine: WorkerMachine) -> Iterator[Key]:
    """Yield what a worker will act on by itself: jobs that are not finished, outputs not acknowledged."""
    if machine.outbox is not None:
        for _, key in machine.outbox.keys():
            yield key
    for held in machine.jobs.held.values():
        yield held.job.key
