"""What waits for a worker at a broker, indexed so that choosing costs the same however much is held.

Only jobs of a worker's own (branch, step) are for it; those of the next step wait on a shelf of their
own. From its shelf a worker gets

    first a backward that it ran the forward of, then a backward that nobody kept the input of, then the
    oldest forward, then a backward that another worker kept but is too busy to take soon.

A worker in which a layer raised at an entry gets it again only when nobody is left in the pool who has not failed at it.

An entry is here exactly while its state is FORWARD_QUEUED or BACKWARD_QUEUED.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

from brokers.entries import Entry, EntryState, Line, Worker
from zswarm.ids import Session, Version

STEAL_FACTOR = 2.0
"""A backward is given to a worker that must recompute only if the wait is this many jobs longer."""


def may_do(worker: Worker, entry: Entry, workers: Mapping[Session, Worker]) -> bool:
    """Has this worker not failed at this entry, or everybody of the pool who takes jobs?"""
    failed_at = entry.failed_at
    if worker.node not in failed_at:
        return True
    return all(other.leaves or other.node in failed_at for other in workers.values())


class Shelf:
    """The entries of one (branch, step)."""

    __slots__ = ("backwards", "forwards")

    def __init__(self) -> None:
        self.forwards: Line = OrderedDict()
        self.backwards: defaultdict[Session | None, Line] = defaultdict(OrderedDict)
        """By the worker that kept the input; None for nobody."""

    def line(self, entry: Entry) -> Line:
        """Return the line that an entry stands in, by its state."""
        return self.backwards[entry.affine] if entry.state is EntryState.BACKWARD_QUEUED else self.forwards


class Backlog:
    """See the module. `workers` is the broker's pool, which changes under this object's eyes."""

    def __init__(self, workers: Mapping[Session, Worker]) -> None:
        self._workers = workers
        self._shelves: dict[Version, Shelf] = {}
        self.num_entries = 0

    def add(self, entry: Entry, *, again: bool = False) -> None:
        """Put an entry at the end of its line, or before all others if it has been there `again`."""
        if entry.affine is not None:
            keeper = self._workers.get(entry.affine)
            if keeper is None or keeper.leaves:
                entry.affine = None
        version = entry.version
        shelf = self._shelves.get(version)
        if shelf is None:
            shelf = self._shelves[version] = Shelf()
        line = entry.line = shelf.line(entry)
        line[entry.key] = entry
        if again:
            line.move_to_end(entry.key, last=False)
        self.num_entries += 1

    def remove(self, entry: Entry) -> None:
        """Take an entry out."""
        assert entry.line is not None
        del entry.line[entry.key]
        entry.line = None
        self.num_entries -= 1

    def forget_worker(self, worker: Session) -> None:
        """Nobody keeps any more what this worker kept."""
        for shelf in self._shelves.values():
            for entry in shelf.backwards.pop(worker, {}).values():
                entry.affine = None
                line = entry.line = shelf.backwards[None]
                line[entry.key] = entry

    def drop_before(self, version: Version) -> None:
        """Forget the empty shelves of older versions."""
        assert not any(
            shelf.forwards or any(shelf.backwards.values()) for v, shelf in self._shelves.items() if v < version
        )
        self._shelves = {v: shelf for v, shelf in self._shelves.items() if v >= version}

    def choose(self, worker: Worker) -> Entry | None:
        """Return the entry that this worker shall have next; see the order in the module's text."""
        if worker.version is None or (shelf := self._shelves.get(worker.version)) is None:
            return None
        for line in (shelf.backwards[worker.session], shelf.backwards[None], shelf.forwards):
            if line and (entry := self._first(line.values(), worker)) is not None:
                return entry
        return None if worker.leases else self._steal(worker, shelf)

    def _first(self, entries: Iterable[Entry], worker: Worker) -> Entry | None:
        for entry in entries:
            if not entry.failed_at or may_do(worker, entry, self._workers):
                return entry
        return None

    def _steal(self, thief: Worker, shelf: Shelf) -> Entry | None:
        for session, line in shelf.backwards.items():
            if line and session is not None and self._is_worth_it(thief, self._workers[session], len(line)):
                return self._first(line.values(), thief)
        return None

    @staticmethod
    def _is_worth_it(thief: Worker, owner: Worker, num_queued: int) -> bool:
        wait_s = (len(owner.leases) + num_queued) * owner.job_s
        return owner.free_slots <= 0 and wait_s > STEAL_FACTOR * max(thief.job_s, owner.job_s)
