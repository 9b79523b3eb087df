"""What waits for a worker at a broker, indexed so that choosing costs the same however much is held.

Only jobs of a worker's own (branch, step) are for it; those of the next step wait on a shelf of their
own. From its shelf a worker gets

    first a backward that it ran the forward of, then a backward that nobody kept the input of, then the
    oldest forward, then a backward that another worker kept but is too busy to take soon.

An entry is here exactly while its state is FORWARD_QUEUED or BACKWARD_QUEUED.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping

from brokers.entries import Entry, EntryState, Worker
from zswarm.ids import Branch, Session, Step
from zswarm.messages import Key

STEAL_FACTOR = 2.0
"""A backward is given to a worker that must recompute only if the wait is this many jobs longer."""

Line = OrderedDict[Key, Entry]
"""Entries in the order in which they shall be taken."""


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
        self._shelves: dict[tuple[Branch, Step], Shelf] = {}
        self._num_entries = 0

    def __len__(self) -> int:
        return self._num_entries

    def add(self, entry: Entry, *, again: bool = False) -> None:
        """Put an entry at the end of its line, or before all others if it has been there `again`."""
        if entry.affine not in self._workers:
            entry.affine = None
        shelf = self._shelves.get(entry.version)
        if shelf is None:
            shelf = self._shelves[entry.version] = Shelf()
        line = shelf.line(entry)
        line[entry.key] = entry
        if again:
            line.move_to_end(entry.key, last=False)
        self._num_entries += 1

    def remove(self, entry: Entry) -> None:
        """Take an entry out, before its state or its affinity changes."""
        del self._shelves[entry.version].line(entry)[entry.key]
        self._num_entries -= 1

    def forget_worker(self, worker: Session) -> None:
        """Nobody keeps any more what this worker kept."""
        for shelf in self._shelves.values():
            for entry in shelf.backwards.pop(worker, {}).values():
                entry.affine = None
                shelf.backwards[None][entry.key] = entry

    def drop_before(self, version: tuple[Branch, Step]) -> None:
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
            for entry in line.values():
                return entry
        return None if worker.leases else self._steal(worker, shelf)

    def _steal(self, thief: Worker, shelf: Shelf) -> Entry | None:
        for session, line in shelf.backwards.items():
            if line and session is not None and self._is_worth_it(thief, self._workers[session], len(line)):
                return next(iter(line.values()))
        return None

    @staticmethod
    def _is_worth_it(thief: Worker, owner: Worker, num_queued: int) -> bool:
        wait_s = (len(owner.leases) + num_queued) * owner.job_s
        return owner.free_slots <= 0 and wait_s > STEAL_FACTOR * max(thief.job_s, owner.job_s)
