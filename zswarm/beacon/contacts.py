"""The beacons that one beacon knows of: whom to greet when, who answers, whom to forget.

    CANDIDATE --answers--> HEARD --MISSED_GREETINGS--> CANDIDATE --silent for FORGET_S--> forgotten (a seed: never)

An address comes from the operator (a seed), from mDNS, from another beacon, or from its own greeting. Where it comes
from decides nothing but who makes room when there are too many: it is a hint where to knock. Who is there is known
from answers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from zswarm import limits
from zswarm.ids import Address


class Origin(IntEnum):
    """Where an address comes from; of two, the one with the lower number is kept."""

    SEED = 0
    CALLER = 1
    MDNS = 2
    HEARSAY = 3


@dataclass(slots=True, kw_only=True)
class Contact:
    """One address at which a beacon is, or may be."""

    address: Address
    origin: Origin
    known_at_s: float
    """Since when it is known; after a silence, since when it has been a candidate again."""
    machine: str = ""
    """Empty as long as it has never answered."""
    boot_nonce: int = 0
    release: str = ""
    heard_at_s: float = float("-inf")
    greet_at_s: float = float("-inf")
    wait_s: float = limits.GREET_S
    number: int = 0
    """Of the last greeting."""
    sent_at_s: float = float("-inf")
    round_trip_s: float = 0.0
    is_heard: bool = False
    problem: str = ""


class Contacts:
    """See the module. Whoever answers is greeted every `interval_s`."""

    def __init__(self, seeds: Iterable[Address], now: float, *, interval_s: float) -> None:
        self._interval_s = interval_s
        self._by_address: dict[Address, Contact] = {}
        for address in seeds:
            self.add(address, Origin.SEED, now)

    def __iter__(self) -> Iterator[Contact]:
        """Go through all of them, sorted by address."""
        return iter(sorted(self._by_address.values(), key=lambda contact: contact.address))

    def __len__(self) -> int:
        return len(self._by_address)

    def get(self, address: Address) -> Contact | None:
        """Return what is known of an address."""
        return self._by_address.get(address)

    def add(self, address: Address, origin: Origin, now: float) -> list[Address]:
        """Note an address, to be greeted at once if it is a new one; returns whoever had to make room for it."""
        known = self._by_address.get(address)
        if known is not None:
            if origin is not Origin.HEARSAY and not known.is_heard and known.origin is not Origin.SEED:
                # Whoever says so himself, or is seen in the network now, is worth another try soon.
                known.greet_at_s = min(known.greet_at_s, now + limits.GREET_S)
            known.origin = min(known.origin, origin)
            return []
        dropped = []
        if len(self._by_address) >= limits.MAX_CONTACTS:
            least = max(self._by_address.values(), key=lambda c: (not c.is_heard, c.origin, c.known_at_s))
            if least.is_heard or least.origin is Origin.SEED or least.origin < origin:
                return []
            dropped.append(self.drop(least.address))
        self._by_address[address] = Contact(address=address, origin=origin, known_at_s=now)
        return dropped

    def drop(self, address: Address) -> Address:
        """Forget an address."""
        del self._by_address[address]
        return address

    def due(self, now: float) -> list[Contact]:
        """Return whom to greet now, each with its next greeting set; silent ones ever more rarely."""
        due = [contact for contact in self._by_address.values() if contact.greet_at_s <= now]
        for contact in due:
            contact.greet_at_s = now + contact.wait_s
            if not contact.is_heard:
                contact.wait_s = min(2 * contact.wait_s, limits.GREET_LONGEST_S)
            contact.number += 1
            contact.sent_at_s = now
        return due

    def next_s(self) -> float:
        """Return when somebody is due."""
        return min((contact.greet_at_s for contact in self._by_address.values()), default=float("inf"))

    def heard(self, contact: Contact, now: float) -> bool:
        """Note a sign of life; True if there had been none lately."""
        is_news = not contact.is_heard
        contact.heard_at_s, contact.is_heard, contact.problem = now, True, ""
        contact.wait_s = self._interval_s
        if is_news:
            contact.greet_at_s = min(contact.greet_at_s, now + limits.GREET_S)
        return is_news

    def silenced(self, now: float) -> list[Contact]:
        """Return who has fallen silent since this was last asked: they are candidates again."""
        longest_s = limits.MISSED_GREETINGS * self._interval_s
        silent = [c for c in self._by_address.values() if c.is_heard and now - c.heard_at_s > longest_s]
        for contact in silent:
            contact.is_heard, contact.known_at_s, contact.wait_s = False, now, limits.GREET_S
        return silent

    def forgotten(self, now: float) -> list[Address]:
        """Forget whoever has been a candidate for too long; returns their addresses."""
        old = [
            c.address
            for c in self._by_address.values()
            if not c.is_heard and c.origin is not Origin.SEED and now - c.known_at_s > limits.FORGET_S
        ]
        return [self.drop(address) for address in old]

    def excuse(self, stall_s: float) -> None:
        """This process itself was not running: nobody else is to blame for what it did not hear."""
        for contact in self._by_address.values():
            contact.heard_at_s += stall_s
            contact.known_at_s += stall_s
