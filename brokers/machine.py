"""The broker as a whole: its membership in the swarm and its queue.

Until it is welcomed it only registers; after that every message of its run goes to the queue. It keeps
no state that anybody must not lose: a broker that dies costs time, never correctness.
"""

from __future__ import annotations

from brokers.queue import Queue
from zswarm import limits
from zswarm.ids import Address, Link, NodeId, Role
from zswarm.machine import REFUSED, Exit, Received, Send, Tick
from zswarm.membership import Membership
from zswarm.messages import (
    Attach,
    Backward,
    BrokerHeartbeat,
    Forward,
    Ready,
    Reject,
    Result,
    Stop,
    View,
    Welcome,
)

Event = Received | Tick
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
        self._heartbeat_at_s = float("-inf")

    def next_deadline_s(self) -> float:
        """Return when the next heartbeat is due."""
        return self._heartbeat_at_s

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands: list[Command] = []
        if isinstance(event, Received):
            commands += self._received(event, now)
        if now >= self._heartbeat_at_s:
            self._heartbeat_at_s = now + self.membership.heartbeat_s
            commands.append(self._heartbeat())
        return commands

    def _heartbeat(self) -> Send:
        me = self.membership
        if self.queue is None:
            return me.register()
        message = BrokerHeartbeat(
            **me.header(),
            stage=me.stage,
            view=me.view,
            num_queued=self.queue.num_queued,
            num_leased=self.queue.num_leased,
            held_bytes=self.queue.credits.reserved_bytes,
            free_bytes=self.queue.credits.free_bytes,
        )
        return Send(peer=me.coordinator, message=message)

    def _received(self, event: Received, now: float) -> list[Command]:
        message, peer = event.message, event.peer
        if isinstance(message, Welcome):
            if self.membership.welcome(message):
                self.queue = Queue(self.membership, capacity_bytes=self._capacity_bytes)
                self._heartbeat_at_s = now
            return []
        if isinstance(message, Reject):
            return [Exit(code=REFUSED, text=message.text)] if self.membership.is_refused(message) else []
        if self.queue is None or self.membership.is_foreign(message):
            return []
        return self._act(self.queue, event, Link(peer) if isinstance(peer, bytes) else None, now)

    def _act(self, queue: Queue, event: Received, link: Link | None, now: float) -> list[Command]:
        match event.message:
            case View() as message if self.membership.see(message, event.frames):
                return [*queue.set_members(event.frames, now)]
            case Stop():
                return [
                    Send(peer=self.membership.coordinator, message=Stop(**self.membership.header())),
                    Exit(code=0, text="the run is over"),
                ]
            case Attach() as message if link is not None:
                return [*queue.attach(message, link, now)]
            case Forward() as message:
                return [*queue.forward(message, event.frames, event.peer, now)]
            case Backward() as message:
                return [*queue.backward(message, event.frames, event.peer, now)]
            case Ready() as message:
                return [*queue.ready(message, now)]
            case Result() as message:
                return [*queue.result(message, now)]
            case _:
                return []
