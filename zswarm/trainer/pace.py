"""How fast a run goes: from the times of its commits to rates, time left, and the run's summary."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zswarm.config import RunConfig

RECENT_STEPS = 8
"""The rate that is shown, and the time left, follow from the median of so many steps."""


class Pace:
    """Times and losses of the steps of one run.

    A step's duration is the time between its commit and the one before it. The first step's includes
    whatever came before it (start, first evaluation), so it counts only while it is the only one.
    All times are seconds of one monotonic clock.
    """

    def __init__(self, config: RunConfig, *, now: float) -> None:
        """Begin at `now`."""
        self._num_samples = config.batch.global_batch
        self._tokens_per_sample = config.sequence_length
        self._steps = config.run.steps
        self._begun_at_s = now
        self._committed_at_s: list[float] = []
        self._losses: list[float] = []

    def commit(self, loss: float, now: float) -> None:
        """Note that a step with this mean loss has been committed."""
        self._committed_at_s.append(now)
        self._losses.append(loss)

    @property
    def num_steps(self) -> int:
        """Steps committed."""
        return len(self._losses)

    @property
    def tokens_per_s(self) -> float:
        """Of the recent steps."""
        return self._samples_per_s(self._durations(RECENT_STEPS)) * self._tokens_per_sample

    @property
    def time_left_s(self) -> float:
        """Until the last step, at the pace of the recent ones."""
        recent = self._durations(RECENT_STEPS)
        return (self._steps - self.num_steps) * statistics.median(recent) if recent else 0.0

    def _durations(self, most: int) -> list[float]:
        """Return the durations of the last `most` steps but the first, which stands in while it is alone."""
        if len(self._committed_at_s) == 1:
            return [self._committed_at_s[0] - self._begun_at_s]
        return [later - earlier for earlier, later in pairwise(self._committed_at_s[-most - 1 :])]

    def _samples_per_s(self, durations: list[float]) -> float:
        typical = statistics.median(durations) if durations else 0.0
        return self._num_samples / typical if typical > 0 else 0.0

    def summary(
        self,
        now: float,
        *,
        held_out_loss: tuple[float | None, float | None],
        wire_bytes: int,
        stages: int,
        workers: int,
    ) -> dict[str, Any]:
        """Return the content of `summary.json`; rates are medians over the steps after the first.

        `held_out_loss` is that before the first step and that after the last one.
        """
        before, after = held_out_loss
        samples_per_s = self._samples_per_s(self._durations(self.num_steps))
        return {
            "steps": self.num_steps,
            "loss": self._losses,
            "held_out_loss": after,
            "held_out_loss_before": before,
            "samples_per_s": samples_per_s,
            "tokens_per_s": samples_per_s * self._tokens_per_sample,
            "wall_s": now - self._begun_at_s,
            "time_to_first_step_s": self._committed_at_s[0] - self._begun_at_s if self._committed_at_s else None,
            "wire_bytes": wire_bytes,
            "stages": stages,
            "workers": workers,
        }
