"""Where a newcomer goes, and who comes back.

Joining is frequent where leaving is, and a newcomer has to download some stage's state anyhow: to place it well costs
nothing, and does most of what a rebalancing by moves would have to do. Who was frozen or cut off has its old stage's
state, but meanwhile others may have taken its place, and another stage may be short of somebody.
"""

from __future__ import annotations

from zswarm.ids import Stage
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import SwarmView

WORTH_A_DOWNLOAD = 0.5
"""By so much of a worker's share, on average, its own stage has to be faster than the slowest, or it goes back there, ..."""
UNSURE = 0.1
"""... and by so much of the slowest's rate: so far two stages may seem to be apart that are not, as speeds are measured."""


def place(view: SwarmView) -> Stage:
    """Return the stage where one more worker raises the throughput most: the slowest.

    However fast the newcomer is, no other stage does better, since the throughput is that of the slowest stage.
    Whoever is on the way to a stage counts there, so that several newcomers at once do not all go to one. Of equal
    stages it is the one with the fewest workers, of these the first.
    """
    rates = Rates.of(view, speeds_of(view))
    return Stage(min(range(len(view.stages)), key=lambda s: (rates.coming[s], rates.num_coming[s], s)))


def place_again(view: SwarmView, own: Stage) -> Stage:
    """Return the stage of a worker that comes back, which is not in the view, with a state of stage `own` that others have, too.

    It is the slowest one if its own is faster without it, by those who are ready there.
    """
    rates, slowest = Rates.of(view, speeds_of(view)), place(view)
    if not rates.num_ready[own]:
        return own
    share = rates.ready[own] / rates.num_ready[own]
    margin = WORTH_A_DOWNLOAD * share + UNSURE * rates.coming[slowest]
    return slowest if rates.ready[own] > rates.coming[slowest] + margin else own
