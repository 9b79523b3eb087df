"""Which address of this machine the others are told: one, of a real network, chosen by route."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import ifaddr

from zswarm.errors import NotYet, UserError
from zswarm.ids import Address
from zswarm.transport import host_towards

SYSTEM = Path("/sys/class/net")
ELSEWHERE = Address("tcp://203.0.113.1:9")
"""An address of the block for documentation (RFC 5737): the way there is the default route. Nothing is sent."""
VIRTUAL = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "vmnet", "vboxnet")
"""How the names of interfaces begin that lead to containers and virtual machines of this same machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An address of this machine, and the name of what it belongs to."""

    name: str
    host: str


def own_interface(towards: tuple[Address, ...] = ()) -> Interface:
    """Return the interface on the way to the first address that there is a way to, then to the rest of the world.

    Without either, the first real interface that is up and has an IPv4 address: a lab's network need not lead
    anywhere.

    Raises:
        NotYet: this machine has no address but its own loopback's.

    """
    interfaces = real_interfaces()
    for address in (*towards, ELSEWHERE):
        try:
            host = host_towards(address)
        except UserError:
            continue
        named = [interface for interface in interfaces if interface.host == host]
        if named:
            return named[0]
        if towards and address in towards and not ipaddress.ip_address(host).is_loopback:
            return Interface(name="?", host=host)
    if interfaces:
        return interfaces[0]
    raise NotYet("this machine has no network but its own loopback: `ip address` shows what it has; --host names one")


def real_interfaces() -> list[Interface]:
    """Return the IPv4 addresses of interfaces that are up, without loopback and containers', sorted by name."""
    return [
        Interface(name=adapter.name, host=entry.ip)
        for adapter in sorted(ifaddr.get_adapters(), key=lambda adapter: adapter.name)
        for entry in adapter.ips
        if isinstance(entry.ip, str) and not adapter.name.startswith(VIRTUAL) and _is_up(adapter.name)
    ]


def _is_up(name: str) -> bool:
    """Is an interface up, or does nobody know? Not from /proc: a service of systemd may not see its rest."""
    try:
        return (SYSTEM / name / "operstate").read_text().strip() in {"up", "unknown"}
    except OSError:
        return True
