"""What a run tells its user: the metrics and the progress line of each step, and the summary at the end."""

from __future__ import annotations

from time import monotonic
from typing import Any

from zswarm.config import RunConfig
from zswarm.ids import Step
from zswarm.logs import get_log
from zswarm.trainer.pace import Pace
from zswarm.trainer.progress import Progress, StepReport
from zswarm.trainer.run_folder import RunFolder
from zswarm.trainer.settings import EvaluationDone, StepDone


class Report:
    """Takes in what the coordinator says of the run's way."""

    def __init__(self, config: RunConfig, *, folder: RunFolder, progress: Progress, begun_s: float) -> None:
        """`begun_s` is when the user's command began, on the monotonic clock."""
        self._folder = folder
        self._progress = progress
        self._begun_s = begun_s
        self._log = get_log()
        self._pace = Pace(config, now=begun_s)
        self._held_out: dict[Step, float] = {}

    def event(self, record: dict[str, Any], *, durable: bool) -> None:
        """Write a record to the event log, with the time since the command began."""
        log = self._log.debug if record["event"] == "commit" else self._log.info
        log(record["event"], **{name: value for name, value in record.items() if name not in {"event", "stages"}})
        self._folder.events.append({"time_s": round(monotonic() - self._begun_s, 6), **record}, durable=durable)

    def step_done(self, done: StepDone) -> None:
        """Write the step's metrics and move the progress line."""
        now = monotonic()
        self._pace.commit(done.loss, now)
        report = StepReport(
            step=done.step,
            loss=done.loss,
            lr=done.lr,
            grad_norm=done.grad_norm,
            tokens_per_s=self._pace.tokens_per_s,
            num_in_flight=done.num_in_flight,
            workers=done.workers,
            time_left_s=self._pace.time_left_s,
        )
        self._folder.metrics.append({"time_s": round(now - self._begun_s, 6), **report.record()})
        self._progress.update(report)

    def evaluation_done(self, done: EvaluationDone) -> None:
        """Note a held-out loss."""
        self._held_out[done.step] = done.loss
        self._progress.say(f"held-out loss after {done.step} steps: {done.loss:.4f}")

    def write_summary(self, *, wire_bytes: int, stages: int, workers: int) -> None:
        """Write `summary.json`."""
        held_out = (self._held_out.get(Step(0)), self._held_out.get(Step(self._pace.num_steps)))
        summary = self._pace.summary(
            monotonic(), held_out_loss=held_out, wire_bytes=wire_bytes, stages=stages, workers=workers
        )
        self._folder.write_summary(summary)
