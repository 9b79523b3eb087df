"""Who is it that listens at an address, if not who should? Asked with a plain socket, once ZeroMQ has got nowhere.

Whoever speaks ZeroMQ begins at once with a greeting that names how it encrypts; many other services begin with a line
of text, and those that wait for a question answer a bad one. Nothing secret is said.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from zswarm.ids import Address
from zswarm.transport.addresses import endpoint_of

HALF_OF_GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
"""Signature and version (ZMTP 3): enough for a ZeroMQ to say everything, and not to compare how both encrypt."""
BAD_QUESTION = b"\r\n\r\n"
"""Whatever serves requests that are lines of text answers that there was none."""
GREETING_BYTES = 64
PATIENCE_S = 0.5
"""For connecting, for the first words, and for an answer to the question."""
SHOWN_CHARS = 60
_PRINTABLE = re.compile(rb"[ -~]+")


class Kind(Enum):
    """What has been found."""

    NOBODY = "nobody"
    """There is no connection to be had."""
    SILENT = "silent"
    ENDED = "ended"
    """It hung up without a word."""
    PLAIN = "plain"
    """A ZeroMQ without encryption."""
    CURVE = "curve"
    """A ZeroMQ with CURVE, as with a swarm key."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody says."""

    kind: Kind
    words: str = ""
    """The beginning of what another service says, if that is text."""


def understood_untrusted(said: bytes, *, has_ended: bool) -> Answer:
    """Return what it means that somebody has said this, and hung up or not."""
    if not said:
        return Answer(Kind.ENDED if has_ended else Kind.SILENT)
    if said[0] == 0xFF and said[9:10] == b"\x7f":
        mechanism = said[12:32].rstrip(b"\0")
        if mechanism in (b"NULL", b"CURVE"):
            return Answer(Kind.PLAIN if mechanism == b"NULL" else Kind.CURVE)
    match = _PRINTABLE.match(said)
    return Answer(Kind.OTHER, match[0][:SHOWN_CHARS].decode("ascii") if match is not None else "")


def probe(address: Address) -> Answer:
    """Ask; takes 3 times PATIENCE_S at most."""
    try:
        with _connected(address) as asked:
            with suppress(ConnectionError):  # it may have spoken and gone already
                asked.sendall(HALF_OF_GREETING)
            said, has_ended = _read(asked)
            if not said and not has_ended:
                asked.sendall(BAD_QUESTION)
                said, has_ended = _read(asked)
    except OSError:
        return Answer(Kind.NOBODY)
    return understood_untrusted(said, has_ended=has_ended)


def _connected(address: Address) -> socket.socket:
    if (endpoint := endpoint_of(address)) is not None:
        return socket.create_connection(endpoint, timeout=PATIENCE_S)
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    asked.settimeout(PATIENCE_S)
    try:
        asked.connect(address.removeprefix("ipc://"))
    except OSError:
        asked.close()
        raise
    return asked


def _read(asked: socket.socket) -> tuple[bytes, bool]:
    """Return what is said within PATIENCE_S, as much as a greeting has, and whether the other side has hung up."""
    said = b""
    until_s = time.monotonic() + PATIENCE_S
    while len(said) < GREETING_BYTES and (left_s := until_s - time.monotonic()) > 0:
        asked.settimeout(left_s)
        try:
            more = asked.recv(GREETING_BYTES - len(said))
        except TimeoutError:
            break
        except ConnectionError:
            return said, True
        if not more:
            return said, True
        said += more
    return said, False
