"""The loop of a process: frames in, events to the machine, commands out. It decides nothing.

socket --> Received --+
clock  --> Tick ------+--> machine.handle --> Send ----------> socket
thread --> Outcome ---+                   --> anything else -> perform (the process's own part)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic
from typing import Any

from zswarm import wire
from zswarm.errors import RemoteProtocolError
from zswarm.machine import Exit, Machine, Received, Send, Tick
from zswarm.messages import BrokerHeartbeat, View, WorkerHeartbeat
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
    if not wire.intact(message, frames):
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
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Make the loop.

        `perform` carries out a command that is neither Send nor Exit and returns the events that follow
        at once; `collect` returns events that came from other threads or signals since it was last called.
        """
        self._machine = machine
        self._switchboard = switchboard
        self._perform = perform
        self._collect = collect
        self._clock = clock
        self._events: deque[Any] = deque()
        self._members: tuple[Any, ...] = ()
        self._packed_members = wire.pack_members(())

    def run(self) -> Exit:
        """Turn until the machine exits."""
        while True:
            if (end := self._turn()) is not None:
                return end

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
        return self._drain()

    def _take(self, received: Received) -> None:
        try:
            self._events.append(open_payload_untrusted(received))
        except RemoteProtocolError as error:
            # Counts as lost: whoever sent it sends it again.
            self._switchboard.refuse(received.peer, error)

    def _drain(self) -> Exit | None:
        while self._events:
            for command in self._machine.handle(self._events.popleft(), self._clock()):
                if isinstance(command, Send):
                    self._send(command)
                elif isinstance(command, Exit):
                    return command
                else:
                    self._events.extend(self._perform(command))
        return None

    def _send(self, command: Send) -> None:
        message, frames = command.message, command.frames
        if isinstance(message, View):
            packed = self._pack_members(frames)
            message, frames = replace(message, size_bytes=len(packed)), wire.split(packed)
        elif isinstance(message, (WorkerHeartbeat, BrokerHeartbeat)):
            message = replace(message, sent_bytes=self._switchboard.sent_bytes)
        self._switchboard.send(command.peer, message, frames)

    def _pack_members(self, members: tuple[Any, ...]) -> bytes:
        """Pack a view's content once for all who get it: the same object comes for each of them."""
        if members is not self._members:
            self._members, self._packed_members = members, wire.pack_members(members)
        return self._packed_members
