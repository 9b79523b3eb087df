"""Where the outputs of a job go: a broker of the next stage, the home broker of the stage before, the trainer.

No job of a broker that has left is begun: whoever lost it sees to it that it is done again. Sessions are issued in
order, so that one that is later than all in the view is yet to be seen.
"""

from __future__ import annotations

import math

from stages.tasks import Ran
from zswarm.ids import TRAINER, Session
from zswarm.machine import Send
from zswarm.membership import Membership
from zswarm.messages import Backward, Evaluated, Forward, Job, Load, key_fields
from zswarm.outbox import Outbox


class Outputs:
    """See the module. Methods return the Sends that follow."""

    def __init__(self, membership: Membership) -> None:
        self._me = membership
        self.live: frozenset[Session] = frozenset()
        """Everybody in the view."""
        self._newest = TRAINER

    def see(self) -> None:
        """Learn from the view who is in the swarm."""
        self.live = frozenset(member.member for member in self._me.members)
        self._newest = max(self._newest, *self.live, TRAINER)

    def has_left(self, session: Session) -> bool:
        """Was this session in the swarm, and is not any more?"""
        return session <= self._newest and session not in self.live

    def forward(self, outbox: Outbox, job: Job, y: Load, now: float) -> list[Send]:
        """Send a stage's output on."""
        header, key = self._me.header(), key_fields(job.key)
        message = Forward(**header, **key, route=job.route, mask=job.mask, parcel=y.parcel)
        return outbox.put_forward(message, y.frames, now)

    def backward(self, outbox: Outbox, job: Job, dx: Load, now: float) -> list[Send]:
        """Send the gradient of a stage's input home, if somebody wants it."""
        stage = self._me.stage
        if stage == 0 or not job.emit:
            return []
        home = job.route[stage - 1]
        addresses = self._me.brokers(stage - 1).get(home)
        peer = addresses[1] if addresses is not None else None
        message = Backward(**self._me.header(), **key_fields(job.key), route=job.route, parcel=dx.parcel)
        return outbox.put_to(peer, message, broker=home, frames=dx.frames, now=now)

    def loss(self, outbox: Outbox, job: Job, outcome: Ran, now: float) -> list[Send]:
        """Tell the trainer the loss of an evaluated microbatch."""
        message = Evaluated(
            **self._me.header(),
            **key_fields(job.key),
            loss_sum=outcome.loss_sum if math.isfinite(outcome.loss_sum) else None,
            num_targets=outcome.num_targets,
        )
        return outbox.put_to(self._me.coordinator, message, broker=TRAINER, now=now)
