"""Lines of the log that the coordinator writes of the run and of who leaves it."""

from __future__ import annotations

from typing import Any

from zswarm import ledger
from zswarm.ids import Role
from zswarm.trainer.roster import Record
from zswarm.trainer.settings import CoordinatorSettings


def start_record(settings: CoordinatorSettings) -> dict[str, Any]:
    """Return the line that says that a generation has begun, and of which run."""
    return {
        "event": "start",
        "run": f"{settings.run:016x}",
        "generation": settings.generation,
        "stages": settings.num_stages,
        "split": list(settings.layers_per_stage),
        "workers": [settings.workers_per_stage] * settings.num_stages,
        "brokers": [settings.brokers_per_stage] * settings.num_stages,
        "steps": settings.steps,
        "num_microbatches": settings.num_microbatches,
        "basis": settings.basis,
    }


def leave_record(
    record: Record, reason: str, *, num_lost: int, now: float, heir: Record | None = None
) -> dict[str, Any]:
    """Return the line that says who is out, why, and how many microbatches are to be done again for that.

    What of the worker's count is in the heir's copy is the heir's from here on.
    From the last report it is known how many a broker had in its queue, and how long a worker's jobs of all kinds took on
    average: `redone_s` is so many average jobs, in seconds of one worker's work. That is a lower estimate: what is done again
    is, but in the last stage, a backward that computes its forward anew, and takes up to twice the average job. Nor is it by
    how much the step is late: others do it, at their pace and side by side.
    """
    if record.role is Role.WORKER:
        cost: dict[str, Any] = {"redone_s": round(num_lost * record.job_s, 3)}
    else:
        cost = {"queued": record.pending.bit_count() + record.ahead.bit_count()}
    return {
        "event": "leave",
        "node": record.node,
        "role": record.role.value,
        "session": record.session,
        "stage": record.stage,
        "reason": reason,
        "lost": num_lost,
        "silent_s": round(now - record.heard_at_s, 3),
        **cost,
        **({"heir": heir.session, "left": list(ledger.members(heir.inherited))} if heir is not None else {}),
    }
