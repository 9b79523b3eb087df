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
from typing import Self

from zswarm import limits
from zswarm.beacon.service import Place, Say, overhear, seek
from zswarm.errors import REFUSED
from zswarm.machine import ASKED, Exit, Health
from zswarm.messages import Offer
from zswarm.overseer import NOBODY, Overseer
from zswarm.signals import signals_as
from zswarm.transport import Switchboard


class Abandoned(Exception):
    """Nobody offers this run any more, and somebody offers another one."""


class Lookout:
    """Looks round in a thread of its own, as long as it is entered, whether a run is still offered."""

    def __init__(self, offer: Offer, listen: Callable[[], Collection[Offer]]) -> None:
        self._offer = offer
        self._listen = listen
        self._is_over = threading.Event()
        self._num_missed = 0
        self.is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(limits.LOOK_ROUND_S) and not self.is_abandoned:
            self.note(self._listen())

    def note(self, offers: Collection[Offer]) -> None:
        """Draw the conclusion from one look; a trainer that has started again is at the same address."""
        is_offered = any(offer.coordinator == self._offer.coordinator for offer in offers)
        self._num_missed = self._num_missed + 1 if offers and not is_offered else 0
        self.is_abandoned = self._num_missed >= limits.ABANDONED_LOOKS


class _Between(Overseer):
    """Passes on how a run goes, and not that it ends: the process goes on. Ends a run that is abandoned."""

    def __init__(self, overseer: Overseer) -> None:
        self._overseer = overseer
        self.ends_us = overseer.ends_us
        self.lookout: Lookout | None = None

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:
        self._overseer.begin(switchboard, health)

    def turned(self) -> None:
        self._overseer.turned()
        if self.lookout is not None and self.lookout.is_abandoned:
            raise Abandoned


def serve_runs(place: Place, serve: Callable[..., Exit], *, say: Say, overseer: Overseer = NOBODY) -> Exit:
    """Take part in whatever run there is, by `serve`, until SIGTERM; ends with a failure of `serve`, too.

    `serve` is given the trainer's address as `coordinator`, and an `overseer`; it, too, ends at SIGTERM.
    """
    avoided: dict[Offer, float] = {}
    within = _Between(overseer)
    with signals_as(None, wake=lambda: None, overseer=overseer) as asked_to_go:
        while not asked_to_go() and (offer := seek(place, avoided=avoided, overseer=within)) is not None:
            say(f"takes part in {offer.name} ({offer.coordinator})")
            end = _take_part(offer, serve, within, lambda: overhear(place, within_s=limits.LISTEN_S))
            if end.code not in (0, REFUSED):
                return end
            wait_s = limits.AVOID_S if end.code == 0 else limits.REFUSED_S
            now = monotonic()
            avoided = {old: until_s for old, until_s in avoided.items() if until_s > now} | {offer: now + wait_s}
            say(f"no longer takes part in {offer.name}: {end.text}")
    return Exit(code=0, text=ASKED)


def _take_part(
    offer: Offer, serve: Callable[..., Exit], within: _Between, listen: Callable[[], Collection[Offer]]
) -> Exit:
    """Serve one run until it is over, or abandoned; in that case there is nobody to say farewell to."""
    with Lookout(offer, listen) as lookout:
        try:
            within.lookout = lookout
            return serve(coordinator=offer.coordinator, overseer=within)
        except Abandoned:
            return Exit(code=0, text="its trainer is gone, and there is another run")
        finally:
            within.lookout = None
