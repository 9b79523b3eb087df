"""The processes that find each other: a machine's beacon, a trainer's announcer, and who looks for a run. No torch."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from zswarm import __version__, limits
from zswarm.beacon.examination import Examination, Findings
from zswarm.beacon.machine import Alone, Appeared, Beacon, BeaconSettings, HangUp, Listener, Seeker, Vanished
from zswarm.beacon.mdns import Multicast
from zswarm.ids import Address
from zswarm.logs import get_log
from zswarm.loop import Loop
from zswarm.machine import Exit, Leave
from zswarm.messages import Offer
from zswarm.overseer import NOBODY, Overseer
from zswarm.signals import signals_as
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard, host_of, port_of

M = TypeVar("M", Listener, Examination)
Say = Callable[[str], None]
"""Tells the user something, in a line."""


NOWHERE = Address("")
"""The address of whoever does not listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process of this machine looks for others."""

    machine: str
    """This machine's name, for people."""
    host: str
    """The address of this machine that the others are told; its interface is where mDNS looks."""
    seeds: tuple[Address, ...]
    """Beacons that are there, or will be: this machine's own among them, if it has one."""
    key: SwarmKey | None


def serve_beacon(place: Place, *, listen: Address, say: Say, overseer: Overseer = NOBODY) -> Exit:
    """Be this machine's beacon until it is asked to go (`zswarm.signals`), or until whoever oversees it has it end.

    Raises:
        UserError: the address cannot be used.

    """
    with Switchboard(key=place.key) as switchboard:
        address = switchboard.bind("beacon", listen)
        settings = _settings(place, address=address)
        return _serve(switchboard, place, settings, say=say, overseer=overseer)


def announce(place: Place, offer: Offer, *, say: Say, overseer: Overseer = NOBODY) -> Exit:
    """Tell every beacon that can be found of a run, until it is asked to go, or until whoever oversees it has it end."""
    with Switchboard(key=place.key) as switchboard:
        return _serve(switchboard, place, _settings(place, offer=offer), say=say, overseer=overseer)


def seek(
    place: Place, *, avoided: Mapping[Offer, float], overseer: Overseer = NOBODY, within_s: float = math.inf
) -> Offer | None:
    """Return a run that takes brokers and workers in, as soon as there is one; None if asked to go, or after `within_s`.

    Asks the seeds, and whoever they know; `avoided` says until when (monotonic) a run is not to be tried again.
    """
    with Switchboard(key=place.key) as switchboard:
        settings = _settings(place)
        now = monotonic()
        seeker = Seeker(Beacon(settings, choose=random.randrange, now=now), avoided, until_s=now + within_s)
        with signals_as(Leave(), wake=switchboard.waker(), overseer=overseer) as leaves:
            overseer.begin(switchboard, seeker.health)
            loop = Loop(seeker, switchboard, perform=_Reporter(switchboard, _nobody), collect=leaves)
            loop.run(overseer.turned)
        return seeker.offer


def listen_for_offers(place: Place, *, listen_s: float) -> list[Offer]:
    """Return the runs that are offered after so long; has sockets of its own, and may be called in any thread."""
    return _look_round(place, lambda beacon, now: Listener(beacon, until_s=now + listen_s)).offers


def inspect(place: Place, *, with_rates: bool) -> Findings:
    """Return which machines of the swarm reach which; `with_rates` has bandwidth measured, too."""
    return _look_round(place, lambda beacon, now: Examination(beacon, now=now, with_rates=with_rates)).findings


def _look_round(place: Place, make: Callable[[Beacon, float], M]) -> M:
    """Return a machine that was made of a beacon without an address of its own, when it has come to its end."""
    with Switchboard(key=place.key) as switchboard:
        now = monotonic()
        machine = make(Beacon(_settings(place), choose=random.randrange, now=now), now)
        Loop(machine, switchboard, perform=_Reporter(switchboard, _nobody)).run()
        return machine


def _settings(place: Place, *, address: Address = NOWHERE, offer: Offer | None = None) -> BeaconSettings:
    return BeaconSettings(
        machine=place.machine,
        boot_nonce=secrets.randbits(63),
        address=address,
        release=__version__,
        seeds=place.seeds,
        offer=offer,
    )


def _serve(switchboard: Switchboard, place: Place, settings: BeaconSettings, *, say: Say, overseer: Overseer) -> Exit:
    beacon = Beacon(settings, choose=random.randrange, now=monotonic())
    with ExitStack() as stack:
        leaves = stack.enter_context(signals_as(Leave(), wake=switchboard.waker(), overseer=overseer))
        multicast = _multicast(stack, switchboard, place, settings)
        overseer.begin(switchboard, beacon.health)
        return Loop(
            beacon,
            switchboard,
            perform=_Reporter(switchboard, say, place=place, has_mdns=multicast is not None),
            collect=lambda: [*leaves(), *(multicast.sightings() if multicast is not None else ())],
        ).run(overseer.turned)


def _multicast(stack: ExitStack, switchboard: Switchboard, place: Place, settings: BeaconSettings) -> Multicast | None:
    """Begin to use mDNS; not without a key, as then nothing leaves the loopback, and not where the network has none."""
    if place.key is None or ":" in place.host:
        return None
    try:
        multicast = stack.enter_context(Multicast(place.key, host=place.host, wake=switchboard.waker()))
        if settings.address:
            port = port_of(settings.address)
            multicast.advertise(settings.machine, place.host, port, boot_nonce=settings.boot_nonce)
    except OSError as error:
        get_log().warning("no mDNS", host=place.host, reason=error.strerror)
        return None
    return multicast


def _nobody(_: str) -> None:
    """Tell nobody."""


class _Reporter:
    """Carries out what a beacon decides beside sending: it hangs up, and tells the user who comes and goes."""

    def __init__(
        self, switchboard: Switchboard, say: Say, *, place: Place | None = None, has_mdns: bool = False
    ) -> None:
        self._switchboard = switchboard
        self._say = say
        self._place = place
        self._has_mdns = has_mdns

    def __call__(self, command: HangUp | Appeared | Vanished | Alone) -> Iterable[object]:
        match command:
            case HangUp():
                self._switchboard.hang_up(command.address)
            case Appeared():
                self._say(self._appeared(command))
            case Vanished():
                self._say(f"{command.machine} ({_short(command.address)}) does not answer any more")
            case Alone():
                self._say(self._alone(command))
        return ()

    @staticmethod
    def _appeared(command: Appeared) -> str:
        text = f"sees {command.machine} ({_short(command.address)}), {1000 * command.round_trip_s:.1f} ms"
        if command.release != __version__:
            text += f"; it has zswarm {command.release}, this machine {__version__}"
        if command.namesake is not None:
            text += f"; {_short(command.namesake)} has the same name: give one of them another one with --name"
        return text

    def _alone(self, command: Alone) -> str:
        tried = ", ".join(map(_short, command.tried)) or "none: --seed names one"
        asked = f"asked by mDNS on {self._place.host}" if self._has_mdns and self._place is not None else "no mDNS"
        return (
            f"sees no other machine after {limits.ALONE_S:.0f} s. Addresses tried: {tried}; {asked}. "
            "`zswarm doctor` says what is in the way"
        )


def _short(address: Address) -> str:
    return f"{host_of(address)}:{port_of(address)}" if address.startswith("tcp://") else address
