"""What the coordinator of a simulated swarm knows, and how late: it has heartbeats, and nothing else.

joined      at once: a process registers
ready       with the heartbeat after the last byte
its speed   with the heartbeat after its first job in the stage; until then what it did in its last stage; it is
            a moving average of jobs of random length, drawn again for each plan
left        when it has been silent for SILENCE_HEARTBEATS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from random import Random

from zswarm import limits
from zswarm.ids import Session, Stage
from zswarm.planning.churn import Churn
from zswarm.planning.view import StageView, SwarmView, WorkerView
from zswarm.simulation.churn.setting import Setting
from zswarm.slots import maker

make_worker_view = maker(WorkerView)
NEWEST_SHARE = 0.1
"""Weight of the newest job in a worker's moving average."""


@dataclass(slots=True)
class Seen:
    """One worker as the coordinator knows it."""

    stage: Stage
    job_s: float
    """What a job takes it there."""
    ready_at_s: float = inf
    """When it is known to be ready."""
    measured_at_s: float = inf
    """When its speed is known from that stage."""
    before: tuple[float, Stage] | None = None
    """What a job took it, in the stage where it was before."""
    average_s: float = 0.0
    num_pending: int = 0
    view: WorkerView | None = None
    stale_at_s: float = -inf
    """From when on `view` is no longer right."""


class Observer:
    """See the module."""

    def __init__(self, setting: Setting, random: Random) -> None:
        self._setting = setting
        self._random = random
        self._seen: dict[Session, Seen] = {}
        self._gone: list[tuple[float, Session]] = []
        self._churn = Churn(0.0)
        self._deviation = setting.job_deviation * sqrt(NEWEST_SHARE / (2.0 - NEWEST_SHARE))

    def join(self, session: Session, stage: Stage, job_s: float, now: float) -> None:
        """Somebody has registered."""
        self._seen[session] = Seen(stage, job_s)
        self._churn.join(now, is_newcomer=now > 0.0)

    def ready(self, session: Session, now: float) -> None:
        """Somebody holds its stage's parameters."""
        seen = self._seen[session]
        seen.ready_at_s = now + self._setting.heartbeat_s
        seen.measured_at_s = seen.ready_at_s + seen.job_s
        seen.stale_at_s = now

    def move(self, session: Session, stage: Stage, job_s: float, now: float) -> None:
        """Somebody goes to another stage, as it was told to."""
        seen = self._seen[session]
        before = (seen.average_s, seen.stage) if seen.measured_at_s <= now else seen.before
        self._seen[session] = Seen(stage, job_s, before=before)

    def leave(self, session: Session, now: float) -> None:
        """Somebody is gone."""
        self._gone.append((now + limits.SILENCE_HEARTBEATS * self._setting.heartbeat_s, session))

    def measure(self, now: float, utilisations: Sequence[float]) -> None:
        """Let everybody report anew: moving averages, and what they hold, being so busy as their stage is."""
        deviation, random = self._deviation, self._random
        for seen in self._seen.values():
            if seen.measured_at_s <= now:
                seen.average_s = seen.job_s * max(1.0 + deviation * random.gauss(0.0, 1.0), 0.1)
            if seen.ready_at_s <= now:
                seen.num_pending = int(utilisations[seen.stage] * limits.PREFETCH + random.random())
            seen.stale_at_s = now

    def view(self, now: float, *, waiting: Sequence[int]) -> SwarmView:
        """Return what the coordinator knows; how many jobs wait in each stage, it is told."""
        self._notice(now)
        setting = self._setting
        return SwarmView(
            workers=tuple(
                seen.view if now < seen.stale_at_s and seen.view is not None else _viewed(session, seen, now)
                for session, seen in self._seen.items()
            ),
            stages=tuple(
                StageView(cost=cost, state_bytes=round(setting.state_bytes), num_queued=queued)
                for cost, queued in zip(setting.costs, waiting, strict=True)
            ),
            bandwidth_bytes_per_s=setting.bandwidth_bytes_per_s,
            residence_s=self._churn.residence_s(now),
            join_every_s=self._churn.join_every_s(now),
        )

    def _notice(self, now: float) -> None:
        while self._gone and self._gone[0][0] <= now:
            _, session = self._gone.pop(0)
            del self._seen[session]
            self._churn.leave(now)


def _viewed(session: Session, seen: Seen, now: float) -> WorkerView:
    """Make a worker's view, and keep it for as long as it stays the same."""
    job_s, measured_in = seen.before or (0.0, None)
    if seen.measured_at_s <= now and seen.average_s > 0.0:
        job_s, measured_in = seen.average_s, None
    seen.view = make_worker_view(
        session=session,
        stage=seen.stage,
        is_ready=seen.ready_at_s <= now,
        job_s=job_s,
        measured_in=measured_in,
        num_pending=seen.num_pending,
    )
    seen.stale_at_s = min((at_s for at_s in (seen.ready_at_s, seen.measured_at_s) if at_s > now), default=inf)
    return seen.view
