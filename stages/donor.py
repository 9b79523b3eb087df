"""Giving one's state to whoever asks: the present parameters, or the copy for a checkpoint.

    Pull --> Export (one after the other, in the order of the Pulls) --Exported--> State

Commits go on meanwhile. What a worker has been asked for lately it keeps over a commit: the layers as they were, so that
a file that has begun is given to its end, and each step's gradient, so that whoever got a layer before can take the step,
too (`loader.py`). Asked for what it does not hold any more it answers with the beginning of the layer as it is now; the
trainer gets no answer then, since it wants one version and no other.

The copy that is kept for a checkpoint is of the step after the Commit that asked for it, and stays until another one is
asked for.

A SHARE is a copy of what has been counted when its first range is taken; all of its ranges say of what it is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from stages.participant import StepState
from stages.tasks import Apply, Export, Exported, Task
from zswarm import ledger, limits
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
    version: Version | None
    """None if there is no answer any more: what was counted is void."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the copy of the share consists of that was begun last."""

    ledger: int
    loss_sum: float
    num_targets: int


class Donor:
    """See the module."""

    def __init__(self, membership: Membership, state: StepState) -> None:
        self._me = membership
        self._state = state
        self._given: Given | None = None
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

    def forget_share(self) -> None:
        """What has been counted is void, or in a step."""
        self._given = None
        for place, asked in enumerate(self._asked):
            if asked.pull.part is StatePart.SHARE:
                self._asked[place] = replace(asked, version=None)

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
            is_there = shares and version == present and (offset_bytes == 0 or self._given is not None)
            return (Export(part=part, layer=layer, offset_bytes=offset_bytes), version) if is_there else None
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
        if asked.version is None:
            return []
        branch, step = asked.version
        about: dict[str, Any] = self._about_share(outcome) if outcome.part is StatePart.SHARE else {}
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
            **about,
        )
        return [Send(peer=asked.peer, message=message, frames=outcome.load.frames)]

    def _about_share(self, outcome: Exported) -> dict[str, Any]:
        """Say what a share consists of: with its first range that is what has been counted by now, since outcomes come in order."""
        state = self._state
        if outcome.offset_bytes == 0 or self._given is None:
            self._given = Given(state.ledger, state.loss_sum, state.num_targets)
        given = self._given
        loss_sum = given.loss_sum if math.isfinite(given.loss_sum) else None
        return {"ledger": ledger.to_bytes(given.ledger), "loss_sum": loss_sum, "num_targets": given.num_targets}
