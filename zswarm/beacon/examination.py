"""`zswarm doctor`'s machine: it finds the beacons, asks each whom it reaches, and has every pair measured.

    LOOKING, LOOK_S --> ASKING each beacon for its contacts, and those in turn, ASK_S at most
                        --> MEASURING pair after pair, so that none disturbs another --> out

It decides nothing about the swarm and changes nothing in it; what it has found is in `findings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from zswarm import limits
from zswarm.beacon.machine import Beacon, Command, Event, HangUp, Sighted
from zswarm.beacon.measurement import BUSY
from zswarm.ids import Address
from zswarm.machine import Exit, Received, Send
from zswarm.membership import RUNLESS
from zswarm.messages import ContactReport, Inspect, Inspection, Measure, Measured

LOOK_S = 3.0
ASK_S = 4.0
NEWS_S = 1.0
"""How long after the last news of who is there the asking ends."""
AGAIN_S = 0.5
"""How soon a question that nobody has answered is asked again."""
Pair = tuple[Address, Address]


class Phase(Enum):
    """See the picture."""

    LOOKING = "looking"
    ASKING = "asking"
    MEASURING = "measuring"


@dataclass(slots=True, kw_only=True)
class Patient:
    """One beacon that answered."""

    address: Address
    machine: str
    release: str
    round_trip_s: float
    """From here."""
    num_contacts: int | None = None
    """None as long as it has not told."""
    contacts: dict[Address, ContactReport] = field(default_factory=dict)

    @property
    def has_told_all(self) -> bool:
        """Are all its contacts known?"""
        return self.num_contacts is not None and len(self.contacts) >= self.num_contacts


@dataclass(slots=True)
class Findings:
    """What is known in the end."""

    patients: dict[Address, Patient] = field(default_factory=dict)
    silent: tuple[Address, ...] = ()
    """Addresses that somebody knows, and that have not answered here."""
    rates: dict[Pair, Measured] = field(default_factory=dict)
    """From, to."""


class Examination:
    """See the module; `with_rates` has bandwidth measured, too."""

    def __init__(self, beacon: Beacon, *, now: float, with_rates: bool) -> None:
        self._beacon = beacon
        self._with_rates = with_rates
        self.findings = Findings()
        self.phase = Phase.LOOKING
        self._until_s = now + LOOK_S
        self._again_at_s = float("inf")
        self._quiet_at_s = float("inf")
        """When there has been no news for long enough."""
        self._pairs: Iterator[Pair] = iter(())
        self._pair: Pair | None = None

    def next_deadline_s(self) -> float:
        """Return when something is due."""
        quiet_at_s = self._quiet_at_s if self._all_told else float("inf")
        return min(self._beacon.next_deadline_s(), self._until_s, self._again_at_s, quiet_at_s)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        result = self._look(event, now)
        if isinstance(event, Received):
            result += self._received(event, now)
        if self.phase is Phase.ASKING:
            result += self._admit_all(now)
        if now >= self._until_s or (self.phase is Phase.ASKING and self._all_told and now >= self._quiet_at_s):
            result += self._next_phase(now)
        elif now >= self._again_at_s:
            result += self._ask(now)
        return result

    def _look(self, event: Event, now: float) -> list[Command]:
        """Have the beacon handle an event; who comes and goes meanwhile is told at the end, and in one table."""
        return [c for c in self._beacon.handle(event, now) if isinstance(c, (Send, HangUp, Exit))]

    @property
    def _all_told(self) -> bool:
        return all(patient.has_told_all for patient in self.findings.patients.values())

    def _next_phase(self, now: float) -> list[Command]:
        match self.phase:
            case Phase.LOOKING:
                self.phase, self._until_s = Phase.ASKING, now + ASK_S
                return self._admit_all(now)
            case Phase.ASKING:
                self._note_silent()
                self._quiet_at_s = float("inf")
                addresses = list(self.findings.patients) if self._with_rates else []
                self._pairs = iter([(a, b) for a in addresses for b in addresses if a != b])
                self.phase = Phase.MEASURING
                return self._measure_next(now)
            case Phase.MEASURING:
                # Nobody has told of this pair in time, not even that it took too long.
                return self._measure_next(now)

    def _admit_all(self, now: float) -> list[Command]:
        """Ask whoever answers and has not been asked."""
        fresh = [c for c in self._beacon.contacts if c.is_heard and c.address not in self.findings.patients]
        for contact in fresh:
            self.findings.patients[contact.address] = Patient(
                address=contact.address,
                machine=contact.machine,
                release=contact.release,
                round_trip_s=contact.round_trip_s,
            )
        if not fresh and self._quiet_at_s < float("inf"):
            return []
        self._quiet_at_s = now + NEWS_S
        return self._ask(now)

    def _note_silent(self) -> None:
        known = {contact.address for contact in self._beacon.contacts}
        known.update(address for patient in self.findings.patients.values() for address in patient.contacts)
        self.findings.silent = tuple(sorted(known - set(self.findings.patients)))

    def _ask(self, now: float) -> list[Command]:
        """Ask whatever has not been answered."""
        self._again_at_s = now + AGAIN_S
        if self.phase is Phase.MEASURING:
            return self._measure()
        return [
            Send(peer=patient.address, message=Inspect(**RUNLESS, first=len(patient.contacts)))
            for patient in self.findings.patients.values()
            if not patient.has_told_all
        ]

    def _measure_next(self, now: float) -> list[Command]:
        self._pair = next(self._pairs, None)
        self._until_s = self._again_at_s = float("inf")
        if self._pair is None:
            return [Exit(code=0, text="examined")]
        self._until_s = now + limits.MEASURE_S + 1.0
        return self._measure()

    def _measure(self) -> list[Command]:
        assert self._pair is not None
        source, target = self._pair
        return [Send(peer=source, message=Measure(**RUNLESS, address=target))]

    def _received(self, event: Received, now: float) -> list[Command]:
        message, peer = event.message, event.peer
        patient = self.findings.patients.get(Address(peer)) if isinstance(peer, str) else None
        if patient is None:
            return []
        if isinstance(message, Inspection):
            return self._told(patient, message, now)
        if isinstance(message, Measured) and self._pair == (patient.address, message.address):
            if message.problem == BUSY:
                self._again_at_s = now + AGAIN_S
                return []
            self.findings.rates[self._pair] = message
            return self._measure_next(now)
        return []

    def _told(self, patient: Patient, message: Inspection, now: float) -> list[Command]:
        """Note some of a beacon's contacts; look for those that nobody else has told of."""
        patient.num_contacts = message.num_contacts
        patient.contacts.update((report.address, report) for report in message.contacts)
        commands: list[Command] = []
        for report in message.contacts:
            if self._beacon.contacts.get(report.address) is None:
                self._quiet_at_s = now + NEWS_S
                commands += self._look(Sighted(address=report.address), now)
        if message.contacts and not patient.has_told_all:
            # An answer without news is no reason to ask at once.
            commands.append(Send(peer=patient.address, message=Inspect(**RUNLESS, first=len(patient.contacts))))
        return commands
