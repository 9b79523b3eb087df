"""The planners by the names that a run file may give them."""

from __future__ import annotations

from typing import Literal

from zswarm.planning.priced import PricedPlanner
from zswarm.planning.published import Algorithm2, NoMoves
from zswarm.planning.view import Planner

Rebalancing = Literal["priced", "published", "none"]


def planner_named(name: Rebalancing, *, period_s: float) -> Planner:
    """Return the planner that `pipeline.rebalancing` names, which plans once per period."""
    if name == "priced":
        return PricedPlanner(period_s=period_s)
    return Algorithm2(period_s=period_s) if name == "published" else NoMoves()
