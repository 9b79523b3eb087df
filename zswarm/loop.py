"""The loop of a process: frames in, events to the machine, commands out. It decides nothing.

socket --> Received --+
clock  --> Tick ------+--> machine.handle --> Send ----------> socket
thread --> Outcome ---+                   --> anything else -> perform (the process's own part)

Connections follow the view: the loop hangs up on whoever is no longer in it, or each process that has ever been
in the swarm would cost a socket for as long as the swarm lives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic
from typing import Any

from zswarm import wire
from zswarm.errors import RemoteProtocolError
from zswarm.ids import Peer
from zswarm.machine import Exit, Machine, Received, Send, Tick
from zswarm.messages import BrokerHeartbeat, Member, View, WorkerHeartbeat
from zswarm.transport import Switchboard

LONGEST_WAIT_S = 1.0
"""A machine without a deadline is asked again after this, in case that its answer has changed meanwhile."""


def open_payload_untrusted(received: Received) -> Received:
    """Check and unpack a payload.

    Raises:
        RemoteProtocolError: the payload is not what its message says, or was changed on the way.

    """
    message, frames = received.message, received.frames
    if isinstance(message, View):
        members = wire.unpack_members_untrusted(b"".join(bytes(frame) for frame in frames))
        return replace(received, frames=members)
    if frames and not wire.intact(message, frames):
        raise RemoteProtocolError(f"{type(message).__name__}: the payload's checksum does not match")
    return received


class Loop:
    """Runs one machine over one switchboard until it says Exit."""

    def __init__(
        self,
        machine: Machine[Any, Any],
        switchboard: Switchboard,
        *,
        perform: Callable[[Any], Iterable[Any]],
        collect: Callable[[], Iterable[Any]] = tuple,
        members: Callable[[], tuple[Member, ...]] | None = None,
        on_unreachable: Callable[[Peer], Any] | None = None,
    ) -> None:
        """Make the loop.

        `perform` carries out a command that is neither Send nor Exit and returns the events that follow
        at once; `collect` returns events that came from other threads or signals since it was last called.
        `members` returns the members of the view that the machine has adopted, the same object as long as it is the
        same view; a machine that sends views itself needs none. `on_unreachable` makes an event of a link that a
        message could not be sent to because its connection is gone; the machine gets it in the same turn.
        """
        self._machine = machine
        self._switchboard = switchboard
        self._perform = perform
        self._collect = collect
        self._members_now = members
        self._on_unreachable = on_unreachable
        self._clock = monotonic
        self._events: deque[Any] = deque()
        self._outgoing: list[Send] = []
        """Waits for the end of the turn, or for a command that is something else: of many small messages one by one,
        each would wake ZeroMQ's own thread."""
        self._members: tuple[Member, ...] = ()
        self._packed_members = wire.pack_members(())

    def run(self, turned: Callable[[], None] = lambda: None) -> Exit:
        """Turn until the machine exits; `turned` is called after each turn, once in LONGEST_WAIT_S at the least."""
        while True:
            if (end := self._turn()) is not None:
                return end
            turned()

    def _turn(self) -> Exit | None:
        now = self._clock()
        deadline_s = self._machine.next_deadline_s()
        if deadline_s is not None and deadline_s <= now:
            self._events.append(Tick())
        wait_s = LONGEST_WAIT_S if deadline_s is None else min(LONGEST_WAIT_S, max(0.0, deadline_s - now))
        for received in self._switchboard.poll(0.0 if self._events else wait_s):
            self._take(received)
            if (end := self._drain()) is not None:
                return end
        self._events.extend(self._collect())
        end = self._drain()
        self._flush()
        told: set[Peer] = set()
        while end is None and self._miss(told):
            end = self._drain()
            self._flush()
        return end

    def _miss(self, told: set[Peer]) -> bool:
        """Make events of links that were found dead, but for those that this turn has `told` of."""
        links = [link for link in self._switchboard.take_unreachable() if link not in told]
        told.update(links)
        if self._on_unreachable is not None:
            self._events.extend(map(self._on_unreachable, links))
        return bool(self._events)

    def _take(self, received: Received) -> None:
        try:
            self._events.append(open_payload_untrusted(received))
        except RemoteProtocolError as error:
            # Counts as lost: whoever sent it sends it again.
            self._switchboard.refuse(received.peer, error)

    def _drain(self) -> Exit | None:
        while self._events:
            event = self._events.popleft()
            for command in self._machine.handle(event, self._clock()):
                if isinstance(command, Send):
                    self._outgoing.append(command)
                elif isinstance(command, Exit):
                    self._flush()
                    return command
                else:
                    self._flush()
                    self._events.extend(self._perform(command))
            if self._members_now is not None and type(event) is Received and type(event.message) is View:
                self._flush()
                self._follow(self._members_now())
        return None

    def _flush(self) -> None:
        """Send what the machine has said until now."""
        outgoing, self._outgoing = self._outgoing, []
        for command in outgoing:
            self._send(command)

    def _send(self, command: Send) -> None:
        message, frames = command.message, command.frames
        if isinstance(message, View):
            packed = self._pack_members(frames)
            message, frames = replace(message, size_bytes=len(packed)), wire.split(packed)
        elif isinstance(message, (WorkerHeartbeat, BrokerHeartbeat)):
            message = replace(message, sent_bytes=self._switchboard.sent_bytes)
        self._switchboard.send(command.peer, message, frames)

    def _pack_members(self, members: tuple[Member, ...]) -> bytes:
        """Pack a view's content once for all who get it: the same object comes for each of them."""
        if members is not self._members:
            self._packed_members = wire.pack_members(members)
            self._follow(members)
        return self._packed_members

    def _follow(self, members: tuple[Member, ...]) -> None:
        """Hang up on the addresses that only the view before this one had."""
        if members is self._members:
            return
        gone = {address for member in self._members for address in member.addresses}
        gone.difference_update(address for member in members for address in member.addresses)
        self._members = members
        for address in gone:
            self._switchboard.hang_up(address)
