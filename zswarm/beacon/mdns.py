"""mDNS: beacons of the same network that nobody has named to us, by zeroconf.

What it says is a hint where to knock, and it never reports that somebody is gone. An advert carries a tag that only
holders of the swarm's key can make, so that those of other swarms, and forged ones, cost nothing but their packets; an
old advert that is played back leads to an address that does not answer.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from hashlib import blake2b
from typing import Self

from zeroconf import IPVersion, NonUniqueNameException, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from zswarm import limits
from zswarm.beacon.machine import Sighted
from zswarm.ids import Address
from zswarm.swarm_key import SwarmKey
from zswarm.transport import checked_address

SERVICE = "_zswarm._tcp.local."
TAG_BYTES = 16
LOOK_UP_MS = 1000
_LABEL = re.compile(r"[^A-Za-z0-9-]+")


def advert_tag(key: SwarmKey, host: str, port: int) -> bytes:
    """Return what proves that a holder of the key listens, or once did, at this address."""
    secret = key.derive("mdns advert")
    return blake2b(f"{host} {port}".encode(), key=secret, digest_size=TAG_BYTES).hexdigest().encode()


class Multicast:
    """Looks for adverts on one interface, and puts up our own; a context manager that takes it down."""

    def __init__(self, key: SwarmKey, *, host: str, wake: Callable[[], None]) -> None:
        """Begin to look, on the interface with the address `host`; `wake` is called, in another thread, at news.

        Raises:
            OSError: this interface does no multicast, or the port is not shared.

        """
        self._key = key
        self._wake = wake
        self._sightings: deque[Sighted] = deque(maxlen=limits.MAX_SIGHTINGS)
        self.num_foreign = 0
        """Adverts that no holder of this key has made."""
        self._zeroconf = Zeroconf(interfaces=[host], ip_version=IPVersion.V4Only)
        self._advertising: Future[None] | None = None
        self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])

    def advertise(self, machine: str, host: str, port: int, *, boot_nonce: int) -> None:
        """Put up an advert; the name is unique in the network, whatever machines are called.

        That takes more than a second, in which it is made sure that nobody else has this name. It is not waited for: we
        are not to be deaf and dumb meanwhile.
        """
        label = f"{_LABEL.sub('-', machine)[:40]}-{boot_nonce % 2**32:08x}"
        info = ServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            addresses=[ipaddress.IPv4Address(host).packed],
            port=port,
            properties={b"tag": advert_tag(self._key, host, port)},
            server=f"{label}.local.",
        )
        loop = self._zeroconf.loop
        assert loop is not None
        self._advertising = asyncio.run_coroutine_threadsafe(self._put_up(info), loop)

    async def _put_up(self, info: ServiceInfo) -> None:
        """Put up an advert; in zeroconf's own thread."""
        with suppress(NonUniqueNameException):
            # Our own advert, of the same life, is there already.
            await (await self._zeroconf.async_register_service(info))

    def sightings(self) -> list[Sighted]:
        """Return the addresses that adverts have named since this was last asked."""
        seen = []
        while self._sightings:
            seen.append(self._sightings.popleft())
        return seen

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Look at an advert; in the browser's own thread."""
        if state_change is ServiceStateChange.Removed:
            return
        info = ServiceInfo(service_type, name)
        if not info.load_from_cache(zeroconf) and not info.request(zeroconf, LOOK_UP_MS):
            return
        address = self._checked_untrusted(info)
        if address is None:
            self.num_foreign += 1
            return
        self._sightings.append(Sighted(address=address))
        self._wake()

    def _checked_untrusted(self, info: ServiceInfo) -> Address | None:
        """Return the address in an advert that a holder of the key has made, None if it is another's."""
        hosts = info.parsed_addresses(IPVersion.V4Only)
        tag = info.properties.get(b"tag")
        if len(hosts) != 1 or info.port is None or not isinstance(tag, bytes):
            return None
        if not hmac.compare_digest(tag, advert_tag(self._key, hosts[0], info.port)):
            return None
        return checked_address(f"tcp://{hosts[0]}:{info.port}", has_key=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._advertising is not None:
            self._advertising.cancel()
        self._zeroconf.close()
