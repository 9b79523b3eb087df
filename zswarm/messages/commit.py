"""On the coordinator socket: the commit of a step, and held-out losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from zswarm import limits
from zswarm.ids import Round
from zswarm.messages.base import FINITE, U64, Ledger, Length, MicrobatchMessage, SessionField, StepMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(StepMessage):
    """Coordinator -> every worker of a stage: all-reduce what you have, if `ledger` is what you have."""

    round: Annotated[Round, U64]
    participants: Annotated[tuple[SessionField, ...], Length(limits.MAX_PARTICIPANTS)]
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(StepMessage):
    """Worker -> coordinator: I hold the stage's reduced gradient of this round."""

    round: Annotated[Round, U64]
    digest: Annotated[int, U64]
    finite: bool
    square_norm: Annotated[float, FINITE]
    """Of the reduced gradient of the whole stage, before clipping; 0 where it is not finite."""
    ledger: Ledger
    """Of this worker's own contribution."""
    loss_sum: Annotated[float, FINITE] | None
    """Over this worker's own contribution, None where it is not finite; 0 but for the last stage."""
    num_targets: Annotated[int, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(StepMessage):
    """Coordinator -> worker: forget this round; your accumulator is untouched."""

    round: Annotated[Round, U64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(StepMessage):
    """Coordinator -> worker, repeated until it reports step + 1: apply the optimizer step.

    Parameters change here and nowhere else: `gradient * scale`, learning rate `lr`; with `apply`
    false (a gradient that is not finite) only the step number advances.
    """

    round: Annotated[Round, U64]
    digest: Annotated[int, U64]
    scale: Annotated[float, FINITE]
    lr: Annotated[float, FINITE]
    apply: bool
    snapshot: bool = False
    """Keep a copy of the state of step + 1 for the checkpoint, until the next one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(MicrobatchMessage):
    """Last-stage worker -> coordinator: the loss of an evaluation microbatch; answered by Ack."""

    loss_sum: Annotated[float, FINITE] | None
    """None where it is not finite."""
    num_targets: Annotated[int, U64]
