"""Which worker shall be where: the coordinator's knowledge as a planner's view, and what a planner makes of it.

    newcomer, once the run trains    the slowest stage (`zswarm/planning/placement.py`)
    who comes back with a state      its own stage, or the slowest if its own can do without it
    a step is committed              every so often the planner says who moves (`moves.py`), for the first time after a period

Speeds come from reports; what a node has shown in a stage before is remembered until it has done a job where it is
now. How long it takes to get a stage's state is learned from those who have got it, from their first report to the first in
which they are ready. Who is away for a moment only, fenced or moved, neither leaves nor joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zswarm import limits
from zswarm.ids import Leaving, NodeId, Role, Session, Stage, Step
from zswarm.messages import Register
from zswarm.planning.churn import Churn
from zswarm.planning.placement import place, place_again
from zswarm.planning.planners import planner_named
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import Move, Reason, StageView, SwarmView, WorkerView
from zswarm.trainer.commit import Committer
from zswarm.trainer.moves import Moves
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings

NEWEST_SHARE = 0.3
"""Weight of the newest download in what is known of the bandwidth."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a node has shown: seconds per job in a stage, or nothing yet."""

    job_s: float = 0.0
    stage: Stage | None = None


UNKNOWN = Known()


@dataclass(frozen=True, slots=True)
class Away:
    """A worker between the end of one life and the beginning of the next."""

    session: Session
    until_s: float
    """When it is not expected any more."""
    stage: Stage | None
    """Where it is expected; None if nobody has moved it."""


class Lost(NamedTuple):
    """A worker that was given up, of which nobody has asked that it go."""

    at_s: float
    session: Session
    stage: Stage


class Rebalancer:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, committer: Committer, moves: Moves) -> None:
        self._settings = settings
        self._roster = roster
        self._committer = committer
        self._moves = moves
        self._planner = planner_named(settings.rebalancing, period_s=settings.rebalance_every_s)
        self._churn: Churn | None = None
        self._known: dict[NodeId, Known] = {}
        self._away: dict[NodeId, Away] = {}
        self._lost: dict[NodeId, Lost] = {}
        """Those of late that have not come back."""
        self._last_loss_s = float("-inf")
        self._loading_since_s: dict[Session, float | None] = {}
        """Of newcomers; None for those who have not reported yet."""
        self._bandwidth_bytes_per_s = limits.FIRST_BANDWIDTH_BYTES_PER_S
        self._first_plan_s = float("inf")
        self._first_commit: tuple[float, Step] | None = None

    # -- what happens --------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """The run trains: who joins from now on is a newcomer. The first jobs of all say little of their speed."""
        self._first_plan_s = now + self._settings.rebalance_every_s
        self._churn = Churn(now)
        for _ in self._roster.workers():
            self._churn.join(now, is_newcomer=False)

    def joined(self, record: Record, now: float) -> None:
        """A worker has registered."""
        if self._churn is None:
            return
        self._lost.pop(record.node, None)
        self._loading_since_s[record.session] = None
        if self._away.pop(record.node, None) is None:
            self._churn.join(now)

    def reported(self, record: Record, now: float) -> None:
        """A worker has reported: while it is not ready it loads, unless parameters are made and not given."""
        if record.session not in self._loading_since_s:
            return
        since_s = self._loading_since_s[record.session]
        if not record.is_ready:
            if since_s is None and self._committer.step > 0:
                self._loading_since_s[record.session] = now
            return
        del self._loading_since_s[record.session]
        if since_s is not None and now > since_s:
            found = self._settings.state_bytes[record.stage] / (now - since_s)
            self._bandwidth_bytes_per_s += NEWEST_SHARE * (found - self._bandwidth_bytes_per_s)

    def left(self, record: Record, now: float, *, to: Stage | None = None, is_loss: bool) -> None:
        """A worker is out, perhaps on its way to another stage; `is_loss`: though nobody wanted that."""
        self._loading_since_s.pop(record.session, None)
        if record.job_s > 0.0:
            self._known.pop(record.node, None)
            self._known[record.node] = Known(record.job_s, record.stage)
            if len(self._known) > limits.MAX_ENDED_NODES:
                del self._known[next(iter(self._known))]
        if self._churn is not None:
            until_s = now + limits.TRAVEL_HEARTBEATS * self._settings.heartbeat_s
            self._away[record.node] = Away(record.session, until_s, to)
            if is_loss and to is None:
                self._last_loss_s = now
                self._lost[record.node] = Lost(now, record.session, record.stage)

    # -- what follows --------------------------------------------------------------------------------

    def place(self, message: Register, now: float) -> Stage | None:
        """Return where a worker belongs that begins a life; None as long as the run gathers, where each stage gets as many as
        the others."""
        if self._churn is None or message.role is not Role.WORKER:
            return None
        self._count_departures(self._churn, now)
        own = message.stage
        if own is None or own >= self._settings.num_stages:
            return place(self._view(self._churn, now))
        if self._settings.rebalancing == "none" or not self._is_safe(own, now):
            return own
        return place_again(self._view(self._churn, now, company=self._company(message.node, own)), own)

    def _is_safe(self, stage: Stage, now: float) -> bool:
        """Do others hold a stage's state, so many who are well that it outlives one of them?"""
        return self._num_well(stage, now) >= limits.SAFE_COPIES

    def _num_well(self, stage: Stage, now: float) -> int:
        """Return how many hold a stage's state who are well, and stay."""
        since_s = now - limits.QUIET_HEARTBEATS * self._settings.heartbeat_s
        heard = [record for record in self._roster.of(Role.WORKER, stage) if record.heard_at_s >= since_s]
        remaining = [record for record in heard if record.session not in self._moves.ordered]
        return sum(map(self._committer.keeps_state, remaining))

    def _least_ready(self, now: float) -> int:
        """Return how many of a stage have to stay."""
        return limits.SAFE_COPIES if now < self._last_loss_s + limits.LOSSES_REMEMBERED_S else 1

    def _order(self, move: Move, now: float) -> str:
        """Order a planned move; returns why that cannot be, "" if it can. Who is silent or hangs may be lost already."""
        if self._num_well(move.source, now) <= self._least_ready(now):
            return f"too few who are well hold the state of stage {move.source}"
        return self._moves.order(move.session, move.target)

    def _company(self, node: NodeId, own: Stage) -> list[WorkerView]:
        """Return those of other stages that were lost with a worker: what had cut it off is over for them, too."""
        if (lost := self._lost.get(node)) is None:
            return []
        within_s = limits.TOGETHER_HEARTBEATS * self._settings.heartbeat_s
        return [
            self._expected(other, one.session, one.stage)
            for other, one in self._lost.items()
            if one.stage != own and abs(one.at_s - lost.at_s) <= within_s
        ]

    def waiting(self, now: float) -> set[Stage]:
        """Return the stages that wait for a slower one, so that whoever works there has time for other things."""
        if self._churn is None:
            return set()
        view = self._view(self._churn, now)
        ready = Rates.of(view, speeds_of(view)).ready
        return {Stage(stage) for stage, rate in enumerate(ready) if rate > limits.WAITING_RATES * min(ready)}

    def committed(self, now: float) -> list[Append]:
        """Order the moves of a plan, if one is due; returns the line of the log that says so."""
        step, churn = self._committer.step, self._churn
        if self._first_commit is None or step < self._first_commit[1]:
            # Nobody knows yet how long the run will take.
            self._first_commit = (now, step)
            return []
        if churn is None or now < max(self._planner.next_plan_s, self._first_plan_s):
            return []
        self._count_departures(churn, now)
        decision = self._planner.plan(self._view(churn, now), now)
        if isinstance(decision, Reason):
            record = {"event": "plan", "step": step, "moves": 0, "reason": decision.text}
            return [] if decision.is_early else [Append(record=record)]
        problems = [self._order(move, now) for move in decision]
        return [Append(record=_plan_record(step, [problem for problem in problems if problem], len(problems)))]

    def _count_departures(self, churn: Churn, now: float) -> None:
        """Whoever has not come back is gone."""
        for node in [node for node, one in self._away.items() if one.until_s < now]:
            del self._away[node]
            churn.leave(now)
        since_s = now - limits.ABSENT_HEARTBEATS * self._settings.heartbeat_s
        self._lost = {node: one for node, one in self._lost.items() if one.at_s >= since_s}

    def _view(self, churn: Churn, now: float, *, company: Sequence[WorkerView] = ()) -> SwarmView:
        settings, roster, ordered = self._settings, self._roster, self._moves.ordered
        staying = (record for record in roster.workers() if record.leaving is Leaving.NO)
        workers = [self._worker(record, ordered.get(record.session, record.stage)) for record in staying]
        workers += [
            self._expected(node, one.session, one.stage) for node, one in self._away.items() if one.stage is not None
        ]
        last = settings.num_stages - 1
        return SwarmView(
            workers=tuple(sorted([*workers, *company], key=lambda worker: worker.session)),
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
            residence_s=min(churn.residence_s(now), self._left_s(now)),
            join_every_s=churn.join_every_s(now),
            least_ready=self._least_ready(now),
        )

    def _left_s(self, now: float) -> float:
        """Return how long the run will take yet, if its steps take as long as so far."""
        if self._first_commit is None:
            return float("inf")
        since_s, first = self._first_commit
        step = self._committer.step
        return (now - since_s) / (step - first) * (self._settings.steps - step) if step > first else float("inf")

    def _worker(self, record: Record, target: Stage) -> WorkerView:
        known = Known(record.job_s, record.stage) if record.job_s > 0.0 else self._known.get(record.node, UNKNOWN)
        return WorkerView(
            session=record.session,
            stage=target,
            is_ready=record.is_ready and target == record.stage,
            job_s=known.job_s,
            measured_in=known.stage,
            num_pending=record.pending.bit_count(),
        )

    def _expected(self, node: NodeId, session: Session, target: Stage) -> WorkerView:
        known = self._known.get(node, UNKNOWN)
        return WorkerView(session=session, stage=target, is_ready=False, job_s=known.job_s, measured_in=known.stage)


def _plan_record(step: Step, problems: list[str], num_moves: int) -> dict[str, Any]:
    text = "; ".join(problems)[: limits.MAX_TEXT_CHARS] if problems else "the slowest stage gets faster"
    return {"event": "plan", "step": step, "moves": num_moves - len(problems), "reason": text}
