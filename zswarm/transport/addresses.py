"""Addresses that zswarm may use, and what a user reads about one that it may not or cannot use."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from pathlib import Path

from zswarm.errors import NotYet, UserError
from zswarm.ids import Address

Endpoint = tuple[str, int]
_IPC = "ipc://"
_TCP = re.compile(r"tcp://(?P<host>\[[^]]+\]|[^:\[\]]+):(?P<port>\*|[0-9]{1,5})")
_PROBE_S = 1.0
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def checked_address(address: str, *, listening: bool = False, has_key: bool = False) -> Address:
    """Return the address if zswarm may listen on it or dial it; the ports `*` and 0 are for listening only.

    Without a swarm key that is a path or an address of the loopback; with one, any address of one machine.

    Raises:
        UserError: it is no address, or none that may be used.

    """
    if address.startswith(_IPC) and len(address) > len(_IPC):
        return Address(address)
    match = _TCP.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r} is no address: write tcp://IP:PORT, such as tcp://127.0.0.1:4711, or ipc://PATH")
    port = match["port"]
    if int(port.replace("*", "0")) > 65_535 or (port in ("*", "0") and not listening):
        raise UserError(f"{address!r} has no port that can be used: write a number from 1 to 65535")
    try:
        host = ipaddress.ip_address(match["host"].strip("[]"))
    except ValueError:
        raise UserError(f"{address!r} has a name: write the IP address that it stands for") from None
    if not has_key and not host.is_loopback:
        raise UserError(
            f"{address!r} is not of the loopback, where alone zswarm talks without a swarm key: make one with "
            "`zswarm key init` and give it to everybody with --key, or write tcp://127.0.0.1:PORT or ipc://PATH"
        )
    if host.is_unspecified or host.is_multicast or host == _BROADCAST:
        raise UserError(f"{address!r} is not of one machine: write an address by which others can reach it")
    return Address(address)


def address_at(host: str, port: int | str) -> Address:
    """Return the address of a port of an IP address; it is not checked."""
    return Address(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")


def any_port(host: str) -> Address:
    """Return the address that stands for any free port of an IP address; it is not checked."""
    return address_at(host, "*")


def endpoint_of(address: Address) -> Endpoint | None:
    """Return host and port of a TCP address as the system writes them, 0 for any port; None for a path."""
    match = _TCP.fullmatch(address)
    return None if match is None else (match["host"].strip("[]"), int(match["port"].replace("*", "0")))


def host_of(address: Address) -> str:
    """Return the IP address in an address, without brackets; that of the loopback for a path."""
    endpoint = endpoint_of(address)
    return endpoint[0] if endpoint is not None else "127.0.0.1"


def port_of(address: Address) -> int:
    """Return the port in an address; 0 for a path, or where any port will do."""
    endpoint = endpoint_of(address)
    return endpoint[1] if endpoint is not None else 0


def host_towards(address: Address) -> str:
    """Return this machine's IP address on the way to `address`, which has been checked; nothing is sent.

    Raises:
        NotYet: there is no way.

    """
    endpoint = endpoint_of(address)
    if endpoint is None:
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(endpoint)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise NotYet(f"{address}: this machine has no way there: {error.strerror}") from None


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
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return NotYet(f"cannot listen on {address}: this machine has no such address; `ip address` shows those it has")
    if number != errno.EADDRINUSE:
        return UserError(f"cannot listen on {address}: {os.strerror(number)}")
    remedy = "write another path" if address.startswith(_IPC) else "write * for the port to take any free one"
    return UserError(f"cannot listen on {address}: another process does; stop it, or {remedy}")
