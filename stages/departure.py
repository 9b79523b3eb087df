"""How a worker goes that has been asked to leave: without a loss if there is time for it.

    STAYS --asked--> ALONE --another worker of its stage is in the view--> DRAINS --nothing in hand--> IDLE --Fence--> out
                       |                                                     |                          |
                       +--- nothing that anybody needs ---+--- DRAIN_S have passed, or asked again -----+--> Stop, out

One that drains takes no jobs any more, hands back those that it has not begun, ends the others, and sends its outputs
until they are acknowledged. When each broker of its stage has said that it has no lease here (Drained), no job is on its
way either: then it has nothing in hand, for good. What it has counted goes into the step by the commit,
like everything that is counted, or is handed over to another worker (`heir.py`): the coordinator, which alone knows when
that is certain and whether somebody else has the stage's state, takes an idle worker out of the swarm. One that is alone
in its stage goes on as it is, since nobody could do its jobs: until another comes, who gets the state from it.
"""

from __future__ import annotations

from math import inf

from zswarm import limits
from zswarm.ids import Leaving, Session
from zswarm.membership import Membership


class Departure:
    """See the module."""

    def __init__(self, membership: Membership) -> None:
        self._me = membership
        self.at_s = inf
        """When the worker goes in any case, once it has been asked to."""
        self.drains = False
        """It takes no jobs any more; for as long as it lives."""
        self._let_go: set[Session] = set()
        """Brokers that know of it and have no job of theirs here."""

    @property
    def is_asked(self) -> bool:
        """Shall this worker leave?"""
        return self.at_s < inf

    def ask(self, now: float) -> None:
        """It has been asked to."""
        self.at_s = now + limits.DRAIN_S

    def begins(self) -> bool:
        """Does it drain from here on? True once, at a moment when somebody could take over from it."""
        if self.drains or not self.is_asked or len(self._me.peers()) < 2:
            return False
        self.drains = True
        return True

    def drained(self, broker: Session) -> None:
        """A broker has let it go."""
        self._let_go.add(broker)

    def phase(self, *, is_idle: bool) -> Leaving:
        """Return what the coordinator is told; `is_idle`: there is nothing in hand."""
        if not self.is_asked:
            return Leaving.NO
        is_free = self._let_go.issuperset(self._me.brokers(self._me.stage))
        return Leaving.IDLE if self.drains and is_idle and is_free else Leaving.DRAINING

    def is_over(self, now: float, *, is_needless: bool) -> bool:
        """Shall it go now, whatever that costs? `is_needless`: there is nothing in hand, counted, or to be given."""
        return now >= self.at_s or (self.is_asked and not self.drains and is_needless)
