"""Where a newcomer goes, and who comes back.

Joining is frequent where leaving is, and a newcomer has to download some stage's state anyhow: to place it well costs
nothing, and does most of what a rebalancing by moves would have to do. Who was frozen or cut off has its old stage's
state, but meanwhile others may have taken its place, and another stage may be short of somebody.
"""

from __future__ import annotations

from statistics import median

from zswarm.ids import Stage
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import SwarmView

WORTH_A_DOWNLOAD = 0.5
"""By so much of what a worker does its own stage has to be faster than the slowest, or it goes back there: less may be due to
how speeds are measured."""


def place(view: SwarmView) -> Stage:
    """Return the stage where one more worker raises the throughput most: the slowest.

    However fast the newcomer is, no other stage does better, since the throughput is that of the slowest stage.
    Whoever is on the way to a stage counts there, so that several newcomers at once do not all go to one. Of equal
    stages it is the one with the fewest workers, of these the first.
    """
    rates = Rates.of(view, speeds_of(view))
    return Stage(min(range(len(view.stages)), key=lambda s: (rates.coming[s], rates.num_coming[s], s)))


def place_again(view: SwarmView, own: Stage, *, speed: float | None) -> Stage:
    """Return the stage of a worker that comes back, which is not in the view, with a state of stage `own` that others have, too.

    It is the slowest one if its own is faster by WORTH_A_DOWNLOAD. `speed`, in costs per second, is None if nobody knows it.
    """
    speeds = speeds_of(view)
    rates, slowest = Rates.of(view, speeds), place(view)
    rate = (median(speeds.values() or [1.0]) if speed is None else speed) / view.stages[own].cost
    return slowest if rates.coming[own] - rates.coming[slowest] > WORTH_A_DOWNLOAD * rate else own
