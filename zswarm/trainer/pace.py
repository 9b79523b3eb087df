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

    A step's duration is the time between its commit and the one before it. The first step has none: before
    it came the start and the first evaluation. All times are seconds of one monotonic clock.
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
    def tokens_per_s(self) -> float | None:
        """Of the recent steps; None before the second."""
        return _times(self._samples_per_s(RECENT_STEPS), self._tokens_per_sample)

    @property
    def time_left_s(self) -> float | None:
        """Until the last step, at the pace of the recent ones; None before the second."""
        return _times(self._typical_s(RECENT_STEPS), self._steps - self.num_steps)

    def _typical_s(self, most: int) -> float | None:
        """Return the median duration of the last `most` steps."""
        durations = [later - earlier for earlier, later in pairwise(self._committed_at_s[-most - 1 :])]
        return statistics.median(durations) if durations else None

    def _samples_per_s(self, most: int) -> float | None:
        typical_s = self._typical_s(most)
        return self._num_samples / typical_s if typical_s else None

    def summary(
        self,
        now: float,
        *,
        held_out_loss: tuple[float | None, float | None],
        wire_bytes: int,
        stages: int,
        workers: int,
    ) -> dict[str, Any]:
        """Return the content of `summary.json`; rates are medians over the steps after the first, None without one.

        `held_out_loss` is that before the first step and that after the last one.
        """
        before, after = held_out_loss
        samples_per_s = self._samples_per_s(self.num_steps)
        return {
            "steps": self.num_steps,
            "loss": self._losses,
            "held_out_loss": after,
            "held_out_loss_before": before,
            "samples_per_s": samples_per_s,
            "tokens_per_s": _times(samples_per_s, self._tokens_per_sample),
            "wall_s": now - self._begun_at_s,
            "time_to_first_step_s": self._committed_at_s[0] - self._begun_at_s if self._committed_at_s else None,
            "wire_bytes": wire_bytes,
            "stages": stages,
            "workers": workers,
        }


def _times(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor
