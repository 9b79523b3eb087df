"""Where a process of this machine listens and looks for others: options that several commands share."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zswarm import limits
from zswarm.errors import NotYet, UserError
from zswarm.ids import Address, NodeId

if TYPE_CHECKING:
    from zswarm.beacon.service import Place
    from zswarm.swarm_key import SwarmKey

BEACON_PORT = 4710
TRAINER_PORT = 4711
LOOPBACK = "127.0.0.1"
KNOCK_S = 0.5
"""A connection within this machine takes no time; a firewall that drops it is not waited for."""
_SEED = re.compile(r"(?:tcp://)?(?P<host>\[[^]]+\]|[^:/\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?")

seeds_option = click.option(
    "--seed",
    "seeds",
    metavar="HOST[:PORT]",
    multiple=True,
    envvar="ZSWARM_SEEDS",
    help="A machine of the swarm to ask for the others, beside those that mDNS finds; repeatable, also from "
    f"ZSWARM_SEEDS, with blanks between. PORT is {BEACON_PORT} unless it says otherwise.",
)
host_option = click.option(
    "--host", metavar="IP", help="The address of this machine that the others are told; otherwise chosen by route."
)
machine_option = click.option(
    "--name", metavar="NAME", help="What this machine is called; otherwise its host name. Each has another one."
)


def seed_addresses(seeds: Iterable[str]) -> tuple[Address, ...]:
    """Return the addresses of seeds; names are looked up here and now.

    Raises:
        UserError: one is no address, or its name is not known.
        NotYet: names cannot be looked up yet.

    """
    return tuple(_seed_address(seed) for seed in seeds)


def _seed_address(seed: str) -> Address:
    from zswarm.transport import address_at

    match = _SEED.fullmatch(seed)
    if match is None or int(match["port"] or BEACON_PORT) > 65_535:
        raise UserError(
            f"--seed: {seed!r} is no machine: write HOST or HOST:PORT, such as lab2 or 10.0.0.2:{BEACON_PORT}"
        )
    host, port = match["host"].strip("[]"), match["port"] or BEACON_PORT
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        found = ipaddress.ip_address(_looked_up(host))
    return address_at(str(found), port)


def _looked_up(host: str) -> str | int:
    """Return the IP address of a seed's name; raises as `seed_addresses`."""
    from zswarm.beacon.interface import real_interfaces

    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError) as error:
        # At boot: nobody answers yet, or whoever answers without a network knows no name.
        if isinstance(error, socket.gaierror) and (error.errno == socket.EAI_AGAIN or not real_interfaces()):
            text = f"--seed: {host!r} cannot be looked up yet: {error.strerror}: if that lasts, write its IP address"
            raise NotYet(text) from None
        raise UserError(f"--seed: {host!r} is no machine that this one knows: write its IP address") from None


def own_host(host: str | None, seeds: tuple[Address, ...], key: SwarmKey | None) -> tuple[str, str]:
    """Return the address of this machine that the others are told, and why that one.

    Raises:
        UserError: this machine has no network.

    """
    from zswarm.beacon.interface import own_interface

    if host is not None:
        return host, "as --host says" if not is_loopback(host) else "as --host says: on this machine alone"
    if key is None:
        return LOOPBACK, "on this machine alone: there is no swarm key"
    interface = own_interface(seeds)
    return interface.host, f"interface {interface.name}"


def is_loopback(host: str) -> bool:
    """Is it an address that only this machine reaches? A name is none."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_machine(name: str | None) -> str:
    """Return what this machine is called.

    Raises:
        UserError: it has no name that can be used.

    """
    machine = name or os.uname().nodename
    if not 0 < len(machine) <= limits.MAX_MACHINE_CHARS // 2 or not machine.isprintable():
        raise UserError(
            f"--name: {machine!r} is no name for a machine: write one of 1 to {limits.MAX_MACHINE_CHARS // 2} characters"
        )
    return machine


def process_name(name: str, *, option: str) -> NodeId:
    """Return what a process is called.

    Raises:
        UserError: that is no name that its messages and logs could have.

    """
    if not 0 < len(name) <= limits.MAX_NODE_CHARS or not name.isprintable():
        shown = name if len(name) <= limits.MAX_NODE_CHARS else f"{name[: limits.MAX_NODE_CHARS]}..."
        raise UserError(
            f"{option}: {shown!r} is no name for a process: write one of 1 to {limits.MAX_NODE_CHARS} characters"
        )
    return NodeId(name)


def key_of(path: Path | None, *, default: bool = True) -> SwarmKey | None:
    """Return the swarm key in a file; with `default`, this user's own if no file is named and there is one."""
    from zswarm.cli.folders import is_there
    from zswarm.cli.key import default_path
    from zswarm.cli.started_by import credentials_folder
    from zswarm.swarm_key import read_key_file

    if path is None and default and is_there(default_path()):
        path = default_path()
    return None if path is None else read_key_file(path, credentials=credentials_folder())


def place_of(
    *,
    name: str | None,
    host: str | None,
    seeds: tuple[str, ...],
    key: SwarmKey | None,
    beacon_port: int,
    is_beacon: bool = False,
) -> tuple[Place, str]:
    """Return where this machine is and looks for others, and why there; its own beacon is asked first, unless `is_beacon`
    says that it is what will be there."""
    from zswarm.beacon.service import Place
    from zswarm.transport import address_at

    addresses = seed_addresses(seeds)
    chosen, why = own_host(host, addresses, key)
    beacon_host = chosen if is_beacon or host is not None else _beacon_host(chosen, beacon_port)
    own = address_at(beacon_host, beacon_port)
    return Place(machine=own_machine(name), host=chosen, seeds=(own, *addresses), key=key), why


def _beacon_host(host: str, port: int) -> str:
    """Return where this machine's beacon is: at its address, or where `zswarm join --host 127.0.0.1` has put it."""
    return LOOPBACK if not _is_listening(host, port) and _is_listening(LOOPBACK, port) else host


def _is_listening(host: str, port: int) -> bool:
    """Does somebody listen at this address, which is of this machine?"""
    try:
        socket.create_connection((host, port), timeout=KNOCK_S).close()
    except OSError:
        return False
    return True


def prepare_for_connections() -> None:
    """Let this process have as many connections as the system allows it."""
    from zswarm.open_files import raise_limit

    if text := raise_limit():
        click.echo(f"zswarm: {text}", err=True)
