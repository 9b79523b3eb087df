"""Taking over what a worker of the own stage has counted that leaves before the step is committed.

    NONE --Inherit--> FETCHING --the last range is here--> HOLDS --a view: the leaver is out, its share is ours--> ADDING
      ^                  |                                   |                                                      |
      +------------------+-- a Void, another step, a Reset --+                                    ShareTaken: counted

A microbatch belongs to one worker at any moment: to the leaver as long as it is in the view, from then on to whom that very
view names. So the share is held aside until the view comes, which the coordinator has put into its log before it says it.
A Void that names any of it makes it worthless: whether the attempt was counted in time would depend on which of the two
came first. Who is asked for it again gets it again. What is being added counts as a job that runs: the Void is answered
when it is in the ledger.

A late Inherit must not bring back what was void after it was sent: it says which attempts were the newest then, and is
refused, or its share forgotten, if a later one covers any of it.

The ranges are asked for one after the other, from the beginning of the accumulator to its end (StatePart.SHARE), and go
to the compute thread; what that has not taken yet is bounded, and the share is here when it has taken all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages.participant import StepState
from stages.tasks import TakeShare, Task, import_of
from zswarm import ledger, limits
from zswarm.ids import TRAINER, Purpose, Session, StatePart
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Inherit, Key, Load, Pull, State
from zswarm.patience import patience


class Heir:
    """See the module. Methods return the Sends and tasks that follow."""

    def __init__(self, membership: Membership, state: StepState) -> None:
        self._me = membership
        self._state = state
        self._order: Inherit | None = None
        self._layer = 0
        self._offset_bytes = self._total_bytes = 0
        self._num_importing = 0
        """Ranges that the compute thread has not taken, also of shares that were given up."""
        self._is_complete = False
        self._num_asked = 0
        self._resend_at_s = float("inf")
        self.is_adding = False

    @property
    def holds(self) -> Session:
        """Whose share is here, complete and not counted yet; the trainer's session for nobody's."""
        order = self._order
        return order.leaver if order is not None and self._is_complete and not self.is_adding else TRAINER

    def inherit(self, message: Inherit, *, layer: int, covers: Callable[[Key], bool], now: float) -> list[Send]:
        """Begin to get a share, of this step, not void, and disjoint from what is counted; `layer` is the stage's first."""
        bequest, state = ledger.from_bytes(message.ledger), self._state
        known = self._order
        is_of_another = (message.branch, message.step) != state.version or bequest & (state.ledger | state.accumulating)
        if self.is_adding or is_of_another or any(map(covers, _keys(message))):
            return []
        if known is not None and (known.leaver, known.ledger) == (message.leaver, message.ledger):
            return []
        self.forget()
        self._order, self._layer = message, layer
        return [self._ask(now)]

    def received(self, message: State, load: Load, now: float) -> list[Send | Task]:
        """Take a range and ask for the next one."""
        order = self._order
        if order is None or self._is_complete or message.session != order.leaver:
            return []
        if (message.branch, message.step, message.offset_bytes) != (order.branch, order.step, self._offset_bytes):
            return []
        self._offset_bytes += message.parcel.size_bytes
        self._total_bytes = message.total_bytes
        self._num_importing += 1
        self._num_asked, self._resend_at_s = 0, float("inf")
        return [import_of(message, load), *self._ask_on(now)]

    def imported(self, now: float) -> list[Send]:
        """The compute thread has taken a range."""
        self._num_importing -= 1
        is_last = 0 < self._total_bytes == self._offset_bytes and not self._num_importing
        self._is_complete |= self._order is not None and is_last
        return self._ask_on(now) if self._order is not None and not self._num_asked else []

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
        order, me, state = self._order, self._me, self._state
        if order is None or self.is_adding or order.leaver in me.peers():
            return []
        bequest = ledger.from_bytes(order.ledger)
        is_ours = me.bequests.get(order.leaver) == me.session and self._is_complete
        if not is_ours or bequest & (state.ledger | state.accumulating):
            self.forget()
            return []
        self.is_adding = True
        state.accumulating |= bequest
        return [TakeShare()]

    def taken(self) -> None:
        """It is in the accumulator."""
        order, state = self._order, self._state
        if order is None or not self.is_adding:
            # Of a life that was given up.
            return
        bequest = ledger.from_bytes(order.ledger)
        state.accumulating &= ~bequest
        state.ledger |= bequest
        state.loss_sum += float("nan") if order.loss_sum is None else order.loss_sum
        state.num_targets += order.num_targets
        self.forget()

    @property
    def adding(self) -> int:
        """The bitmap of what is on its way into the accumulator."""
        return ledger.from_bytes(self._order.ledger) if self._order is not None and self.is_adding else 0

    def adding_keys(self) -> Iterator[Key]:
        """Yield it, in the newest attempts that there were when it was inherited."""
        return _keys(self._order) if self._order is not None and self.is_adding else iter(())

    def void(self, covers: Callable[[Key], bool]) -> None:
        """Give the share up if anything of it is void."""
        if self._order is not None and not self.is_adding and any(map(covers, _keys(self._order))):
            self.forget()

    def forget(self) -> None:
        """Hold nothing: the step is over, or what is counted in it is void."""
        self._order, self._is_complete, self.is_adding = None, False, False
        self._offset_bytes = self._total_bytes = self._num_asked = 0
        self._resend_at_s = float("inf")


def _keys(order: Inherit) -> Iterator[Key]:
    for microbatch in ledger.members(ledger.from_bytes(order.ledger)):
        yield order.branch, order.step, Purpose.TRAIN, microbatch, order.attempt
