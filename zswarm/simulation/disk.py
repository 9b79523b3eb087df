"""The trainer's disk: what survives its death.

Records of the event log are written at once; those that are durable are synced, and what came before them with
them. A process that dies loses nothing that was written, a machine that loses power loses what was not synced: a
number of the last records, the last one perhaps torn, which reads as not there. A checkpoint appears as a whole or not
at all; the two newest are kept, as in a run folder.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

from zswarm.ids import Branch, StatePart, Step
from zswarm.json_lines import encode
from zswarm.simulation.states import range_of
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.settings import Read, Seal, Sealed, Store, WasRead

Content = dict[tuple[int, StatePart], bytes]
"""(layer, part) -> file."""
Place = tuple[Branch, Step]
KEPT = 2
MOST_BEHIND_S = 4.0
FAILS_ONE_IN = 3
"""How often a checkpoint does not fit, on a disk that is faulty; the last one, without which the run fails, does."""


class Disk:
    """See the module. With `is_faulty` it may be full, and a crash of the trainer is one of its machine."""

    def __init__(self, random: Random, *, is_faulty: bool, last_step: int) -> None:
        self.records: list[dict[str, Any]] = []
        self.checkpoints: dict[Place, Content] = {}
        """Those that are complete, the newest last."""
        self.is_faulty = is_faulty
        self.num_lost = 0
        self._random = random
        self._last_step = last_step
        self._num_synced = 0
        self._unfinished: dict[Place, Content] = {}
        self._sealing: set[Place] = set()

    @property
    def is_finished(self) -> bool:
        """Does the log say that the run is over?"""
        return bool(self.records) and self.records[-1]["event"] == "finish"

    def newest(self, recovered: Recovered) -> Place | None:
        """Return the newest complete checkpoint of the run's present history."""
        return max((place for place in self.checkpoints if not recovered.is_void(place)), default=None)

    def append(self, record: dict[str, Any], *, durable: bool) -> None:
        """Write a record."""
        self.records.append(record)
        if durable:
            self._num_synced = len(self.records)

    def crash(self) -> None:
        """The trainer dies: what it was at may have been done, or not."""
        if self.is_faulty:
            kept = self._random.randint(self._num_synced, len(self.records))
            self.num_lost += len(self.records) - kept
            del self.records[kept:]
        self._num_synced = len(self.records)
        for place in sorted(self._sealing):
            if self._random.random() < 0.5:
                self._complete(place)
        self._sealing.clear()
        self._unfinished.clear()

    def read_log(self) -> list[dict[str, Any]]:
        """Return the records as they come back from the file."""
        return [json.loads(encode(record)) for record in self.records]

    # -- checkpoints ---------------------------------------------------------------------------------

    def store(self, store: Store) -> str:
        """Write a range of a file; returns what is wrong with it, "" for nothing."""
        (content,) = store.load.frames
        files = self._unfinished.setdefault((store.branch, store.step), {})
        before = files.get((store.layer, store.part), b"") if store.offset_bytes else b""
        if len(before) != store.offset_bytes:
            return f"{store.part.name} of layer {store.layer} is stored from {store.offset_bytes} on, not {len(before)}"
        files[store.layer, store.part] = before + content
        return ""

    def behind_s(self) -> float | None:
        """Return for how long the disk falls behind now, as a faulty one does here and there; None if it does not."""
        return self._random.uniform(0.0, MOST_BEHIND_S) if self.is_faulty and self._random.random() < 0.1 else None

    def unfinished(self, place: Place) -> Content:
        """Return what has been stored of a checkpoint that is not sealed."""
        return self._unfinished.get(place, {})

    def forsake(self, place: Place) -> None:
        """Drop an unfinished checkpoint."""
        self._unfinished.pop(place, None)
        self._sealing.discard(place)

    def seal(self, seal: Seal) -> tuple[float, Sealed]:
        """Begin to make a checkpoint durable: what comes of it, and in how many seconds, by `finish_sealing`."""
        problem = ""
        if self.is_faulty and seal.step < self._last_step and self._random.randrange(FAILS_ONE_IN) == 0:
            problem = "no space left on the device"
        else:
            self._sealing.add((seal.branch, seal.step))
        sealed = Sealed(branch=seal.branch, step=seal.step, problem=problem, lacks_room=bool(problem))
        return self._random.uniform(0.0, 0.3), sealed

    def finish_sealing(self, sealed: Sealed) -> None:
        """It is durable now, unless there was a problem."""
        place = (sealed.branch, sealed.step)
        if place in self._sealing:
            self._sealing.remove(place)
            self._complete(place)
        self._unfinished.pop(place, None)

    def _complete(self, place: Place) -> None:
        self.checkpoints[place] = self._unfinished.pop(place)
        for old in sorted(self.checkpoints)[:-KEPT]:
            del self.checkpoints[old]

    def read(self, read: Read) -> tuple[float, WasRead]:
        """Read a range of a checkpoint: what comes of it, and in how many seconds."""
        pull = read.pull
        content = self.checkpoints.get(read.checkpoint, {}).get((pull.layer, pull.part))
        in_s = self._random.choice((0.0, 0.01))
        if content is None:
            gone = WasRead(peer=read.peer, pull=pull, total_bytes=0, load=None, problem="there is no such file")
            return in_s, replace(gone, is_damaged=True, left=tuple(self.checkpoints))
        load = range_of(content, pull.offset_bytes)
        return in_s, WasRead(peer=read.peer, pull=pull, total_bytes=len(content), load=load)
