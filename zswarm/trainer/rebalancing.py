"""Which worker shall be where: the coordinator's knowledge as a planner's view, and what a planner makes of it.

    newcomer, once the run trains    the stage that it makes faster most (`zswarm.planning.place`)
    a step is committed              every so often the planner says who moves (`moves.py`)

Speeds come from reports; what a node has shown in a stage before is remembered until it has done a job where it is
now. How long it takes to get a stage's state is learned from those who have got it: from their Register to their first report
of being ready, with all that lies between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zswarm import limits
from zswarm.ids import Leaving, NodeId, Role, Session, Stage, Step
from zswarm.planning.churn import Churn
from zswarm.planning.placement import place
from zswarm.planning.planners import planner_named
from zswarm.planning.view import Move, StageView, SwarmView, WorkerView
from zswarm.trainer.moves import Moves
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import CoordinatorSettings

NEWEST_SHARE = 0.3
"""Weight of the newest download in what is known of the bandwidth."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a node has shown: seconds per job in a stage."""

    job_s: float
    stage: Stage


@dataclass(frozen=True, slots=True)
class Travelling:
    """A worker between the end of one life and the beginning of the next, in another stage."""

    session: Session
    stage: Stage
    until_s: float
    """When it is not expected any more."""


class Rebalancer:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, moves: Moves) -> None:
        self._settings = settings
        self._roster = roster
        self._moves = moves
        self._planner = planner_named(settings.rebalancing, period_s=settings.rebalance_every_s)
        self._churn: Churn | None = None
        self._known: dict[NodeId, Known] = {}
        self._travelling: dict[NodeId, Travelling] = {}
        self._loading_since_s: dict[Session, float] = {}
        self._bandwidth_bytes_per_s = limits.FIRST_BANDWIDTH_BYTES_PER_S
        self._first_commit: tuple[float, Step] | None = None

    # -- what happens --------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """The run trains: who joins from now on is a newcomer."""
        self._churn = Churn(now)
        for _ in self._roster.workers():
            self._churn.join(now, is_newcomer=False)

    def joined(self, record: Record, now: float) -> None:
        """A worker has registered."""
        if self._churn is None:
            return
        self._loading_since_s[record.session] = now
        if self._travelling.pop(record.node, None) is None:
            self._churn.join(now)

    def reported(self, record: Record, now: float) -> None:
        """A worker has said that it is ready, perhaps for the first time."""
        since_s = self._loading_since_s.get(record.session)
        if since_s is None or not record.is_ready:
            return
        del self._loading_since_s[record.session]
        if now > since_s:
            found = self._settings.state_bytes[record.stage] / (now - since_s)
            self._bandwidth_bytes_per_s += NEWEST_SHARE * (found - self._bandwidth_bytes_per_s)

    def left(self, record: Record, now: float, *, to: Stage | None = None) -> None:
        """A worker is out, or on its way to another stage."""
        self._loading_since_s.pop(record.session, None)
        if record.job_s > 0.0:
            self._known.pop(record.node, None)
            self._known[record.node] = Known(record.job_s, record.stage)
            if len(self._known) > limits.MAX_ENDED_NODES:
                del self._known[next(iter(self._known))]
        if to is not None:
            until_s = now + limits.TRAVEL_HEARTBEATS * self._settings.heartbeat_s
            self._travelling[record.node] = Travelling(record.session, to, until_s)
        elif self._churn is not None:
            self._churn.leave(now)

    # -- what follows --------------------------------------------------------------------------------

    def place(self, now: float) -> Stage | None:
        """Return where a newcomer belongs; None as long as the run gathers, where each stage gets as many as the others."""
        return place(self._view(now)) if self._churn is not None else None

    def committed(self, step: Step, now: float) -> dict[str, Any] | None:
        """Order the moves of a plan, if one is due; returns the line of the log that says so."""
        if self._first_commit is None or step < self._first_commit[1]:
            self._first_commit = (now, step)
        if self._churn is None or now < self._planner.next_plan_s:
            return None
        decision = self._planner.plan(self._view(now), now)
        if not isinstance(decision, list):
            return {"event": "plan", "step": step, "moves": 0, "reason": decision.text}
        problems = [self._moves.order(move.session, move.target) for move in decision]
        return _plan_record(step, decision, [problem for problem in problems if problem])

    def _view(self, now: float) -> SwarmView:
        assert self._churn is not None
        settings, roster, ordered = self._settings, self._roster, self._moves.ordered
        for node in [node for node, one in self._travelling.items() if one.until_s < now]:
            del self._travelling[node]
            self._churn.leave(now)
        staying = (record for record in roster.workers() if record.leaving is Leaving.NO)
        workers = [self._worker(record, ordered.get(record.session, record.stage)) for record in staying]
        workers += [self._traveller(node, one) for node, one in self._travelling.items()]
        last = settings.num_stages - 1
        return SwarmView(
            workers=tuple(sorted(workers, key=lambda worker: worker.session)),
            stages=tuple(
                StageView(
                    cost=settings.stage_costs[stage],
                    state_bytes=settings.state_bytes[stage],
                    jobs_per_microbatch=1 if stage == last else 2,
                    num_queued=sum(b.pending.bit_count() for b in roster.of(Role.BROKER, Stage(stage))),
                )
                for stage in range(settings.num_stages)
            ),
            bandwidth_bytes_per_s=self._bandwidth_bytes_per_s,
            residence_s=min(self._churn.residence_s(now), self._left_s(now)),
            join_every_s=self._churn.join_every_s(now),
        )

    def _left_s(self, now: float) -> float:
        """Return how long the run will take yet, if its steps take as long as so far."""
        if self._first_commit is None:
            return float("inf")
        since_s, first = self._first_commit
        step = self._moves.step
        return (now - since_s) / (step - first) * (self._settings.steps - step) if step > first else float("inf")

    def _worker(self, record: Record, target: Stage) -> WorkerView:
        known = Known(record.job_s, record.stage) if record.job_s > 0.0 else self._known.get(record.node)
        return WorkerView(
            session=record.session,
            stage=target,
            is_ready=record.is_ready and target == record.stage,
            job_s=known.job_s if known is not None else 0.0,
            measured_in=known.stage if known is not None else None,
            num_pending=record.pending.bit_count(),
        )

    def _traveller(self, node: NodeId, one: Travelling) -> WorkerView:
        known = self._known.get(node)
        return WorkerView(
            session=one.session,
            stage=one.stage,
            is_ready=False,
            job_s=known.job_s if known is not None else 0.0,
            measured_in=known.stage if known is not None else None,
        )


def _plan_record(step: Step, decision: list[Move], problems: list[str]) -> dict[str, Any]:
    text = "the slowest stage gets faster" if not problems else "; ".join(problems)[: limits.MAX_TEXT_CHARS]
    return {"event": "plan", "step": step, "moves": len(decision) - len(problems), "reason": text}
