"""Getting a stage's state from somebody who has it, layer by layer.

    for each layer: PARAMETERS, then OPTIMIZER --> Pull, repeated --State--> Import --> the next range
    after the last range: Adopt

One range is asked for at a time; a State that is not the one asked for is a duplicate. A donor that has gone, or
has gone on to the next step, does not answer: the next Restore names another.
"""

from __future__ import annotations

from stages.tasks import Adopt, Import, Task
from zswarm.ids import TRAINER, StatePart, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Load, Pull, Restore, State
from zswarm.patience import patience


class Loader:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(self, membership: Membership, order: Restore, *, layers: range, resend_s: float) -> None:
        self._me = membership
        self.order = order
        self._places = [(layer, part) for layer in layers for part in StatePart]
        self._resend_s = resend_s
        self._place = 0
        self._offset_bytes = 0
        self._num_asked = 0
        self._resend_at_s: float | None = None

    @property
    def version(self) -> Version:
        """Whose state this is."""
        return (self.order.branch, self.order.step)

    @property
    def is_adopting(self) -> bool:
        """Is everything here, and being put in place? Then there is no way back."""
        return self._place == len(self._places)

    def start(self, now: float) -> list[Send | Task]:
        """Ask for the first range."""
        return [self._ask(now)]

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next."""
        if message.session != self.order.donor or (message.branch, message.step) != self.version:
            return []
        if self._place == len(self._places):
            return []
        layer, part = self._places[self._place]
        if (message.layer, message.part, message.offset_bytes) != (layer, part, self._offset_bytes):
            return []
        task = Import(
            part=part, layer=layer, offset_bytes=self._offset_bytes, total_bytes=message.total_bytes, load=load
        )
        self._num_asked = 0
        self._offset_bytes += message.parcel.size_bytes
        if self._offset_bytes >= message.total_bytes:
            self._place, self._offset_bytes = self._place + 1, 0
        if self.is_adopting:
            self._resend_at_s = None
            return [task, Adopt()]
        return [task, self._ask(now)]

    def resend_due(self, now: float) -> list[Send | Task]:
        """Ask again for what has not come in time."""
        return [self._ask(now)] if self._resend_at_s is not None and self._resend_at_s <= now else []

    def next_deadline_s(self) -> float | None:
        """Return when `resend_due` has something to do."""
        return self._resend_at_s

    def _ask(self, now: float) -> Send:
        layer, part = self._places[self._place]
        self._num_asked += 1
        self._resend_at_s = now + patience(self._resend_s, self._num_asked)
        branch, step = self.version
        message = Pull(
            **self._me.header(), branch=branch, step=step, part=part, layer=layer, offset_bytes=self._offset_bytes
        )
        peer = self._me.coordinator if self.order.donor == TRAINER else self.order.address
        return Send(peer=peer, message=message)
