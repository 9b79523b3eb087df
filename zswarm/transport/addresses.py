"""Addresses that zswarm may use, and what a user reads about one that it may not or cannot use."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from pathlib import Path

from zswarm.errors import UserError
from zswarm.ids import Address

_IPC = "ipc://"
_TCP = re.compile(r"tcp://(?P<host>\[[^]]+\]|[^:\[\]]+):(?P<port>\*|[0-9]{1,5})")
_PROBE_S = 1.0


def checked_address(address: str, *, listening: bool = False) -> Address:
    """Return the address if zswarm may listen on it or dial it; the ports `*` and 0 are for listening only.

    Raises:
        UserError: it is no address, or not one of this machine.

    """
    if address.startswith(_IPC) and len(address) > len(_IPC):
        return Address(address)
    match = _TCP.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r} is no address: write tcp://127.0.0.1:PORT or ipc://PATH")
    port = match["port"]
    if int(port.replace("*", "0")) > 65_535 or (port in ("*", "0") and not listening):
        raise UserError(f"{address!r} has no port that can be used: write a number from 1 to 65535")
    if not _is_loopback(match["host"].strip("[]")):
        raise UserError(
            f"{address!r} is not of this machine: until swarms have keys, zswarm talks over loopback only; "
            "write tcp://127.0.0.1:PORT or ipc://PATH"
        )
    return Address(address)


def refuse_if_taken(address: Address) -> None:
    """Raise UserError if somebody listens on this ipc path: ZeroMQ would take it away from him unasked."""
    path = address.removeprefix(_IPC)
    if path in (address, "*") or not Path(path).exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except OSError:
            return
    raise cannot_listen(address, errno.EADDRINUSE)


def cannot_listen(address: Address, number: int) -> UserError:
    """Return the error for a system's errno on listening there."""
    if number != errno.EADDRINUSE:
        return UserError(f"cannot listen on {address}: {os.strerror(number)}")
    remedy = "write another path" if address.startswith(_IPC) else "write * for the port to take any free one"
    return UserError(f"cannot listen on {address}: another process does; stop it, or {remedy}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
