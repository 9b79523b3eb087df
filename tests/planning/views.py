"""Views for tests: a swarm written as the speeds of each stage's workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from zswarm.ids import Session, Stage
from zswarm.planning.rates import Rates, speeds_of
from zswarm.planning.view import Move, StageView, SwarmView, WorkerView


def view_of(
    *stages: Sequence[float],
    costs: Sequence[float] = (),
    download_s: float = 1.0,
    residence_s: float = 3600.0,
    join_every_s: float = inf,
    queued: Sequence[int] = (),
) -> SwarmView:
    """Return a view of workers that are all ready and measured; sessions count from 1, stage by stage."""
    costs = costs or [1.0] * len(stages)
    queued = queued or [0] * len(stages)
    workers = [(Stage(stage), speed) for stage, speeds in enumerate(stages) for speed in speeds]
    return SwarmView(
        workers=tuple(
            WorkerView(
                session=Session(number),
                stage=stage,
                is_ready=True,
                job_s=costs[stage] / (2.0 * speed) if speed else 0.0,
            )
            for number, (stage, speed) in enumerate(workers, start=1)
        ),
        stages=tuple(
            StageView(cost=cost, state_bytes=1000, num_queued=num) for cost, num in zip(costs, queued, strict=True)
        ),
        bandwidth_bytes_per_s=1000 / download_s,
        residence_s=residence_s,
        join_every_s=join_every_s,
    )


def changed(view: SwarmView, session: int, **changes: object) -> SwarmView:
    """Return a view in which one worker is another one."""
    return replace(
        view,
        workers=tuple(replace(w, **changes) if w.session == session else w for w in view.workers),  # type: ignore[arg-type]
    )


def carried_out(view: SwarmView, moves: list[Move]) -> SwarmView:
    """Return the view when everybody has arrived, and has been measured there."""
    for move in moves:
        worker = next(worker for worker in view.workers if worker.session == move.session)
        assert (worker.stage, worker.is_ready) == (move.source, True)
        assert move.target != move.source
        job_s = worker.job_s * view.stages[move.target].cost / view.stages[move.source].cost
        view = changed(view, move.session, stage=move.target, job_s=job_s)
    return view


def rates_of(view: SwarmView) -> list[float]:
    """Return each stage's microbatches/s when everybody is ready."""
    return Rates.of(view, speeds_of(view)).coming


def sizes_of(view: SwarmView) -> list[int]:
    """Return the number of workers of each stage."""
    return [sum(worker.stage == stage for worker in view.workers) for stage in range(len(view.stages))]
