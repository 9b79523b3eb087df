r"""One run after the other: how a broker or worker whose trainer nobody has named spends its time.

idle: asks beacons for a run --> takes part until it is over --> idle
                             |--> is refused: this run is left alone for a while --> idle
                             \--> nobody offers it any more, and somebody another one --> idle

A trainer that is gone for good never says that its run is over, and one that comes back finds who has waited for it: so
they wait, unless there is something else to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from time import monotonic

from zswarm import limits
from zswarm.beacon.service import Place, Say, listen_for_offers, seek
from zswarm.errors import INTERRUPTED, REFUSED
from zswarm.logs import get_log
from zswarm.machine import ASKED, Exit, Health
from zswarm.messages import Offer
from zswarm.overseer import NOBODY, Overseer
from zswarm.signals import signals_as
from zswarm.transport import Switchboard

LOOK_S = 0.5
"""Between two looks at whether the trainer is silent: the loop turns far more often."""


class Abandoned(Exception):
    """The trainer of this run is not heard, nobody offers the run any more, and somebody offers another one."""


class OfferWatch:
    """Listens once, in a thread, for runs that are offered: the loop, which owns the run's sockets, does not wait for it.

    The thread has sockets of its own. It ends within seconds, and with the process.
    """

    def __init__(self, listen: Callable[[], Collection[Offer]], now: float) -> None:
        self._listen = listen
        self.begun_s = now
        self.offers: Collection[Offer] = ()
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.offers = self._listen()
        except Exception as error:  # noqa: BLE001 - the top of the thread: the run goes on without knowing of others
            get_log().warning("cannot listen for other runs", reason=str(error))


class Between(Overseer):
    """Passes on how a run goes, and not that it ends: the process goes on. Ends a run that is abandoned."""

    def __init__(self, overseer: Overseer, listen: Callable[[], Collection[Offer]]) -> None:
        self._overseer = overseer
        self._listen = listen
        self._health: Callable[[float], Health] | None = None
        self._watch: OfferWatch | None = None
        self._look_at_s = float("-inf")
        self.offer: Offer | None = None
        """Of the run that is taken part in; None between runs."""
        self.ends_us = overseer.ends_us

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:
        """Pass it on."""
        self._health = health
        self._overseer.begin(switchboard, health)

    def turned(self) -> None:
        """Pass it on, and look round; raises as `look`."""
        self._overseer.turned()
        now = monotonic()
        if self.offer is not None and self._health is not None and now >= self._look_at_s:
            self._look_at_s = now + LOOK_S
            self.look(self.offer, self._health(now).silent_s, now)

    def look(self, own: Offer, silent_s: float, now: float) -> None:
        """See whether there is another run, if the trainer of this one is silent.

        Raises:
            Abandoned: there is, and this one is not offered. A trainer that has started again is at the same address.

        """
        if silent_s < limits.ABANDONED_S:
            self._watch = None
            return
        if self._watch is None or now - self._watch.begun_s >= limits.LISTEN_EVERY_S:
            self._watch = OfferWatch(self._listen, now)
        offers = self._watch.offers
        if offers and all(offer.coordinator != own.coordinator for offer in offers):
            raise Abandoned


def serve_runs(place: Place, serve: Callable[..., Exit], *, say: Say, overseer: Overseer = NOBODY) -> Exit:
    """Take part in whatever run there is, by `serve`, until it is asked to go (`zswarm.signals`); ends with a failure of `serve`, too.

    `serve` is given the trainer's address as `coordinator`, and an `overseer`; it, too, ends when it is asked to go.
    """
    avoided: dict[Offer, float] = {}
    within = Between(overseer, lambda: listen_for_offers(place, listen_s=limits.LISTEN_S))
    with signals_as(None, wake=lambda: None, overseer=overseer) as asked_to_go:
        while not asked_to_go() and (offer := seek(place, avoided=avoided, overseer=within)) is not None:
            say(f"takes part in {offer.name} ({offer.coordinator})")
            end = take_part(offer, serve, within)
            if end.code not in (0, REFUSED):
                return end
            wait_s = limits.AVOID_S if end.code == 0 else limits.REFUSED_S
            now = monotonic()
            avoided = {old: until_s for old, until_s in avoided.items() if until_s > now} | {offer: now + wait_s}
            say(f"no longer takes part in {offer.name}: {end.text}")
    return Exit(code=0, text=ASKED)


def take_part(offer: Offer, serve: Callable[..., Exit], within: Between) -> Exit:
    """Serve one run until it is over, or abandoned; in that case there is nobody to say farewell to."""
    within.offer = offer
    try:
        return serve(coordinator=offer.coordinator, overseer=within)
    except Abandoned:
        return Exit(code=0, text="its trainer is gone, and there is another run")
    finally:
        within.offer = None


def or_interrupted(serve: Callable[[], Exit]) -> Exit:
    """Serve, and tell an end in peace that somebody has asked for with Ctrl-C from others."""
    with signals_as(None, wake=lambda: None, overseer=NOBODY) as asked:
        end = serve()
    return Exit(code=INTERRUPTED, text=end.text) if end.code == 0 and asked.is_interrupted else end
