"""A run of two stages as its coordinator sees it."""

from __future__ import annotations

from typing import Any

from tests.letters import RUN, SIZE_BYTES
from zswarm.ids import Generation, Session
from zswarm.trainer.settings import CoordinatorSettings


def settings(**changes: Any) -> CoordinatorSettings:
    """Return the settings of a run of 3 steps of 4 microbatches, one worker and broker per stage."""
    of: dict[str, Any] = {
        "run": RUN,
        "generation": Generation(1),
        "first_session": Session(1),
        "layers_per_stage": (1, 1),
        "steps": 3,
        "num_microbatches": 4,
        "num_targets": 4,
        "num_held_out": 0,
        "learning_rate": lambda step: 0.1 * (step + 1),
        "grad_clip": 0.0,
        "wiring": "queue",
        "window": 4,
        "unit_bytes": (SIZE_BYTES, SIZE_BYTES),
        "configuration": b"{}",
        "workers_per_stage": 1,
        "brokers_per_stage": 1,
        "heartbeat_s": 1.0,
        "silence_heartbeats": 10,
    }
    return CoordinatorSettings(**of | changes)
