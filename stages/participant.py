"""The worker's part in the commit of a step: prepare, all-reduce, apply.

    IDLE --Prepare--> REDUCING --Assembled--> PREPARED --Commit--> APPLYING --Applied--> IDLE (step + 1)
      ^                  |                        |
      +------- Abort ----+------------------------+        a Prepare of a newer round replaces the older

The accumulator itself is never touched before Apply: a round works on a copy, so an aborted one costs
nothing but time. When what was counted becomes void (`forget`) the round ends, but for an Apply in work: its
step is committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from stages.reduction import Inbox, Reduction
from stages.tasks import Apply, Assembled, Discard, Snapshotted, Summed, Task
from zswarm import ledger, limits
from zswarm.ids import Branch, Microbatch, Peer, Round, Session, Step, Version
from zswarm.machine import Exit, Send
from zswarm.membership import Membership
from zswarm.messages import Abort, Chunk, ChunkAck, Commit, Load, Prepare, Prepared
from zswarm.slots import maker

make_chunk_ack, make_send = maker(ChunkAck), maker(Send)

Command = Send | Task | Exit


@dataclass(slots=True)
class StepState:
    """What a worker has counted in the current step."""

    branch: Branch = Branch(0)
    step: Step = Step(0)
    ledger: int = 0
    """Bitmap of the microbatches whose gradient is in the accumulator."""
    loss_sum: float = 0.0
    num_targets: int = 0
    accumulating: int = 0
    """Bitmap of the microbatches whose gradient is on its way into the accumulator: they are not in the ledger yet."""

    @property
    def version(self) -> Version:
        """Whose parameters the worker holds."""
        return (self.branch, self.step)

    def has(self, microbatch: Microbatch) -> bool:
        """Is it counted, or about to be?"""
        return (self.ledger | self.accumulating) >> microbatch & 1 == 1

    def add(self, microbatch: Microbatch, loss_sum: float, num_targets: int) -> None:
        """Count a microbatch."""
        self.ledger |= 1 << microbatch
        self.loss_sum += loss_sum
        self.num_targets += num_targets

    def forget(self) -> None:
        """Nothing is counted."""
        self.ledger, self.loss_sum, self.num_targets = 0, 0.0, 0
        self.accumulating = 0

    def become(self, version: Version) -> None:
        """Begin another step with nothing counted; a job that adds to the accumulator may not be in work."""
        self.branch, self.step = version
        self.forget()


class Participant:
    """See the module. Methods return the commands that follow; `report` sends a heartbeat."""

    def __init__(self, membership: Membership, state: StepState, report: Callable[[], list[Command]]) -> None:
        self._me = membership
        self._state = state
        self._report = report
        self._inbox: Inbox | None = None
        self._reduction: Reduction | None = None
        self._prepared: Prepared | None = None
        self._commit: Commit | None = None
        self._contribution = (0, 0.0, 0)

    @property
    def is_applying(self) -> bool:
        """Is the optimizer step in work? Then nothing may compute on the parameters."""
        return self._commit is not None

    @property
    def prepared_round(self) -> Round:
        """The round whose result is held, 0 for none."""
        return self._prepared.round if self._prepared is not None else Round(0)

    def next_deadline_s(self) -> float | None:
        """Return when `repeat` has a chunk to send again."""
        return self._reduction.next_deadline_s() if self._reduction is not None else None

    def repeat(self, now: float) -> list[Command]:
        """Send chunks again that nobody acknowledged."""
        return [*self._reduction.resend_due(now)] if self._reduction is not None else []

    def view_changed(self, now: float) -> list[Command]:
        """Learn where the participants listen."""
        return [*self._reduction.set_addresses(self._me.peers(), now)] if self._reduction is not None else []

    def silent(self, now: float, limit_s: float) -> list[Session]:
        """Return the participants that have owed an acknowledgement for so long without a word."""
        return self._reduction.silent(now, limit_s) if self._reduction is not None else []

    def prepare(self, message: Prepare, now: float) -> list[Command]:
        """Begin a round, if its ledger is ours; else say what ours is."""
        if (message.branch, message.step) != self._state.version or self._commit is not None:
            return []
        current = self._reduction.round if self._reduction is not None else Round(0)
        if message.round == current:
            return [*self.send_prepared()]
        newest = self._inbox.round if self._inbox is not None else Round(0)
        if message.round < max(current, newest) or self._state.accumulating:
            return []
        if self._me.session not in message.participants:
            return []
        if ledger.from_bytes(message.ledger) != self._state.ledger:
            return self._report()
        commands: list[Command] = [Discard(round=current)] if self._reduction is not None else []
        if self._inbox is None or self._inbox.round != message.round:
            self._inbox = Inbox(message.round)
        self._prepared = None
        self._contribution = (self._state.ledger, self._state.loss_sum, self._state.num_targets)
        self._reduction = Reduction(
            self._me.header(),
            version=self._state.version,
            participants=message.participants,
            inbox=self._inbox,
            resend_s=limits.RESEND_HEARTBEATS * self._me.heartbeat_s,
        )
        return [*commands, *self._reduction.start(), *self._reduction.set_addresses(self._me.peers(), now)]

    def chunk(self, message: Chunk, load: Load, peer: Peer, now: float) -> list[Command]:
        """Keep a chunk of a worker of the own stage, also one of a round that is yet to begin here."""
        if (message.branch, message.step) < self._state.version or message.session not in self._me.peers():
            return []
        if self._inbox is None or message.round > self._inbox.round:
            self._inbox = Inbox(message.round)
        if message.round != self._inbox.round or not self._inbox.put(message, load):
            return []
        ack = make_chunk_ack(
            **self._me.header(),
            branch=message.branch,
            step=message.step,
            round=message.round,
            phase=message.phase,
            shard=message.shard,
            chunk=message.chunk,
        )
        commands: list[Command] = [make_send(peer=peer, message=ack)]
        if self._reduction is not None and self._reduction.round == message.round:
            commands += self._reduction.received(message.session, now)
        return commands

    def acknowledged(self, message: ChunkAck, now: float) -> list[Command]:
        """A peer has one of our chunks."""
        if self._reduction is None or message.round != self._reduction.round:
            return []
        return [*self._reduction.acknowledged(message, now)]

    def outcome(self, outcome: Snapshotted | Summed | Assembled, now: float) -> list[Command]:
        """Go on after a task of the round; outcomes of replaced rounds are ignored."""
        if self._reduction is None or outcome.round != self._reduction.round:
            return []
        match outcome:
            case Snapshotted():
                return [*self._reduction.snapshotted(outcome, now)]
            case Summed():
                return [*self._reduction.summed(outcome, now)]
            case Assembled():
                return self._assembled(outcome)

    def _assembled(self, outcome: Assembled) -> list[Command]:
        contributed, loss_sum, num_targets = self._contribution
        self._prepared = Prepared(
            **self._me.header(),
            branch=self._state.branch,
            step=self._state.step,
            round=outcome.round,
            digest=outcome.digest,
            finite=outcome.finite,
            square_norm=outcome.square_norm,
            ledger=ledger.to_bytes(contributed),
            loss_sum=loss_sum if math.isfinite(loss_sum) else None,
            num_targets=num_targets,
        )
        return [*self.send_prepared()]

    def send_prepared(self) -> list[Send]:
        """Tell the coordinator what is held, if anything is."""
        return [Send(peer=self._me.coordinator, message=self._prepared)] if self._prepared is not None else []

    def abort(self, message: Abort) -> list[Command]:
        """Forget a round; the accumulator is untouched."""
        if self._reduction is None or self._commit is not None or message.round != self._reduction.round:
            return []
        self._reduction = self._prepared = None
        return [Discard(round=message.round), *self._report()]

    def commit(self, message: Commit) -> Apply | None:
        """Apply the step, if its result is held; no answer otherwise, or the two ends would never stop."""
        if (message.branch, message.step) != self._state.version or self._commit is not None:
            return None
        held = self._prepared
        if held is None or (held.round, held.digest) != (message.round, message.digest):
            return None
        self._commit = message
        return Apply(
            step=message.step,
            round=message.round,
            scale=message.scale,
            lr=message.lr,
            apply=message.apply,
            snapshot=message.snapshot,
        )

    def applied(self) -> Commit:
        """The parameters are those of the next step: return the commit that led to it."""
        commit = self._commit
        assert commit is not None
        if self._inbox is not None and self._inbox.round <= commit.round:
            self._inbox = None
        self._state.become((self._state.branch, Step(self._state.step + 1)))
        self._commit = self._reduction = self._prepared = None
        return commit

    def forget(self) -> None:
        """End the round: its contribution is void. The compute thread hears of it with Reset.

        What others have sent stays: they were told that it is here, and do not send it again.
        """
        self._reduction = self._prepared = None
