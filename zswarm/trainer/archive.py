"""Checkpoints: when one is taken, from whom, and which one is the newest that is whole.

    NONE --commit of a step that is due: copies are kept--> COLLECTING --all is here--> SEALING --> NONE
     ^                                                          |                          |
     +------------ a copy is lost, or the swarm goes back ------+--- the disk is full -----+

Training never waits for it: while one checkpoint is in work none other is begun. The last one, after all steps, is what
the run ends with, and is taken from whoever has that state; one that is still being collected gives way to it, which is
no failure that anybody is told of. Without room for it the trainer's life ends and not the run: nobody is told to stop,
and whoever has that state waits for the next life, which asks for it again. One that turns out to be damaged, when the
swarm has gone back to it, gives way to the one before it that is still on the disk, and the swarm goes back further. A
range that cannot be read for another reason is not answered: whoever wants it asks again.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zswarm.errors import TRY_LATER, RunFailed
from zswarm.ids import STATE_FILES, Peer, Session, Stage, Step, Version
from zswarm.machine import Exit, Send
from zswarm.membership import Header
from zswarm.messages import Load, Pull, State
from zswarm.trainer.collection import Collection
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import (
    Append,
    Behind,
    CaughtUp,
    CoordinatorSettings,
    Forsake,
    Read,
    Seal,
    Sealed,
    Store,
    WasRead,
)

OLDER = 8
"""So many are remembered; which of them are kept is the run file's matter, and the disk says."""
Command = Send | Store | Seal | Forsake | Read | Append | Exit


class Archive:
    """See the module. `newest` is the newest checkpoint of this run's present history."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, header: Header) -> None:
        self._settings = settings
        self._roster = roster
        self._header = header
        self.newest: Version | None = settings.checkpoint
        known = settings.recovered.checkpoints if settings.recovered is not None else ()
        self._older = deque((v for v in known if self.newest is not None and v[1] < self.newest[1]), maxlen=OLDER)
        """Those before it of the same history, which may be on the disk still; the oldest first."""
        self._collection: Collection | None = None
        self._sealing: Version | None = None
        self._is_behind = False

    @property
    def step(self) -> Step | None:
        """Of the newest checkpoint."""
        return self.newest[1] if self.newest is not None else None

    @property
    def is_busy(self) -> bool:
        """Is a checkpoint in work?"""
        return self._collection is not None or self._sealing is not None

    @property
    def is_sealing(self) -> bool:
        """Is everything of a checkpoint here, and on its way to the disk?"""
        return self._sealing is not None

    def needs(self, donor: Session) -> bool:
        """Does the checkpoint that is in work still need the copy that this worker keeps?"""
        return self._collection is not None and self._collection.needs(donor)

    def is_due(self, step: Step) -> bool:
        """Shall copies of the state of `step` be kept?"""
        every = self._settings.checkpoint_every
        return every > 0 and step % every == 0 and step < self._settings.steps and not self.is_busy

    def begin(self, version: Version, donors: dict[Stage, Session] | None) -> list[Command]:
        """Fetch the state of a version from these workers, or with None from any."""
        if donors is not None and len(donors) < self._settings.num_stages:
            return []
        forsaken = self._forsake()
        self._collection = Collection(
            self._roster,
            self._header,
            version=version,
            layers_per_stage=self._settings.layers_per_stage,
            donors=donors,
        )
        return [*forsaken, *self._ask()]

    def beat(self) -> list[Command]:
        """Ask again for what is missing; give up what cannot be completed."""
        collection = self._collection
        if collection is None:
            return []
        if (lost := collection.lost_donor) is not None:
            return self.abandon(f"session {lost}, which kept a copy for it, is gone, or has none")
        return self._ask()

    def told(self, event: Sealed | WasRead | Behind | CaughtUp) -> list[Command]:
        """Hear from the disk.

        Raises:
            RunFailed: it is of no use any more, see below.

        """
        match event:
            case Sealed():
                return self._sealed(event)
            case WasRead():
                return self._was_read(event)
            case Behind() | CaughtUp():
                return self._paced(is_behind=isinstance(event, Behind))

    def _paced(self, *, is_behind: bool) -> list[Command]:
        """The disk has fallen behind, and no more is to come, or it has caught up."""
        self._is_behind = is_behind
        return self._ask()

    def _ask(self) -> list[Command]:
        """Ask for what is missing, unless what has come already waits for the disk."""
        return [] if self._is_behind or self._collection is None else [*self._collection.ask()]

    def received(self, message: State, load: Load) -> list[Command]:
        """Take a range."""
        collection = self._collection
        if collection is None:
            return []
        commands: list[Command] = [*collection.received(message, load, may_ask=not self._is_behind)]
        if collection.is_complete:
            self._collection, self._sealing = None, collection.version
            branch, step = collection.version
            commands.append(Seal(branch=branch, step=step))
        return commands

    def _sealed(self, event: Sealed) -> list[Command]:
        """A checkpoint is on the disk, or cannot be.

        Raises:
            RunFailed: it was the last one, what the run is for, and no room on the disk mends that.

        """
        if (event.branch, event.step) != self._sealing:
            return []
        self._sealing = None
        if not event.problem:
            if self.newest is not None:
                self._older.append(self.newest)
            self.newest = (event.branch, event.step)
            return [Append(record={"event": "checkpoint", "branch": event.branch, "step": event.step}, durable=True)]
        if event.step == self._settings.steps:
            text = f"all steps are done, and the trained model cannot be written: {event.problem}"
            if event.lacks_room:
                return [Exit(code=TRY_LATER, text=text)]
            raise RunFailed(text)
        return [Append(record=_failed((event.branch, event.step), event.problem))]

    def pulled(self, message: Pull, peer: Peer, version: Version) -> list[Command]:
        """A worker wants the state of the present version, which is a checkpoint's."""
        if self.newest is None or (message.branch, message.step) != version or message.step != self.newest[1]:
            return []
        if message.part not in STATE_FILES or not 0 <= message.layer < sum(self._settings.layers_per_stage):
            return []
        return [Read(peer=peer, pull=message, checkpoint=self.newest)]

    def _was_read(self, event: WasRead) -> list[Command]:
        """Answer it.

        Raises:
            RunFailed: nobody has that state but the disk, where it is damaged, and there is no earlier one.

        """
        pull = event.pull
        if event.load is None:
            return self._fall_back(event) if event.is_damaged and pull.step == self.step else []
        state = State(
            **self._header,
            branch=pull.branch,
            step=pull.step,
            part=pull.part,
            layer=pull.layer,
            offset_bytes=pull.offset_bytes,
            total_bytes=event.total_bytes,
            parcel=event.load.parcel,
        )
        return [Send(peer=event.peer, message=state, frames=event.load.frames)]

    def _fall_back(self, event: WasRead) -> list[Command]:
        """The newest checkpoint is damaged; raises RunFailed if no earlier one of this history is left."""
        while self._older and self._older[-1] not in event.left:
            self._older.pop()
        if self.newest is None or not self._older:
            raise RunFailed(f"the checkpoint cannot be read: {event.problem}")
        damaged, self.newest = self.newest, self._older.pop()
        return [Append(record=_failed(damaged, event.problem))]

    def roll_back(self) -> list[Command]:
        """The swarm goes back to the newest checkpoint: what was begun since is of a history that is void."""
        self._sealing = None
        return self.abandon("the run has gone back to an earlier step")

    def abandon(self, reason: str) -> list[Command]:
        """Drop the checkpoint that is in work, if one is; one that is complete is sealed all the same."""
        forsaken = self._forsake()
        return [*forsaken, *(Append(record=_failed((drop.branch, drop.step), reason)) for drop in forsaken)]

    def _forsake(self) -> list[Forsake]:
        if self._collection is None:
            return []
        (branch, step), self._collection = self._collection.version, None
        return [Forsake(branch=branch, step=step)]


def _failed(version: Version, problem: str) -> dict[str, Any]:
    return {"event": "checkpoint", "branch": version[0], "step": version[1], "problem": problem}
