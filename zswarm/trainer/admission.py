"""Which microbatch goes into the pipeline next, and when: the admission window.

The order is fixed: the evaluation of the fresh parameters, the steps one after the other, the evaluation
of the final ones. The first microbatches of step t + 1 may be admitted while step t is being finished:
they wait in the brokers of stage 0 for the new parameters, so that a step begins without a round trip.
A training microbatch leaves the window when stage 0 has counted it, an evaluated one with its loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from zswarm import ledger
from zswarm.ids import Microbatch, Purpose, Step
from zswarm.messages import Evaluated
from zswarm.trainer.settings import CoordinatorSettings, EvaluationDone, Sample

Ticket = tuple[Purpose, Step, Microbatch]


def order(settings: CoordinatorSettings) -> Iterator[Ticket]:
    """Yield every microbatch of the run in the order of admission."""
    evaluation = [Microbatch(index) for index in range(settings.num_held_out)]
    yield from ((Purpose.EVALUATE, Step(0), index) for index in evaluation)
    for step in range(settings.steps):
        yield from ((Purpose.TRAIN, Step(step), Microbatch(index)) for index in range(settings.num_microbatches))
    yield from ((Purpose.EVALUATE, Step(settings.steps), index) for index in evaluation)


class Admission:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        self._settings = settings
        self._order = order(settings)
        self._next: Ticket | None = next(self._order, None)
        self._in_flight: dict[Ticket, None] = {}
        self._losses: dict[Step, dict[Microbatch, tuple[float, int]]] = {}

    @property
    def num_in_flight(self) -> int:
        """Microbatches in the pipeline, of all purposes."""
        return len(self._in_flight)

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The microbatches in the pipeline, to be read only."""
        return self._in_flight.keys()

    def admit(self, *, step: Step, window: int) -> list[Sample]:
        """Draw as many microbatches as the window has room for; none beyond step + 1."""
        samples = []
        while self._next is not None and len(self._in_flight) < window and self._next[1] <= step + 1:
            purpose, of_step, microbatch = self._next
            self._in_flight[self._next] = None
            samples.append(Sample(purpose=purpose, step=of_step, microbatch=microbatch))
            self._next = next(self._order, None)
        return samples

    def counted(self, step: Step, bitmap: int) -> None:
        """Stage 0 has counted these microbatches of a step: they have left the pipeline."""
        for microbatch in ledger.members(bitmap):
            self._in_flight.pop((Purpose.TRAIN, step, microbatch), None)

    def evaluated(self, message: Evaluated) -> EvaluationDone | None:
        """A held-out loss has come; returns the mean once all of the pass are there."""
        ticket = (Purpose.EVALUATE, message.step, message.microbatch)
        if ticket not in self._in_flight:
            return None
        del self._in_flight[ticket]
        losses = self._losses.setdefault(message.step, {})
        losses[message.microbatch] = (math.nan if message.loss_sum is None else message.loss_sum, message.num_targets)
        if len(losses) < self._settings.num_held_out:
            return None
        ordered = [losses[index] for index in sorted(losses)]
        loss = sum(loss_sum for loss_sum, _ in ordered) / max(1, sum(count for _, count in ordered))
        return EvaluationDone(step=message.step, loss=loss)

    def is_evaluated(self, step: Step) -> bool:
        """Has every evaluation of these parameters been done? Only then may they change."""
        due = self._settings.num_held_out if step in (0, self._settings.steps) else 0
        return len(self._losses.get(step, {})) >= due
