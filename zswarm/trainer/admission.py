"""Which microbatch goes into the pipeline next, and when: the admission window.

The order is fixed: the evaluation of the fresh parameters, the steps one after the other, the evaluation
of the final ones. The first microbatches of step t + 1 may be admitted while step t is being finished:
they wait in the brokers of stage 0 for the new parameters, so that a step begins without a round trip.
A training microbatch leaves the window when stage 0 has counted it, an evaluated one with its loss.

A trainer that takes a run up cannot know what of the step in work, and of the one after it, an earlier
generation has admitted: all of both passes for admitted, and what nobody reports is admitted again
(`replays`). An evaluation whose losses stay away is begun again: it leaves no trace in the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from zswarm import ledger, limits
from zswarm.ids import Attempt, Microbatch, Purpose, Step
from zswarm.messages import Evaluated
from zswarm.patience import patience
from zswarm.trainer.replays import Replay
from zswarm.trainer.settings import CoordinatorSettings, EvaluationDone, Sample

Ticket = tuple[Purpose, Step, Microbatch]
UNKNOWN_STEPS = 2
"""Steps of which an earlier generation may have admitted something that is not counted yet."""


def order(settings: CoordinatorSettings, first: Step, *, is_taken_up: bool = False) -> Iterator[Ticket]:
    """Yield every microbatch that is left of the run from step `first` on, in the order of admission."""
    evaluation = [Microbatch(index) for index in range(settings.num_held_out)]
    if first == 0:
        yield from ((Purpose.EVALUATE, Step(0), index) for index in evaluation)
    for step in range(first + (UNKNOWN_STEPS if is_taken_up else 0), settings.steps):
        yield from ((Purpose.TRAIN, Step(step), Microbatch(index)) for index in range(settings.num_microbatches))
    yield from ((Purpose.EVALUATE, Step(settings.steps), index) for index in evaluation)


class Admission:
    """See the module. `first_attempt` is that of whatever is admitted for the first time."""

    def __init__(self, settings: CoordinatorSettings, *, first_attempt: Attempt) -> None:
        self._settings = settings
        self._first_attempt = first_attempt
        self._full_mask = (1 << settings.num_stages) - 1
        self._losses: dict[Step, dict[Microbatch, tuple[float, int]]] = {}
        self._held_out: dict[Step, float] = dict(settings.recovered.held_out) if settings.recovered else {}
        self._num_evaluations = 0
        self._evaluated_at_s = float("inf")
        self.begin(Step(0))

    def begin(self, first: Step, *, is_taken_up: bool = False) -> None:
        """Start from a step, with nothing of it in the pipeline; with `is_taken_up` nobody knows what is."""
        left = order(self._settings, first, is_taken_up=is_taken_up)
        self._order = (t for t in left if t[0] is Purpose.TRAIN or t[1] not in self._held_out)
        self._next = next(self._order, None)
        self._in_flight: dict[Ticket, None] = {}
        self._attempts: dict[Ticket, tuple[Attempt, int]] = {}
        self._admitted: dict[Step, int] = {}
        self._losses = {step: losses for step, losses in self._losses.items() if step < first}
        self._taken_up = range(first, first + UNKNOWN_STEPS if is_taken_up else first)
        for step in range(first, min(first + UNKNOWN_STEPS, self._settings.steps) if is_taken_up else first):
            # None of it is held to be in flight: it would fill the window, and keep out an evaluation that comes first.
            self._admitted[Step(step)] = ledger.full(self._settings.num_microbatches)

    def is_taken_up(self, step: Step) -> bool:
        """Is it unknown what of this step is in the pipeline?"""
        return step in self._taken_up

    def forget_after(self, step: Step) -> None:
        """The run has gone back to a step: losses of later parameters are void."""
        self._held_out = {of: loss for of, loss in self._held_out.items() if of <= step}

    @property
    def num_in_flight(self) -> int:
        """Microbatches in the pipeline, of all purposes."""
        return len(self._in_flight)

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The microbatches in the pipeline, to be read only."""
        return self._in_flight.keys()

    def admitted(self, step: Step) -> int:
        """Return the bitmap of a step's microbatches that have ever been admitted."""
        return self._admitted.get(step, 0)

    def expects(self, ticket: Ticket) -> bool:
        """Are the samples of this microbatch wanted?"""
        purpose, step, microbatch = ticket
        if purpose is Purpose.EVALUATE:
            return ticket in self._in_flight
        return bool(self.admitted(step) >> microbatch & 1)

    def attempt(self, ticket: Ticket) -> tuple[Attempt, int]:
        """Return which attempt a microbatch goes in as, and the bitmap of the stages that shall count it."""
        return self._attempts.get(ticket, (self._first_attempt, self._full_mask))

    def admit(self, *, step: Step, window: int, now: float, is_ahead: bool = True) -> list[Sample]:
        """Draw as many microbatches as the window has room for; none beyond step + 1, with `is_ahead` false none of it.

        Evaluations wait for their step, since they could not be recalled where something of this step needs the room;
        then the window is none to them, since the step waits for them, and the next one may have filled it.
        """
        samples = []
        while self._next is not None:
            purpose, of_step, microbatch = self._next
            trains = purpose is Purpose.TRAIN
            if of_step > (step + 1 if trains and is_ahead else step) or (trains and len(self._in_flight) >= window):
                break
            self._enter(self._next)
            if purpose is Purpose.EVALUATE:
                self._evaluated_at_s, self._num_evaluations = now, 1
            samples.append(Sample(purpose=purpose, step=of_step, microbatch=microbatch))
            self._next = next(self._order, None)
        return samples

    def _enter(self, ticket: Ticket) -> None:
        purpose, step, microbatch = ticket
        self._in_flight[ticket] = None
        if purpose is Purpose.TRAIN:
            self._admitted[step] = self._admitted.get(step, 0) | 1 << microbatch

    def readmit(self, replays: list[Replay]) -> list[Sample]:
        """Draw microbatches again whose earlier attempts are void."""
        samples = []
        for replay in replays:
            ticket = (Purpose.TRAIN, replay.step, replay.microbatch)
            self._attempts[ticket] = (replay.attempt, replay.mask)
            if replay.mask & 1:
                self._in_flight[ticket] = None
            samples.append(Sample(purpose=Purpose.TRAIN, step=replay.step, microbatch=replay.microbatch))
        return samples

    def counted(self, step: Step, bitmap: int) -> None:
        """Stage 0 has counted these microbatches of a step: they have left the pipeline."""
        for microbatch in ledger.members(bitmap):
            self._in_flight.pop((Purpose.TRAIN, step, microbatch), None)

    def committed(self, step: Step) -> None:
        """A step is over."""
        self.counted(step, ledger.full(self._settings.num_microbatches))
        self._admitted.pop(step, None)
        self._attempts = {ticket: attempt for ticket, attempt in self._attempts.items() if ticket[1] > step}

    def evaluated(self, message: Evaluated, now: float) -> EvaluationDone | None:
        """A held-out loss has come; returns the mean once all of the pass are there."""
        ticket = (Purpose.EVALUATE, message.step, message.microbatch)
        if ticket not in self._in_flight:
            return None
        del self._in_flight[ticket]
        self._evaluated_at_s, self._num_evaluations = now, 1
        losses = self._losses.setdefault(message.step, {})
        losses[message.microbatch] = (math.nan if message.loss_sum is None else message.loss_sum, message.num_targets)
        if len(losses) < self._settings.num_held_out:
            return None
        ordered = [losses[index] for index in sorted(losses)]
        loss = sum(loss_sum for loss_sum, _ in ordered) / max(1, sum(count for _, count in ordered))
        self._held_out[message.step] = loss
        return EvaluationDone(step=message.step, loss=loss)

    def reevaluate(self, *, now: float, heartbeat_s: float) -> list[Sample]:
        """Draw evaluations again that have brought nothing for long; to be called with every heartbeat."""
        waiting = [ticket for ticket in self._in_flight if ticket[0] is Purpose.EVALUATE]
        first_s = limits.EVALUATION_HEARTBEATS * heartbeat_s
        if not waiting or now - self._evaluated_at_s < patience(first_s, self._num_evaluations):
            return []
        self._evaluated_at_s = now
        self._num_evaluations += 1
        for ticket in waiting:
            attempt, mask = self.attempt(ticket)
            self._attempts[ticket] = (Attempt(attempt + 1), mask)
        return [Sample(purpose=purpose, step=step, microbatch=index) for purpose, step, index in waiting]

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        self._evaluated_at_s += stall_s

    def is_evaluated(self, step: Step) -> bool:
        """Has every evaluation of these parameters been done? Only then may they change."""
        is_due = self._settings.num_held_out > 0 and step in (0, self._settings.steps)
        return not is_due or step in self._held_out
