"""ZeroMQ's wire protocol by hand (ZMTP 3.0, without encryption): what no library lets one send."""

from __future__ import annotations

import socket

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4


def ready(socket_type: bytes) -> bytes:
    """Return the command that ends the handshake of a peer that has not to prove who it is."""
    body = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return bytes((COMMAND, len(body))) + body


def frame(content: bytes, *, more: bool) -> bytes:
    """Return one frame of a message."""
    return bytes((LONG | (MORE if more else 0),)) + len(content).to_bytes(8, "big") + content


def greet(connected: socket.socket, socket_type: bytes) -> None:
    """Do one side of the handshake, not waiting for the other one."""
    connected.sendall(GREETING + ready(socket_type))
