"""A run of two stages as its coordinator sees it, and what an earlier generation of its trainer has left."""

from __future__ import annotations

from typing import Any

from tests.letters import RUN, SIZE_BYTES
from zswarm.ids import Address, Branch, Generation, NodeId, Role, Session, Stage, Step
from zswarm.trainer.recovery import Recovered, RecoveredMember
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
        "rebalancing": "none",
        "configuration": b"{}",
        "basis": "as before",
        "workers_per_stage": 1,
        "brokers_per_stage": 1,
        "heartbeat_s": 1.0,
    }
    of |= changes
    num_stages = len(of["layers_per_stage"])
    return CoordinatorSettings(**{"stage_costs": (1.0,) * num_stages, "state_bytes": (SIZE_BYTES,) * num_stages} | of)


def recovered(**changes: Any) -> Recovered:
    """Return what the log says of a run whose trainer has ended before the first commit, with nobody in it."""
    of: dict[str, Any] = {
        "run": RUN,
        "generation": Generation(2),
        "next_session": Session(10),
        "branch": Branch(0),
        "step": Step(0),
        "members": (),
        "commit": None,
    }
    return Recovered(**of | changes)


def recovered_member(session: int, node: str, *, role: Role = Role.WORKER, stage: int = 0) -> RecoveredMember:
    """Return a process of the log with the addresses and the nonce of `letters.register`."""
    sockets = ("a",) if role is Role.WORKER else ("a", "b")
    return RecoveredMember(
        session=Session(session),
        node=NodeId(node),
        boot_nonce=1,
        role=role,
        stage=Stage(stage),
        addresses=tuple(Address(f"sim://{node}/{socket}") for socket in sockets),
    )
