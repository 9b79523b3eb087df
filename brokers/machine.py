"""The broker as a whole: its membership in the swarm and its queue.

    NEW --Register, repeated--> WELCOMED: every message of the run goes to the queue
     ^                             |
     +--- Fence: the queue is gone-+

It keeps no state that anybody must not lose: a broker that dies, or is fenced, costs time, never correctness. Its
heartbeat goes out once per interval, and at once after a Void, which it answers, and after a view that somebody is
not in any more, since the coordinator waits for everybody's report with it.

    asked to leave --another broker of the stage is in the view--> CLOSING --settled--> IDLE --Fence--> out
          |                                                          |
          +--- empty, or DRAIN_S have passed, or asked again --------+---> Stop, out

One that closes is home to nothing new and leaves without a loss: when all that it is home to is committed, and no
producer has anything on its way to it (`brokers.queue`), the coordinator takes it out of the swarm. One that nobody can
take over from goes on as it is, until it happens to be empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from brokers.queue import Queue
from zswarm import ledger, limits
from zswarm.errors import REFUSED
from zswarm.ids import TRAINER, Address, Leaving, Link, NodeId, Peer, Role, Step
from zswarm.machine import ASKED, Exit, Health, Leave, Received, Send, Tick
from zswarm.membership import Membership
from zswarm.messages import (
    Attach,
    Backward,
    BrokerHeartbeat,
    Fence,
    Forward,
    Ready,
    Reject,
    Result,
    Stop,
    View,
    Void,
    Welcome,
)

Event = Received | Tick | Leave
Command = Send | Exit


class BrokerMachine:
    """See the module."""

    def __init__(
        self,
        *,
        node: NodeId,
        boot_nonce: int,
        addresses: tuple[Address, Address],
        coordinator: Address,
        capacity_bytes: int = limits.BROKER_CAPACITY_BYTES,
    ) -> None:
        self.membership = Membership(
            node=node, boot_nonce=boot_nonce, role=Role.BROKER, addresses=addresses, coordinator=coordinator
        )
        self.queue: Queue | None = None
        self._capacity_bytes = capacity_bytes
        self._report = 0
        self._heartbeat_at_s = float("-inf")
        self._leaves_at_s = float("inf")
        """When it goes in any case, once it has been asked to."""
        self._told = Leaving.NO

    def next_deadline_s(self) -> float:
        """Return when the next heartbeat is due, or the end."""
        return min(self._heartbeat_at_s, self._leaves_at_s)

    def health(self, now: float) -> Health:
        """Say how this broker is: one whose loop turns is well."""
        me = self.membership
        version = self.queue.version if self.queue is not None else (me.branch, me.step)
        return Health(text=me.describe(version), silent_s=me.silent_s(now))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands: list[Command] = []
        if isinstance(event, Received):
            if event.message.session == TRAINER:
                self.membership.heard_at_s = now
            commands += self._received(event, now)
        elif isinstance(event, Leave):
            if self.queue is None or self.is_leaving:
                return self._leave(ASKED)
            self._leaves_at_s = now + limits.DRAIN_S
        if self.is_leaving and self.queue is not None:
            commands += self._drain(self.queue, now)
        if commands and isinstance(commands[-1], Exit):
            return commands
        if now >= self._heartbeat_at_s:
            commands.append(self._heartbeat(now))
        return commands

    @property
    def is_leaving(self) -> bool:
        """Has it been asked to go?"""
        return self._leaves_at_s < float("inf")

    def _drain(self, queue: Queue, now: float) -> Sequence[Command]:
        """Leave as soon as that costs nothing, or when the time is up."""
        others = self.membership.brokers(self.membership.stage).keys() - {self.membership.session}
        closing = queue.close() if others and not queue.is_closed else []
        if now >= self._leaves_at_s or (queue.is_empty and not queue.is_closed):
            return self._leave(ASKED)
        if self._leaving(queue) > self._told:
            self._hurry(now)
        return closing

    def _leaving(self, queue: Queue) -> Leaving:
        if not self.is_leaving:
            return Leaving.NO
        return Leaving.IDLE if queue.is_settled else Leaving.DRAINING

    def _hurry(self, now: float) -> None:
        """Have the next heartbeat sent with the commands of this event; one that is late already stays so."""
        self._heartbeat_at_s = min(self._heartbeat_at_s, now)

    def _heartbeat(self, now: float) -> Send:
        me, queue = self.membership, self.queue
        late_s = now - self._heartbeat_at_s
        self._heartbeat_at_s = now + me.heartbeat_s
        if queue is None:
            return me.register()
        if late_s > me.heartbeat_s:
            queue.excuse(now, late_s)
            me.excuse(now, late_s)
        self._report += 1
        self._told = self._leaving(queue)
        branch, step = queue.version
        active, ahead = queue.active((branch, step)), queue.active((branch, Step(step + 1)))
        message = BrokerHeartbeat(
            **me.header(),
            branch=branch,
            step=step,
            stage=me.stage,
            view=me.view,
            report=self._report,
            active=ledger.to_bytes(active),
            passed=ledger.to_bytes(queue.custody.passed((branch, step), active)),
            ahead=ledger.to_bytes(ahead | queue.custody.passed((branch, Step(step + 1)), ahead)),
            voided=queue.voids.newest,
            accused=(*((TRAINER,) if me.is_deaf(now) else ()), *queue.accused(now))[: limits.MAX_ACCUSED],
            leaving=self._told,
        )
        return Send(peer=me.coordinator, message=message)

    def _received(self, event: Received, now: float) -> Sequence[Command]:
        message = event.message
        if isinstance(message, (Welcome, Fence, Reject)):
            return self._stands_otherwise(message, event.peer, now)
        if self.queue is None or self.membership.is_foreign(message):
            return ()
        return self._act(self.queue, event, now)

    def _stands_otherwise(self, message: Welcome | Fence | Reject, peer: Peer, now: float) -> list[Command]:
        """Take, or give up, the place in the swarm."""
        if isinstance(message, Welcome):
            if self.membership.welcome(message):
                self.queue = Queue(self.membership, capacity_bytes=self._capacity_bytes)
                self._heartbeat_at_s = now
            return []
        if isinstance(message, Fence):
            if self.queue is not None and self.membership.is_fenced(message):
                if self.is_leaving:
                    return [Exit(code=0, text=ASKED)]
                self.queue.abandon()
                self.queue = None
                self.membership.begin_new_life()
                self._hurry(now)
            return []
        return [Exit(code=REFUSED, text=message.text)] if self.membership.is_refused(message, peer) else []

    def _act(self, queue: Queue, event: Received, now: float) -> Sequence[Command]:
        """Do what a message of the run asks for; those that come most often are looked for first."""
        match event.message:
            case Forward() as message:
                return queue.forward(message, event.frames, event.peer, now)
            case Result() as message:
                return queue.result(message, now)
            case Backward() as message:
                return queue.backward(message, event.frames, event.peer, now)
            case Ready() as message:
                return queue.ready(message, event.peer, now)
            case Attach() as message if isinstance(event.peer, bytes):
                return queue.attach(message, Link(event.peer), now)
            case View() as message:
                return self._see(queue, message, event, now)
            case Void() as message:
                self._hurry(now)
                return queue.void(message, now)
            case Stop():
                return self._leave("the run is over")
            case _:
                return ()

    def _leave(self, why: str) -> list[Command]:
        """Say farewell, if there is a session to give up, and go."""
        me = self.membership
        farewell = [Send(peer=me.coordinator, message=Stop(**me.header()))] if self.queue is not None else []
        return [*farewell, Exit(code=0, text=why)]

    def _see(self, queue: Queue, message: View, event: Received, now: float) -> list[Command]:
        generation, before = self.membership.generation, {member.member for member in self.membership.members}
        if not self.membership.see(message, event.frames):
            return []
        if message.generation > generation or before - {member.member for member in event.frames}:
            self._hurry(now)
        return [*queue.set_members(event.frames, (message.branch, message.step), now)]
