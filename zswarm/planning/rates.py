"""How fast the stages of a swarm are, as they are and as they will be, and how fast they could be at best."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from zswarm import limits
from zswarm.ids import Session
from zswarm.planning.view import SwarmView, WorkerView


def speeds_of(view: SwarmView) -> dict[Session, float]:
    """Return each worker's speed, in costs per second.

    Of whom nothing is known yet, the median of the others is assumed, and 1 where nothing is known of anybody. Nobody
    counts as more than MAX_SPEED_RATIO times faster or slower than the median: one wrong report must not make a stage
    look as if it needed nobody else.
    """
    known = {worker.session: _measured(view, worker) for worker in view.workers if worker.job_s > 0.0}
    middle = median(known.values()) if known else 1.0
    least, most = middle / limits.MAX_SPEED_RATIO, middle * limits.MAX_SPEED_RATIO
    return {w.session: min(max(known.get(w.session, middle), least), most) for w in view.workers}


def _measured(view: SwarmView, worker: WorkerView) -> float:
    stage = view.stages[worker.stage if worker.measured_in is None else worker.measured_in]
    return stage.cost / (worker.job_s * stage.jobs_per_microbatch)


@dataclass(slots=True, kw_only=True)
class Rates:
    """Of each stage, microbatches/s and numbers of workers: `ready` of those who compute, `coming` with those who will."""

    ready: list[float]
    coming: list[float]
    num_ready: list[int]
    num_coming: list[int]

    @classmethod
    def of(cls, view: SwarmView, speeds: dict[Session, float]) -> Rates:
        """Add up a view."""
        num_stages = len(view.stages)
        rates = cls(
            ready=[0.0] * num_stages,
            coming=[0.0] * num_stages,
            num_ready=[0] * num_stages,
            num_coming=[0] * num_stages,
        )
        for worker in view.workers:
            rate = speeds[worker.session] / view.stages[worker.stage].cost
            rates.coming[worker.stage] += rate
            rates.num_coming[worker.stage] += 1
            if worker.is_ready:
                rates.ready[worker.stage] += rate
                rates.num_ready[worker.stage] += 1
        return rates

    def copy(self) -> Rates:
        """Return one that can be changed by itself."""
        return Rates(
            ready=self.ready.copy(),
            coming=self.coming.copy(),
            num_ready=self.num_ready.copy(),
            num_coming=self.num_coming.copy(),
        )


def optimal_throughput(speeds: Sequence[float], costs: Sequence[float]) -> float:
    """Return the highest throughput that any assignment of workers to stages has, in microbatches/s.

    It is exact where all workers are of one speed: each worker in turn goes to the slowest stage, and no stage ever
    gets one more than it needs in the best assignment before all have what they need. Where speeds differ, it is the
    upper bound that workers which could be divided at will would reach: sum of speeds / sum of costs.
    """
    if len(speeds) < len(costs):
        return 0.0
    if min(speeds) < max(speeds):
        return sum(speeds) / sum(costs)
    stages = [(0.0, cost) for cost in costs]
    for _ in speeds:
        rate, cost = stages[0]
        heapq.heapreplace(stages, (rate + speeds[0] / cost, cost))
    return stages[0][0]
