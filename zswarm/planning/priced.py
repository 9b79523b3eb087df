"""Our planner: moves that are worth what they cost.

    rates     74  76  78  75      the slowest stage decides: 74 microbatches/s
    move  1   75  76  77  75      from wherever leaves most, to the slowest
    move  2   76  76  76  75      (a stage that has given does not get, nor the other way round)
    ...                           until no move raises the slowest stage

Of this sequence it takes the beginning which is worth most: what the higher throughput brings for as long as a worker
is expected to stay, after the download, less what is lost while those who move compute nothing. A swarm often needs
several moves before its throughput is any higher, when two stages are equally slow; so it is the beginning as a whole
that is priced, and that has to raise the throughput by more than the hysteresis.

Nobody moves whose speed is unknown, who is not ready, or who would leave fewer who are ready than a stage has to keep.
Planning again after each plan has been carried out ends: each plan raises the throughput to be, and there are only so
many assignments.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from zswarm.ids import Session, Stage
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import Move, Period, Reason, SwarmView

HYSTERESIS = 0.01
"""Part by which a plan must raise the throughput. A moving average of seconds per job is off by some percent, the sum
of a stage's workers by less; and nobody misses one worker in a hundred."""
PERIOD_S = 60.0
"""The paper's shorter one; half of it moves more and reaches the same."""
EPSILON = 1e-9
"""Relative difference below which two rates are the same: sums round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Some moves, and what they would change."""

    moves: tuple[Move, ...]
    throughput: float
    """When all have arrived."""
    worth: float
    """Microbatches that they bring more than they cost."""


class PricedPlanner:
    """See the module."""

    def __init__(self, *, period_s: float = PERIOD_S, hysteresis: float = HYSTERESIS) -> None:
        self._period = Period(period_s)
        self._hysteresis = hysteresis

    @property
    def next_plan_s(self) -> float:
        """When the period is over."""
        return self._period.next_s

    def plan(self, view: SwarmView, now: float) -> list[Move] | Reason:
        """Return moves that are independent of each other: none of them waits for another one."""
        if (not_yet := self._period.not_yet(now)) is not None:
            return not_yet
        speeds = speeds_of(view)
        before = Rates.of(view, speeds)
        plans = _plans(view, speeds, before)
        if not plans:
            return Reason("no move makes the slowest stage faster")
        least = min(before.coming) * (1.0 + self._hysteresis)
        enough = [plan for plan in plans if plan.throughput > least]
        if not enough:
            best = max(plan.throughput for plan in plans)
            return Reason(f"moves would bring {_change(min(before.coming), best)}, less than the hysteresis")
        dearest = max(enough, key=lambda plan: plan.worth)
        if dearest.worth <= 0.0:
            gain = _change(min(before.coming), dearest.throughput)
            return Reason(f"moves would bring {gain}, less than their downloads cost")
        return list(dearest.moves)


def _change(before: float, after: float) -> str:
    return f"{after / before - 1.0:+.2%}" if before > 0.0 else "a throughput where there is none"


def _plans(view: SwarmView, speeds: dict[Session, float], before: Rates) -> list[Plan]:
    """Return each beginning of the sequence of moves."""
    movable = _movable(view, speeds)
    after = before.copy()
    moves: list[Move] = []
    plans = []
    speed = 0.0
    while (move := _next_move(view, after, movable, moves)) is not None:
        _carry_out(after, move, speeds[move.session], view)
        movable[move.source].remove((speeds[move.session], move.session))
        moves.append(move)
        speed += speeds[move.session]
        worth = _worth(view, moves, before, after, speed)
        plans.append(Plan(moves=tuple(moves), throughput=min(after.coming), worth=worth))
    return plans


def _movable(view: SwarmView, speeds: dict[Session, float]) -> list[list[tuple[float, Session]]]:
    """Return per stage those who may move, the slowest first."""
    movable: list[list[tuple[float, Session]]] = [[] for _ in view.stages]
    for worker in view.workers:
        if worker.is_ready and worker.job_s > 0.0:
            movable[worker.stage].append((speeds[worker.session], worker.session))
    for candidates in movable:
        candidates.sort()
    return movable


def _next_move(
    view: SwarmView, rates: Rates, movable: list[list[tuple[float, Session]]], moves: list[Move]
) -> Move | None:
    """Return the move to the slowest stage that makes the slower of both its stages as fast as it can be.

    None if it would not be faster than the slowest is now.
    """
    target = min(range(len(view.stages)), key=lambda stage: rates.coming[stage])
    gave, got = {move.source for move in moves}, {move.target for move in moves}
    if target in gave:
        return None
    best: tuple[float, float, int] | None = None
    found: Move | None = None
    for source, candidates in enumerate(movable):
        if source == target or source in got or rates.num_ready[source] <= view.least_ready:
            continue
        surplus = rates.coming[source] - rates.coming[target]
        even = surplus / (1.0 / view.stages[source].cost + 1.0 / view.stages[target].cost)
        middle = bisect_left(candidates, (even, Session(0)))
        for speed, session in candidates[max(middle - 1, 0) : middle + 1]:
            left = rates.coming[source] - speed / view.stages[source].cost
            raised = rates.coming[target] + speed / view.stages[target].cost
            merit = (min(left, raised), left, -session)
            if best is None or merit > best:
                best = merit
                found = Move(session=session, source=Stage(source), target=Stage(target))
    return found if best is not None and best[0] > rates.coming[target] * (1.0 + EPSILON) else None


def _carry_out(rates: Rates, move: Move, speed: float, view: SwarmView) -> None:
    """Change the rates to those while the worker is on its way."""
    left = speed / view.stages[move.source].cost
    rates.coming[move.source] -= left
    rates.ready[move.source] -= left
    rates.num_coming[move.source] -= 1
    rates.num_ready[move.source] -= 1
    rates.coming[move.target] += speed / view.stages[move.target].cost
    rates.num_coming[move.target] += 1


def _worth(view: SwarmView, moves: list[Move], before: Rates, after: Rates, speed: float) -> float:
    """Return the microbatches that moves bring more than they cost; `speed` is that of all who move together.

    Newcomers go to the slowest stage, too, so what n moves bring, n newcomers would bring later: one after the other,
    and each of them has to download as well. The gain lasts until they would be here, in the mean over n of them, but
    no longer than those who have moved stay. The cost is the throughput that is lost during the download, or, if those
    who leave are not missed, their part of the work that the whole swarm could do: they might be missed meanwhile.
    """
    download_s = max(_download_s(view, after, target) for target in {move.target for move in moves})
    lasts_s = min(view.residence_s - download_s, view.join_every_s * (len(moves) + 1) / 2.0)
    gain = (min(after.coming) - min(before.coming)) * max(lasts_s, 0.0)
    part = speed / sum(stage.cost for stage in view.stages)
    return gain - max(min(before.ready) - min(after.ready), part) * download_s


def _download_s(view: SwarmView, rates: Rates, target: Stage) -> float:
    """Return how long the stage's state takes to all who are on their way to it; its workers share their uplinks.

    Where nobody is ready, the trainer gives it.
    """
    num_givers = max(rates.num_ready[target], 1)
    num_takers = rates.num_coming[target] - rates.num_ready[target]
    return view.stages[target].state_bytes / view.bandwidth_bytes_per_s * max(num_takers / num_givers, 1.0)
