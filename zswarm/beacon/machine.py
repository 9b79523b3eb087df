"""The beacon's machine: it greets whoever it knows of, learns from answers who else is there, and tells of runs.

    seeds, mDNS, callers, hearsay --> contacts --Greet, every interval--> another beacon
                                         ^                                   |
                                         +-- Greeted: who it hears, runs ----+

One machine, four users: a machine's beacon, which listens; a trainer, which has a run to offer and does not listen; an
idle broker or worker, which looks for a run; and `zswarm doctor`. An offer is told on by the beacons that its trainer
has greeted, and by nobody else: a trainer that is gone is offered by nobody after GREETED_S. All that is repeated, so
that nothing needs to arrive.

Ignored on purpose: the own greeting, which comes back where the own address is among the seeds; answers to greetings
that are not the last; what is said by mDNS of whoever does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from zswarm import limits
from zswarm.beacon.contacts import Contact, Contacts, Origin
from zswarm.beacon.measurement import Measurement
from zswarm.ids import Address, Peer
from zswarm.machine import ASKED, Exit, Health, Leave, Received, Send, Tick
from zswarm.membership import RUNLESS
from zswarm.messages import (
    ContactReport,
    Greet,
    Greeted,
    Inspect,
    Inspection,
    Measure,
    Offer,
    Probe,
    Probed,
    Reject,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """Somebody in the network says that a beacon is there; it may be a lie."""

    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """Drop the connection to an address."""

    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Appeared:
    """A beacon answers that did not before; `namesake` is another address with a machine of the same name."""

    machine: str
    address: Address
    round_trip_s: float
    release: str
    namesake: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """A beacon has stopped answering."""

    machine: str
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Nobody has answered for ALONE_S since the beginning; `tried` are the addresses that were greeted."""

    tried: tuple[Address, ...]


Event = Received | Tick | Sighted | Leave
Command = Send | HangUp | Appeared | Vanished | Alone | Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class BeaconSettings:
    """Who this is."""

    machine: str
    boot_nonce: int
    address: Address
    """Empty for one that does not listen."""
    release: str
    seeds: tuple[Address, ...] = ()
    offer: Offer | None = None


class Beacon:
    """See the module. `choose(n)` returns a random index below n: which contacts a greeting tells of."""

    def __init__(self, settings: BeaconSettings, *, choose: Callable[[int], int], now: float) -> None:
        self._settings = settings
        self._choose = choose
        seeds = (seed for seed in settings.seeds if seed != settings.address)
        # Who listens is in nobody's way when it hears of a newcomer late: that one greets it, and it answers.
        interval_s = limits.GREET_CALM_S if settings.address else limits.GREET_S
        self.contacts = Contacts(seeds, now, interval_s=interval_s)
        self._own = {settings.address} - {Address("")}
        """Addresses at which this very process has met itself."""
        self._offers: dict[Offer, float] = {}
        """When each was last heard of; the one that was first heard of comes first."""
        self._first_hand: dict[Offer, float] = {}
        """Those of trainers that have greeted this beacon themselves: told on, or two beacons would keep one that is
        over alive between them."""
        self.measurement = Measurement()
        self._turned_at_s = now
        self._alone_at_s = now + limits.ALONE_S

    # -- the machine's interface ---------------------------------------------------------------------

    def next_deadline_s(self) -> float:
        """Return when somebody is to be greeted."""
        return min(
            self.contacts.next_s(), self._turned_at_s + limits.GREET_S, self.measurement.deadline_s, self._alone_at_s
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        self._excuse_own_silence(now)
        commands: list[Command] = []
        match event:
            case Received():
                commands += self._received(event, now)
            case Sighted():
                commands += self._learn(event.address, Origin.MDNS, now)
            case Leave():
                return [Exit(code=0, text=ASKED)]
            case Tick():
                pass
            case _:
                assert_never(event)
        commands += (Vanished(machine=c.machine, address=c.address) for c in self.contacts.silenced(now))
        commands += map(_hang_up, self.contacts.forgotten(now))
        commands += self.measurement.expired(now)
        if now >= self._alone_at_s:
            self._alone_at_s = float("inf")
            commands.append(Alone(tried=tuple(contact.address for contact in self.contacts)))
        commands += (Send(peer=contact.address, message=self._greet(contact)) for contact in self.contacts.due(now))
        return commands

    def health(self, now: float) -> Health:
        """Say how things are, for whoever looks after this process."""
        num_heard = sum(contact.is_heard for contact in self.contacts)
        return Health(text=f"sees {num_heard} machines and {len(self.offers(now))} runs")

    def offers(self, now: float) -> list[Offer]:
        """Return the runs that have been offered lately, the one that was first heard of first."""
        return _lately(self._offers, now)

    def _excuse_own_silence(self, now: float) -> None:
        stall_s = now - self._turned_at_s - limits.GREET_S
        if stall_s > limits.GREET_S:
            self.contacts.excuse(stall_s)
        self._turned_at_s = now

    # -- messages ------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Command]:
        match event.message:
            case Greet() as message:
                return self._greeted_by(message, event.peer, now)
            case Greeted() as message:
                return self._answered(message, event.peer, now)
            case Reject() as message:
                contact = self.contacts.get(event.peer) if isinstance(event.peer, str) else None
                if contact is not None:
                    contact.problem = message.text[:128]
                return []
            case Inspect() as message:
                return [Send(peer=event.peer, message=self._inspection(message.first))]
            case Measure() as message:
                is_known = (contact := self.contacts.get(message.address)) is not None and contact.is_heard
                return [*self.measurement.begin(message, event.peer, now, is_known=is_known)]
            case Probe() as message:
                return [Send(peer=event.peer, message=Probed(**RUNLESS, number=message.number))]
            case Probed() as message:
                return [*self.measurement.probed(message, event.peer, now)]
            case _:
                return []

    def _greeted_by(self, message: Greet, peer: Peer, now: float) -> list[Command]:
        if message.boot_nonce == self._settings.boot_nonce:
            # The answer tells the one of the two that has dialled: it is this same process.
            return [Send(peer=peer, message=self._answer(message))]
        commands: list[Command] = []
        if message.address:
            commands += self._learn(message.address, Origin.CALLER, now)
        if message.offer is not None:
            _note(self._first_hand, message.offer, now)
            _note(self._offers, message.offer, now)
        return [*commands, Send(peer=peer, message=self._answer(message))]

    def _answered(self, message: Greeted, peer: Peer, now: float) -> list[Command]:
        contact = self.contacts.get(peer) if isinstance(peer, str) else None
        if contact is None:
            return []
        if message.boot_nonce == self._settings.boot_nonce:
            self._own.add(contact.address)
            return [_hang_up(self.contacts.drop(contact.address))]
        if message.number == contact.number:
            contact.round_trip_s = now - contact.sent_at_s
        self._alone_at_s = float("inf")
        is_news = self.contacts.heard(contact, now) or contact.boot_nonce != message.boot_nonce
        contact.machine, contact.boot_nonce, contact.release = message.machine, message.boot_nonce, message.release
        commands: list[Command] = [self._appeared(contact)] if is_news else []
        for offer in message.offers:
            _note(self._offers, offer, now)
        for address in message.known:
            commands += self._learn(address, Origin.HEARSAY, now)
        return commands

    def _appeared(self, contact: Contact) -> Appeared:
        others = (c.address for c in self.contacts if c.is_heard and c is not contact and c.machine == contact.machine)
        is_mine = contact.machine == self._settings.machine and self._settings.address
        return Appeared(
            machine=contact.machine,
            address=contact.address,
            round_trip_s=contact.round_trip_s,
            release=contact.release,
            namesake=self._settings.address if is_mine else next(others, None),
        )

    def _learn(self, address: Address, origin: Origin, now: float) -> list[Command]:
        if not address or address in self._own:
            return []
        return [*map(_hang_up, self.contacts.add(address, origin, now))]

    # -- what is said --------------------------------------------------------------------------------

    def _greet(self, contact: Contact) -> Greet:
        settings = self._settings
        return Greet(
            **RUNLESS,
            machine=settings.machine,
            boot_nonce=settings.boot_nonce,
            address=settings.address,
            release=settings.release,
            number=contact.number,
            known=self._known(),
            offer=settings.offer,
        )

    def _answer(self, message: Greet) -> Greeted:
        settings = self._settings
        return Greeted(
            **RUNLESS,
            machine=settings.machine,
            boot_nonce=settings.boot_nonce,
            release=settings.release,
            number=message.number,
            known=self._known(),
            offers=tuple(_lately(self._first_hand, self._turned_at_s)),
        )

    def _known(self) -> tuple[Address, ...]:
        """Return who is heard; if there are many, a random run of them in the order of addresses."""
        heard = [contact.address for contact in self.contacts if contact.is_heard]
        if len(heard) <= limits.MAX_KNOWN:
            return tuple(heard)
        first = self._choose(len(heard))
        return tuple((heard + heard)[first : first + limits.MAX_KNOWN])

    def _inspection(self, first: int) -> Inspection:
        contacts = list(self.contacts)
        return Inspection(
            **RUNLESS,
            machine=self._settings.machine,
            address=self._settings.address,
            release=self._settings.release,
            first=first,
            num_contacts=len(contacts),
            contacts=tuple(map(_report, contacts[first : first + limits.MAX_REPORTED_CONTACTS])),
        )


def _lately(offers: dict[Offer, float], now: float) -> list[Offer]:
    return [offer for offer, heard_at_s in offers.items() if now - heard_at_s <= limits.GREETED_S]


def _note(offers: dict[Offer, float], offer: Offer, now: float) -> None:
    """Note an offer, if there is room beside those that are still heard."""
    for old in [old for old, heard_at_s in offers.items() if now - heard_at_s > limits.GREETED_S]:
        del offers[old]
    if offer in offers or len(offers) < limits.MAX_OFFERS:
        offers[offer] = now


def _report(contact: Contact) -> ContactReport:
    return ContactReport(
        address=contact.address,
        machine=contact.machine,
        is_heard=contact.is_heard,
        round_trip_s=contact.round_trip_s,
        origin=contact.origin.name.lower(),
        problem=contact.problem,
    )


def _hang_up(address: Address) -> HangUp:
    return HangUp(address=address)


class Seeker:
    """A beacon that does not listen and exits as soon as it hears of a run: `offer` is that run.

    `avoided` says until when a run, by its offer, is not to be tried again, and after `until_s` it gives up; all times on
    one clock.
    """

    def __init__(self, beacon: Beacon, avoided: Mapping[Offer, float], *, until_s: float = float("inf")) -> None:
        self._beacon = beacon
        self._avoided = avoided
        self._until_s = until_s
        self.offer: Offer | None = None

    def next_deadline_s(self) -> float:
        """Return when somebody is to be asked."""
        return min(self._beacon.next_deadline_s(), self._until_s)

    def health(self, now: float) -> Health:
        """Say how things are, for whoever looks after this process."""
        return Health(text=f"looks for a run; {self._beacon.health(now).text}")

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands = self._beacon.handle(event, now)
        for offer in self._beacon.offers(now):
            if now >= self._avoided.get(offer, now):
                self.offer = offer
                return [*commands, Exit(code=0, text=f"there is a run: {offer.name}")]
        if now >= self._until_s:
            return [*commands, Exit(code=0, text="there is no run")]
        return commands


class Listener:
    """A beacon that does not listen and exits at `until_s`: `offers` are the runs that are offered then."""

    def __init__(self, beacon: Beacon, *, until_s: float) -> None:
        self._beacon = beacon
        self._until_s = until_s
        self.offers: list[Offer] = []

    def next_deadline_s(self) -> float:
        """Return when somebody is to be asked."""
        return min(self._beacon.next_deadline_s(), self._until_s)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands = self._beacon.handle(event, now)
        if now < self._until_s:
            return commands
        self.offers = self._beacon.offers(now)
        return [*commands, Exit(code=0, text=f"{len(self.offers)} runs are offered")]
