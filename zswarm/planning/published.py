"""The planners to compare with: nobody ever moves, and Algorithm 2 of the SWARM paper."""

from __future__ import annotations

from math import inf

from zswarm.ids import Stage
from zswarm.planning.view import Move, Period, Reason, SwarmView


class NoMoves:
    """Nobody ever moves."""

    next_plan_s = inf

    def plan(self, view: SwarmView, now: float) -> list[Move] | Reason:  # noqa: ARG002
        """Return that."""
        return Reason("rebalancing is off")


class Algorithm2:
    """Algorithm 2 of Ryabinin et al., 2023, "Adaptive rebalancing for SWARM parallelism".

    There every peer i runs it, over a table that all can read. Its steps in the order of the listing, with the paper's
    names, and where they are here:

    1. sleep for T                                                     `period_s`; the first time, too
    2. measure the size q_i of the own queue of requests, publish it   `num_pending`
    3. for each stage s: L := sum of q_j over the peers j of s         `num_queued`
    4. s_max := the first stage with the largest L, s_min := the first with the smallest
    5. a peer of s_min which has the smallest q_i there ...            of equals the one that has been in for longest
    6. ... goes to s_max, and downloads parameters and statistics from its peers there

    In step 3 all that waits in a stage waits at one of its peers; here most of it waits at the stage's brokers. In step
    5, as printed, each of several peers with equal queues takes itself for the smallest and goes; the paper says that
    one peer moves per period, and so it is here. What the listing lacks is lacking here, too: a stage may lose its last
    worker, two stages with nearly equal loads exchange workers for ever, and how fast anybody is does not matter.
    """

    def __init__(self, *, period_s: float) -> None:
        self._period = Period(period_s, sleeps_first=True)

    @property
    def next_plan_s(self) -> float:
        """When T is over."""
        return self._period.next_s

    def plan(self, view: SwarmView, now: float) -> list[Move] | Reason:
        """Return one move, or why there is none."""
        if (not_yet := self._period.not_yet(now)) is not None:
            return not_yet
        loads = [stage.num_queued for stage in view.stages]
        s_max, s_min = Stage(loads.index(max(loads))), Stage(loads.index(min(loads)))
        if s_max == s_min:
            return Reason("all stages have the same load")
        peers = [worker for worker in view.workers if worker.stage == s_min and worker.is_ready]
        if not peers:
            return Reason(f"stage {s_min} has the smallest load and nobody who could leave it")
        least = min(peers, key=lambda peer: peer.num_pending)
        return [Move(session=least.session, source=s_min, target=s_max)]
