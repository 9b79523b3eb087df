"""Giving one's state to whoever asks: the present parameters, or the copy for a checkpoint.

    Pull --> Export (one after the other, in the order of the Pulls) --Exported--> State

A Pull for a version that is not held gets no answer: whoever asked hears of another donor. The copy that is kept is
of the step after the Commit that asked for it, and stays until another one is asked for.
"""

from __future__ import annotations

from collections import deque

from stages.tasks import Export, Exported, Task
from zswarm import limits
from zswarm.ids import Peer, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Pull, State


class Donor:
    """See the module."""

    def __init__(self, membership: Membership) -> None:
        self._me = membership
        self._pulls: deque[tuple[Peer, Pull]] = deque()
        self.kept_version: Version | None = None
        """Of the copy for a checkpoint; None for none, and while it is being replaced."""

    def pull(self, message: Pull, peer: Peer, *, layers: range, present: Version | None) -> list[Send | Task]:
        """Answer with a range of a layer's state; `present` is the version of the parameters, None while they change."""
        version = (message.branch, message.step)
        if version not in (present, self.kept_version) or message.layer not in layers:
            return []
        if (peer, message) in self._pulls or len(self._pulls) >= limits.MAX_PULLS:
            return []
        self._pulls.append((peer, message))
        return [
            Export(
                part=message.part,
                layer=message.layer,
                offset_bytes=message.offset_bytes,
                from_snapshot=version != present,
            )
        ]

    def exported(self, outcome: Exported) -> list[Send | Task]:
        """Send a range to whoever asked for it."""
        peer, pull = self._pulls.popleft()
        message = State(
            **self._me.header(),
            branch=pull.branch,
            step=pull.step,
            part=outcome.part,
            layer=outcome.layer,
            offset_bytes=outcome.offset_bytes,
            total_bytes=outcome.total_bytes,
            parcel=outcome.load.parcel,
        )
        return [Send(peer=peer, message=message, frames=outcome.load.frames)]
