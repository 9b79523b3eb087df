"""Between machines, before there is a run: who is there, and which runs take brokers and workers in.

These messages are of no run, generation or session: all three are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from zswarm import limits
from zswarm.ids import Address
from zswarm.messages.base import TEXT, U32, U64, Length, Message, Parcel, Range, Seconds

MACHINE = Length(limits.MAX_MACHINE_CHARS)

AddressField = Annotated[Address, Length(limits.MAX_ADDRESS_CHARS)]
Known = Annotated[tuple[AddressField, ...], Length(limits.MAX_KNOWN)]
"""Addresses of other beacons that the sender hears: a different part of them each time if there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A run that takes brokers and workers in."""

    name: Annotated[str, MACHINE]
    coordinator: AddressField
    nonce: Annotated[int, U64]
    """Random, one per start of its trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greet(Message):
    """Anybody -> beacon, once per interval: here I am. Answered by Greeted.

    Whoever does not listen says no address: a trainer, which has a run to offer, and a broker, worker or command that
    only asks.
    """

    machine: Annotated[str, MACHINE]
    boot_nonce: Annotated[int, U64]
    """Random, one per life of the sender."""
    address: AddressField
    release: Annotated[str, MACHINE]
    """The sender's version of zswarm, for people."""
    number: Annotated[int, U64]
    """Comes back in the answer, which makes a round trip of the two."""
    known: Known
    offer: Offer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted(Message):
    """Beacon -> whoever greeted it: I hear you; these others I hear, too, and these runs want members."""

    machine: Annotated[str, MACHINE]
    boot_nonce: Annotated[int, U64]
    release: Annotated[str, MACHINE]
    number: Annotated[int, U64]
    known: Known
    offers: Annotated[tuple[Offer, ...], Length(limits.MAX_OFFERS)]
    """Of the trainers that have greeted this beacon themselves, and lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect(Message):
    """`zswarm doctor` -> beacon: whom do you reach? Answered by Inspection, from contact number `first` on."""

    first: Annotated[int, U32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactReport:
    """One other beacon, as one sees it."""

    address: AddressField
    machine: Annotated[str, MACHINE]
    """Empty if it has never answered."""
    is_heard: bool
    """It has answered within the last three intervals."""
    round_trip_s: Seconds
    """Of its last answer; 0 if there was none."""
    origin: Annotated[str, Length(16)]
    """Where the address comes from: `seed`, `mdns`, `hearsay` or `caller`."""
    problem: Annotated[str, Length(128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Message):
    """Beacon -> `zswarm doctor`: some of its contacts, sorted by address."""

    machine: Annotated[str, MACHINE]
    address: AddressField
    release: Annotated[str, MACHINE]
    first: Annotated[int, U32]
    num_contacts: Annotated[int, Range(0, limits.MAX_CONTACTS)]
    contacts: Annotated[tuple[ContactReport, ...], Length(limits.MAX_REPORTED_CONTACTS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure(Message):
    """`zswarm doctor` -> beacon: how fast can you send to the beacon at `address`? Answered by Measured, in time."""

    address: AddressField


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Message):
    """Beacon -> `zswarm doctor`: `bytes_per_s` from here to the beacon at `address`; 0, with the `problem`, if not."""

    address: AddressField
    bytes_per_s: Annotated[float, Range(0.0, 1e15)]
    problem: Annotated[str, TEXT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Message):
    """Beacon -> beacon, with payload of no meaning: answered by Probed, which is what is timed."""

    number: Annotated[int, U64]
    parcel: Parcel


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Message):
    """Beacon -> beacon: the probe `number` is here, whole."""

    number: Annotated[int, U64]
