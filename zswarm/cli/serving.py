r"""One run after the other: how a broker or worker whose trainer nobody has named spends its time.

idle: asks beacons for a run --> takes part until it is over --> idle
                             \--> is refused: this run is left alone for a while --> idle
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from zswarm import limits
from zswarm.beacon.service import Place, Say, seek
from zswarm.errors import REFUSED
from zswarm.machine import ASKED, Exit, Health
from zswarm.messages import Offer
from zswarm.overseer import NOBODY, Overseer
from zswarm.sigterm import sigterm_as
from zswarm.transport import Switchboard


class _Between(Overseer):
    """Passes on how a run goes, and not that it ends: the process goes on."""

    def __init__(self, overseer: Overseer) -> None:
        self._overseer = overseer
        self.ends_us = overseer.ends_us

    def begin(self, switchboard: Switchboard, health: Callable[[float], Health]) -> None:
        self._overseer.begin(switchboard, health)

    def turned(self) -> None:
        self._overseer.turned()


def serve_runs(place: Place, serve: Callable[..., Exit], *, say: Say, overseer: Overseer = NOBODY) -> Exit:
    """Take part in whatever run there is, by `serve`, until SIGTERM; ends with a failure of `serve`, too.

    `serve` is given the trainer's address as `coordinator`, and an `overseer`; it, too, ends at SIGTERM.
    """
    avoided: dict[Offer, float] = {}
    within = _Between(overseer)
    with sigterm_as(None, wake=lambda: None, overseer=overseer) as asked_to_go:
        while not asked_to_go() and (offer := seek(place, avoided=avoided, overseer=within)) is not None:
            say(f"takes part in {offer.name} ({offer.coordinator})")
            end = serve(coordinator=offer.coordinator, overseer=within)
            if end.code not in (0, REFUSED):
                return end
            wait_s = limits.AVOID_S if end.code == 0 else limits.REFUSED_S
            now = monotonic()
            avoided = {old: until_s for old, until_s in avoided.items() if until_s > now} | {offer: now + wait_s}
            say(f"no longer takes part in {offer.name}: {end.text}")
    return Exit(code=0, text=ASKED)
