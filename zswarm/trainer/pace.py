"""How fast a run goes: from the times of its commits to rates, time left, and the run's summary."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zswarm.config import RunConfig

RECENT_STEPS = 8
"""The rate that is shown, and the time left, follow from the median of so many steps."""


class Pace:
    """Times and losses of the steps of one run, of which this process may have seen the last part only.

    A step's duration is the time between its commit and the one before it. The first step of this process has none:
    before it came the start and the first evaluation; nor has the first one after a rollback. All times are seconds of
    one monotonic clock.
    """

    def __init__(self, config: RunConfig, *, now: float) -> None:
        """Begin at `now`."""
        self._num_samples = config.batch.global_batch
        self._tokens_per_sample = config.sequence_length
        self._steps = config.run.steps
        self._begun_at_s = now
        self._earlier_wall_s = 0.0
        self._losses: list[float] = []
        self._durations_s: list[float] = []
        self._first_at_s: float | None = None
        self._last_at_s: float | None = None

    def take_up(self, losses: Sequence[float], *, wall_s: float) -> None:
        """Go on after steps with these losses, which took earlier lives of the trainer so long."""
        self._losses, self._earlier_wall_s = list(losses), wall_s

    def commit(self, loss: float, now: float) -> None:
        """Note that the next step, with this mean loss, has been committed."""
        if self._first_at_s is None:
            self._first_at_s = now
        if self._last_at_s is not None:
            self._durations_s.append(now - self._last_at_s)
        self._last_at_s = now
        self._losses.append(loss)

    def roll_back(self, step: int) -> None:
        """Forget the losses of `step` and all later ones: they are committed anew."""
        del self._losses[step:]
        self._last_at_s = None

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
        durations_s = self._durations_s[-most:]
        return statistics.median(durations_s) if durations_s else None

    def _samples_per_s(self, most: int) -> float | None:
        typical_s = self._typical_s(most)
        return self._num_samples / typical_s if typical_s else None

    def summary(
        self,
        now: float,
        *,
        held_out_loss: tuple[float | None, float | None],
        wire_bytes: int | None,
        stages: int,
        workers: int | None,
    ) -> dict[str, Any]:
        """Return the content of `summary.json`; rates are medians over the steps after the first, None without one.

        `held_out_loss` is that before the first step and that after the last one. Steps, losses and `wall_s` are
        those of the whole run; rates, `time_to_first_step_s`, `wire_bytes` and `workers` those of the trainer's last life,
        None if it had nothing left to do but to write this.
        """
        before, after = held_out_loss
        samples_per_s = self._samples_per_s(len(self._durations_s))
        return {
            "steps": self.num_steps,
            "loss": self._losses,
            "held_out_loss": after,
            "held_out_loss_before": before,
            "samples_per_s": samples_per_s,
            "tokens_per_s": _times(samples_per_s, self._tokens_per_sample),
            "wall_s": self._earlier_wall_s + now - self._begun_at_s,
            "time_to_first_step_s": None if self._first_at_s is None else self._first_at_s - self._begun_at_s,
            "wire_bytes": wire_bytes,
            "stages": stages,
            "workers": workers,
        }


def _times(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor
