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
from zswarm.lifeline import Lifeline
from zswarm.machine import Exit
from zswarm.messages import Offer
from zswarm.sigterm import sigterm_as


def serve_runs(place: Place, serve: Callable[..., Exit], *, say: Say, lifeline: Lifeline | None = None) -> Exit:
    """Take part in whatever run there is, by `serve`, until SIGTERM; ends with a failure of `serve`, too.

    `serve` is given the trainer's address as `coordinator`; it, too, ends at SIGTERM.
    """
    avoided: dict[Offer, float] = {}
    with sigterm_as(None, wake=lambda: None, is_child=False) as asked_to_go:
        while not asked_to_go and (offer := seek(place, avoided=avoided, lifeline=lifeline)) is not None:
            say(f"takes part in {offer.name} ({offer.coordinator})")
            end = serve(coordinator=offer.coordinator)
            if end.code not in (0, REFUSED):
                return end
            wait_s = limits.AVOID_S if end.code == 0 else limits.REFUSED_S
            now = monotonic()
            avoided = {old: until_s for old, until_s in avoided.items() if until_s > now} | {offer: now + wait_s}
            say(f"no longer takes part in {offer.name}: {end.text}")
    return Exit(code=0, text="asked to go")
