"""Taking over what another worker of the own stage has counted, if that leaves, or is lost, before the step is committed.

    NONE --Inherit--> FETCHING --the last range is here--> HOLDS --a view: its owner is out, this copy is ours--> ADDING
      ^                  |                                   |                                                      |
      +------------------+-- a Void, another step, a Reset --+                                    ShareTaken: counted

A microbatch belongs to one worker at any moment: to the owner as long as it is in the view, from then on to whom that very
view names. So the copy is held aside until the view comes, which the coordinator has put into its log before it says it.
What the owner has counted since is in no copy, and done again: the view says what it leaves, and a copy of anything else is
worth nothing. While a newer one is on its way the older one is held, and counted if the view leaves just that.
A Void that names any of it makes it worthless: whether the attempt was counted in time would depend on which of the two
came first. Who is asked for it again gets it again. What is being added counts as a job that runs: the Void is answered
when it is in the ledger.

A late Inherit must not bring back what was void after it was sent: it says which attempts were the newest then, and is
refused, or its copy forgotten, if a later one covers any of it.

The ranges are asked for one after the other, from the beginning of the accumulator to its end (StatePart.SHARE), and go
to the compute thread; what that has not taken yet is bounded, and the copy is here when it has taken all. Each range says
what its copy consists of; one of another copy begins the file anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stages.participant import StepState
from stages.tasks import TakeShare, Task, import_of
from zswarm import ledger, limits
from zswarm.ids import TRAINER, Attempt, Branch, Purpose, Session, StatePart, Step, Version
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Inherit, Key, Load, Pull, State
from zswarm.patience import patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What a copy of a share consists of."""

    owner: Session
    version: Version
    attempt: Attempt
    """The newest that there was when it was asked for."""
    ledger: int
    loss_sum: float | None
    num_targets: int

    def keys(self) -> Iterator[Key]:
        """Yield what is in it, each in the newest attempt that it may be of."""
        for microbatch in ledger.members(self.ledger):
            yield *self.version, Purpose.TRAIN, microbatch, self.attempt


NOTHING = Copy(owner=TRAINER, version=(Branch(0), Step(0)), attempt=Attempt(0), ledger=0, loss_sum=0.0, num_targets=0)


class Heir:
    """See the module. Methods return the Sends and tasks that follow; `covers` says whether a key is void."""

    def __init__(self, membership: Membership, state: StepState, covers: Callable[[Key], bool]) -> None:
        self._me = membership
        self._state = state
        self._covers = covers
        self._order: Inherit | None = None
        """What is being fetched, and from whom."""
        self._coming = NOTHING
        """What its first range has said of it."""
        self._layer = 0
        self._offset_bytes = self._total_bytes = 0
        self._num_importing = 0
        """Ranges that the compute thread has not taken, also of copies that were given up."""
        self._num_asked = 0
        self._resend_at_s = float("inf")
        self.held = NOTHING
        """The copy that is here, complete and not counted."""
        self._older = NOTHING
        """The one before: the coordinator may not have heard of the newer one. It goes when a third begins."""
        self.added = NOTHING
        """The one that is on its way into the accumulator."""

    @property
    def is_adding(self) -> bool:
        """Is a copy on its way into the accumulator?"""
        return self.added is not NOTHING

    def inherit(self, message: Inherit, *, layer: int, now: float) -> list[Send]:
        """Begin to get a copy of a share of this step, if none is here that has all that its owner is known to have counted.

        `layer` is the stage's first.
        """
        asked = _copy(message, message.ledger)
        known, held = self._order, self.held
        if self.is_adding or asked.version != self._state.version or not self._may_be_ours(asked):
            return []
        if known is not None and known.owner == message.owner:
            # Nothing has come yet, so that it may be what is counted by now.
            self._order = message if self._coming is NOTHING else known
            return []
        if held.owner != message.owner:
            self.held = self._older = NOTHING
        elif not asked.ledger & ~held.ledger:
            return []
        self._give_up_order()
        self._order, self._layer = message, layer
        return [self._ask(now)]

    def _may_be_ours(self, copy: Copy) -> bool:
        """Is nothing of it void, and nothing counted here?"""
        counted = self._state.ledger | self._state.accumulating
        return not copy.ledger & counted and not any(map(self._covers, copy.keys()))

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next one."""
        order = self._order
        if order is None or message.session != order.owner:
            return []
        if (message.branch, message.step, message.offset_bytes) != (order.branch, order.step, self._offset_bytes):
            return []
        copy = _copy(order, message.ledger, loss_sum=message.loss_sum, num_targets=message.num_targets)
        if self._offset_bytes == 0:
            self._coming = copy
        if not copy.ledger or not self._may_be_ours(copy):
            self._give_up_order()
            return []
        if copy != self._coming:
            self._offset_bytes = self._total_bytes = 0
            return [self._ask(now)]
        if self._offset_bytes == 0:
            self._older = NOTHING
        self._offset_bytes += message.parcel.size_bytes
        self._total_bytes = message.total_bytes
        self._num_importing += 1
        self._num_asked, self._resend_at_s = 0, float("inf")
        return [import_of(message, load, kept=self.held.ledger), *self._ask_on(now)]

    def imported(self, now: float) -> list[Send]:
        """The compute thread has taken a range."""
        self._num_importing -= 1
        if self._order is None:
            return []
        if 0 < self._total_bytes == self._offset_bytes and not self._num_importing:
            self._older, self.held = self.held, self._coming
            self._give_up_order()
            return []
        return self._ask_on(now) if not self._num_asked else []

    def _ask_on(self, now: float) -> list[Send]:
        """Ask for the next range, if there is one and room for it."""
        has_room = self._num_importing < limits.MAX_IMPORTING
        return [self._ask(now)] if self._offset_bytes < self._total_bytes and has_room else []

    def _ask(self, now: float) -> Send:
        order = self._order
        assert order is not None
        self._num_asked += 1
        self._resend_at_s = now + patience(limits.RESEND_HEARTBEATS * self._me.heartbeat_s, self._num_asked)
        pull = Pull(
            **self._me.header(),
            branch=order.branch,
            step=order.step,
            part=StatePart.SHARE,
            layer=self._layer,
            offset_bytes=self._offset_bytes,
        )
        return Send(peer=order.address, message=pull)

    def resend_due(self, now: float) -> list[Send]:
        """Ask again for what has not come in time."""
        return [self._ask(now)] if now >= self._resend_at_s else []

    def next_deadline_s(self) -> float:
        """Return when `resend_due` has something to do."""
        return self._resend_at_s

    def view_changed(self) -> list[Task]:
        """Count what is here, if it is ours now; give up what is another one's."""
        present, copies, state = self._me.peers(), (self.held, self._older), self._state
        if self._order is not None and self._order.owner not in present:
            self._give_up_order()
        if self.held is NOTHING or self.held.owner in present:
            return []
        left = self._me.bequests.get(self.held.owner)
        self.held = self._older = NOTHING
        ours = next((copy for copy in copies if left == (self._me.session, copy.ledger)), NOTHING)
        if ours is NOTHING or ours.ledger & (state.ledger | state.accumulating):
            return []
        self.added = ours
        state.accumulating |= ours.ledger
        return [TakeShare(ledger=ours.ledger)]

    def taken(self) -> None:
        """It is in the accumulator; or it was in that of a life that was given up."""
        added, state = self.added, self._state
        state.accumulating &= ~added.ledger
        state.ledger |= added.ledger
        state.loss_sum += float("nan") if added.loss_sum is None else added.loss_sum
        state.num_targets += added.num_targets
        self.added = NOTHING

    def void(self) -> None:
        """Give up what is void in part."""
        if any(map(self._covers, self.held.keys())):
            self.held = self._older = NOTHING
        if any(map(self._covers, self._coming.keys())):
            self._give_up_order()

    def forget(self) -> None:
        """Hold nothing: the step is over, or what is counted in it is void."""
        self._give_up_order()
        self.held = self._older = self.added = NOTHING

    def _give_up_order(self) -> None:
        self._order, self._coming = None, NOTHING
        self._offset_bytes = self._total_bytes = self._num_asked = 0
        self._resend_at_s = float("inf")


def _copy(order: Inherit, packed: bytes, *, loss_sum: float | None = 0.0, num_targets: int = 0) -> Copy:
    return Copy(
        owner=order.owner,
        version=(order.branch, order.step),
        attempt=order.attempt,
        ledger=ledger.from_bytes(packed),
        loss_sum=loss_sum,
        num_targets=num_targets,
    )
