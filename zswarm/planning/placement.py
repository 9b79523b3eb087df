"""Where a newcomer goes.

Joining is frequent where leaving is, and a newcomer has to download some stage's state anyhow: to place it well costs
nothing, and does most of what a rebalancing by moves would have to do.
"""

from __future__ import annotations

from zswarm.ids import Stage
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import SwarmView


def place(view: SwarmView) -> Stage:
    """Return the stage where one more worker raises the throughput most: the slowest.

    However fast the newcomer is, no other stage does better, since the throughput is that of the slowest stage.
    Whoever is on the way to a stage counts there, so that several newcomers at once do not all go to one. Of equal
    stages it is the one with the fewest workers, of these the first.
    """
    rates = Rates.of(view, speeds_of(view))
    return Stage(min(range(len(view.stages)), key=lambda s: (rates.coming[s], rates.num_coming[s], s)))
