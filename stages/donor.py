"""Giving one's state to whoever asks: the present parameters, or the copy for a checkpoint.

    Pull --> Export (one after the other, in the order of the Pulls) --Exported--> State

Commits go on meanwhile. What a worker has been asked for lately it keeps over a commit: the layers as they were, so that
a file that has begun is given to its end, and each step's gradient, so that whoever got a layer before can take the step,
too (`loader.py`). Asked for what it does not hold any more it answers with the beginning of the layer as it is now; the
trainer gets no answer then, since it wants one version and no other.

The copy that is kept for a checkpoint is of the step after the Commit that asked for it, and stays until another one is
asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from stages.tasks import Apply, Export, Exported, Task
from zswarm import limits
from zswarm.ids import TRAINER, Peer, StatePart, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Pull, State

Retained = tuple[int, Version]
"""A layer, and at which version."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A Pull whose Export is on its way, and which version the answer is of."""

    peer: Peer
    pull: Pull
    version: Version


class Donor:
    """See the module."""

    def __init__(self, membership: Membership) -> None:
        self._me = membership
        self._asked: deque[Asked] = deque()
        self.kept_version: Version | None = None
        """Of the copy for a checkpoint; None for none, and while it is being replaced."""
        self._pulled_at_s = float("-inf")
        """When another worker asked for anything."""
        self._wanted: dict[Retained, float] = {}
        """When a layer's state was asked for, of which version; who asks for the copy has it anyhow."""
        self._retained: set[Retained] = set()
        self._gradients: list[Version] = []
        """The versions from which a kept step led on."""

    def forget(self) -> None:
        """Other parameters take the place of these; the copy stays."""
        self._pulled_at_s = float("-inf")
        self._wanted.clear()
        self._retained.clear()
        self._gradients.clear()

    def keep(self, apply: Apply, before: Version, now: float) -> Apply:
        """Return the task that ends a version, and keeps what has been asked for lately."""
        since_s = now - limits.LEND_HEARTBEATS * self._me.heartbeat_s
        wanted = sorted(
            (at_s, retained)
            for retained, at_s in self._wanted.items()
            if at_s >= since_s and (retained[1] == before or retained in self._retained)
        )
        self._wanted = {retained: at_s for at_s, retained in wanted[-limits.MAX_RETAINED :]}
        self._retained = set(self._wanted)
        self._gradients = [*self._gradients, before][-limits.MAX_GRADIENTS :] if self._pulled_at_s >= since_s else []
        if not self._retained and not self._gradients:
            return apply
        retained = tuple(sorted((layer, step) for layer, (_, step) in self._retained))
        return replace(apply, retained=retained, gradients=tuple(step for _, step in self._gradients))

    def pull(
        self, message: Pull, peer: Peer, *, layers: range, present: Version | None, shares: bool, now: float
    ) -> list[Send | Task]:
        """Answer with a range of a layer's state, or, if it `shares` that, of what has been counted.

        `present` is the version that there will be when all tasks are done, None if there are no parameters to give.
        """
        if message.layer not in layers or len(self._asked) >= limits.MAX_PULLS:
            return []
        if any((asked.peer, asked.pull) == (peer, message) for asked in self._asked):
            return []
        found = self._find(message, present, shares=shares)
        if found is None:
            return []
        export, version = found
        if message.session != TRAINER and export.part is not StatePart.SHARE:
            self._pulled_at_s = now
            if export.part is not StatePart.GRADIENT:
                self._wanted[message.layer, version] = now
        self._asked.append(Asked(peer, message, version))
        return [export]

    def _find(self, message: Pull, present: Version | None, *, shares: bool) -> tuple[Export, Version] | None:
        """Return what is exported in answer, and which version it is of."""
        version = (message.branch, message.step)
        layer, part, offset_bytes = message.layer, message.part, message.offset_bytes
        if part is StatePart.SHARE:
            export = Export(part=part, layer=layer, offset_bytes=offset_bytes)
            return (export, version) if shares and version == present else None
        if part is StatePart.GRADIENT:
            if version in self._gradients:
                return Export(part=part, layer=layer, offset_bytes=offset_bytes, step=version[1]), version
        elif version == present:
            return Export(part=part, layer=layer, offset_bytes=offset_bytes), version
        elif version == self.kept_version:
            return Export(part=part, layer=layer, offset_bytes=offset_bytes, from_snapshot=True), version
        elif (layer, version) in self._retained:
            return Export(part=part, layer=layer, offset_bytes=offset_bytes, step=version[1]), version
        if present is None or message.session == TRAINER or version[0] != present[0] or version >= present:
            return None
        return Export(part=StatePart.PARAMETERS, layer=layer, offset_bytes=0), present

    def exported(self, outcome: Exported) -> list[Send | Task]:
        """Send a range to whoever asked for it; after a layer's last one nobody is in the middle of it."""
        asked = self._asked.popleft()
        branch, step = asked.version
        is_last = outcome.offset_bytes + outcome.load.parcel.size_bytes >= outcome.total_bytes
        if outcome.part is StatePart.OPTIMIZER and is_last:
            self._wanted.pop((outcome.layer, asked.version), None)
        message = State(
            **self._me.header(),
            branch=branch,
            step=step,
            part=outcome.part,
            layer=outcome.layer,
            offset_bytes=outcome.offset_bytes,
            total_bytes=outcome.total_bytes,
            parcel=outcome.load.parcel,
        )
        return [Send(peer=asked.peer, message=message, frames=outcome.load.frames)]
