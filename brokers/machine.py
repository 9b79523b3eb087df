"""The broker as a whole: its membership in the swarm and its queue.

    NEW --Register, repeated--> WELCOMED: every message of the run goes to the queue
     ^                             |
     +--- Fence: the queue is gone-+

It keeps no state that anybody must not lose: a broker that dies, or is fenced, costs time, never correctness. Its
heartbeat goes out once per interval, and at once after a Void, which it answers, and after a view that somebody is
not in any more, since the coordinator waits for everybody's report with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brokers.queue import Queue
from zswarm import ledger, limits
from zswarm.errors import REFUSED
from zswarm.ids import Address, Link, NodeId, Peer, Role, Step
from zswarm.machine import Exit, Health, Received, Send, Tick
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """The user asks this process to go."""


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

    def next_deadline_s(self) -> float:
        """Return when the next heartbeat is due."""
        return self._heartbeat_at_s

    def health(self, _now: float) -> Health:
        """Say how this broker is: one whose loop turns is well."""
        me = self.membership
        return Health(text=me.describe(self.queue.version if self.queue is not None else (me.branch, me.step)))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands: list[Command] = []
        if isinstance(event, Received):
            commands += self._received(event, now)
        elif isinstance(event, Leave):
            return self._leave("asked to")
        if now >= self._heartbeat_at_s:
            commands.append(self._heartbeat(now))
        return commands

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
        self._report += 1
        branch, step = queue.version
        message = BrokerHeartbeat(
            **me.header(),
            branch=branch,
            step=step,
            stage=me.stage,
            view=me.view,
            report=self._report,
            active=ledger.to_bytes(queue.active((branch, step))),
            ahead=ledger.to_bytes(queue.active((branch, Step(step + 1)))),
            voided=queue.voids.newest,
            accused=queue.accused(now),
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
                return queue.ready(message, now)
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
        return [*queue.set_members(event.frames, now)]
