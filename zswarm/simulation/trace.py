"""What happened, in order: a digest of all of it, and the story of the last part for people.

Every event that a machine handles and every command that it gives is recorded. The digest covers the
events: time, node, kind and the numbers that identify the message, so that two runs with equal digests
have taken the same way. The texts are made only when a story is asked for.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from zswarm.machine import Received, Send
from zswarm.messages import Chunk, Load, Message, MicrobatchMessage, Parcel, StepMessage

_PACKED = struct.Struct("<dHHqq")
_SHOWN_ELSEWHERE = frozenset({"run", "generation", "branch"})


Listener = Callable[[str], None]
"""Is told what happens, a line each."""
Numbers = Callable[[Any], tuple[int, int]]
"""Gives the numbers that identify a message."""


class Happening(NamedTuple):
    """One thing that was handled or commanded by a node at a time; `what` is an event or a command."""

    time_s: float
    node: str
    is_event: bool
    what: object


class Trace:
    """See the module. Keeps the last `length` happenings, and tells the listener every one as it comes."""

    def __init__(self, *, length: int = 0, listener: Listener | None = None) -> None:
        self.last: deque[Happening] = deque(maxlen=length)
        self._listener = listener
        self.is_kept = length > 0 or listener is not None
        """Does anybody want to know more than the digest? Otherwise no command is recorded."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._kinds: dict[type, tuple[int, Numbers | None]] = {}
        """Of what kinds the events were, in the order of their first one, and what identifies one of a kind."""

    def record_event(self, time_s: float, number: int, node: str, event: object) -> None:
        """Note that a node is about to handle an event."""
        if self.is_kept:
            self._keep(Happening(time_s, node, is_event=True, what=event))
        subject = event.message if type(event) is Received else event
        known = self._kinds.get(type(subject))
        if known is None:
            known = self._kinds[type(subject)] = (len(self._kinds), _numbers_of(type(subject)))
        kind, numbers = known
        first, second = (-1, -1) if numbers is None else numbers(subject)
        self._digest.update(_PACKED.pack(time_s, number, kind, first, second))

    def record_command(self, time_s: float, node: str, command: object) -> None:
        """Note a command that the event led to; what it does shows in the events to come."""
        if self.is_kept:
            self._keep(Happening(time_s, node, is_event=False, what=command))

    def _keep(self, happening: Happening) -> None:
        self.last.append(happening)
        if self._listener is not None:
            self._listener(describe(happening))

    @property
    def digest(self) -> str:
        """Equal for equal histories."""
        return self._digest.hexdigest()

    def story(self, *, mentions: dict[str, int], most: int) -> list[str]:
        """Return the last `most` lines about what has one of these fields with this value; all where none is named."""
        lines: deque[str] = deque(maxlen=most)
        for happening in self.last:
            if not mentions or any(_field(happening.what, name) == value for name, value in mentions.items()):
                lines.append(describe(happening))
        return list(lines)


def _numbers_of(kind: type) -> Numbers | None:
    if issubclass(kind, MicrobatchMessage):
        return lambda message: (message.step, message.microbatch)
    if issubclass(kind, Chunk):
        return lambda message: (message.step, message.chunk + 64 * message.shard)
    if issubclass(kind, StepMessage):
        return lambda message: (message.step, -1)
    return None


def _field(what: object, name: str) -> object:
    subject = what.message if isinstance(what, (Received, Send)) else what
    return getattr(subject, name, None)


def describe(happening: Happening) -> str:
    """Return one line: when, who, in or out, with whom, what."""
    what = happening.what
    peer = ""
    if isinstance(what, (Received, Send)):
        name = what.peer.decode() if isinstance(what.peer, bytes) else what.peer
        peer = f" {'from' if happening.is_event else 'to'} {name}"
        what = what.message
    arrow = ">" if happening.is_event else "<"
    return f"{happening.time_s:10.4f} {happening.node:<12} {arrow} {short(what)}{peer}"


def short(what: object) -> str:
    """Return an object's type and fields in one line, without payloads and what is the same everywhere."""
    if not is_dataclass(what) or isinstance(what, type):
        return repr(what)
    return f"{type(what).__name__}({', '.join(_shown_fields(what))})"


def _shown_fields(what: Any) -> Iterator[str]:
    for field in fields(what):
        value = getattr(what, field.name)
        if isinstance(what, Message) and field.name in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, (Load, Parcel)):
            yield f"{field.name}=..."
        elif isinstance(value, bytes):
            yield f"{field.name}={value.hex()}"
        elif isinstance(value, float):
            yield f"{field.name}={value:.6g}"
        elif value is not None and not (isinstance(value, tuple) and any(isinstance(v, (Load, tuple)) for v in value)):
            yield f"{field.name}={value}"
