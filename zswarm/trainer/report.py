"""What a run tells its user: the metrics and the progress line of each step, what happens, the summary at the end."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from zswarm.config import RunConfig
from zswarm.errors import RunFailed
from zswarm.ids import Step
from zswarm.json_lines import JsonLinesWriter
from zswarm.logs import get_log
from zswarm.trainer.costs import Costs
from zswarm.trainer.pace import Pace
from zswarm.trainer.progress import Progress, StepReport
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.run_folder import RunFolder
from zswarm.trainer.sentences import Narrator
from zswarm.trainer.settings import EvaluationDone, StepDone

RETRY_S = 1.0
"""Between two attempts to write to a disk that is full or broken."""
ALARM_S = 60.0
"""Between two messages about that."""


class GaveUp(RunFailed):
    """The user has ended the wait for a disk that is full or broken."""


def do_not_wait(_duration_s: float) -> bool:
    """Refuse to wait; for a run that has nothing to lose."""
    return False


class Report:
    """Takes in what the coordinator says of the run's way."""

    def __init__(self, config: RunConfig, *, folder: RunFolder, progress: Progress, begun_s: float) -> None:
        """`begun_s` is when the user's command began, on the monotonic clock."""
        self._folder = folder
        self._progress = progress
        self._begun_s = begun_s
        self._log = get_log()
        self.wait: Callable[[float], bool] = do_not_wait
        """How to wait so many seconds for a disk that does not take a record; False if there is no use in it."""
        self._pace = Pace(config, now=begun_s)
        self._narrator, self._costs = Narrator(), Costs()
        self._held_out: dict[Step, float] = {}

    def take_up(self, past: Recovered) -> None:
        """Go on with a run that has been reported so far by others."""
        self._pace.take_up(past.losses, wall_s=past.wall_s)
        self._narrator, self._costs = Narrator(step=past.step), Costs(step=past.step)
        self._held_out = dict(past.held_out)

    def event(self, record: dict[str, Any], *, durable: bool) -> None:
        """Write a record to the event log, with the time since the command began and what it cost, and tell the user what
        is news.

        Returns only when the record is written, with `durable` when it is on the disk: what follows from it must not
        happen before.

        Raises:
            GaveUp: it cannot be written, and nobody wants to wait any longer.

        """
        record = self._costs.priced({"time_s": self._time_s(), **record})
        self._append(self._folder.events, record, durable=durable)
        log = self._log.debug if record["event"] == "commit" else self._log.info
        log(
            record["event"],
            **{name: value for name, value in record.items() if name not in {"event", "stages", "time_s"}},
        )
        if record["event"] == "rollback":
            self._roll_back(Step(record["step"]))
        if (sentence := self._narrator.sentence(record)) is not None:
            self._progress.say(sentence)

    def step_done(self, done: StepDone) -> None:
        """Write the step's metrics and move the progress line; raises as `event`."""
        self._pace.commit(done.loss, monotonic())
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
        self._append(self._folder.metrics, {"time_s": self._time_s(), **report.record()}, durable=False)
        self._progress.update(report)

    def evaluation_done(self, done: EvaluationDone) -> None:
        """Note a held-out loss."""
        self._held_out[done.step] = done.loss
        self.say(f"held-out loss after {done.step} steps: {done.loss:.4f}")

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._progress.say(text)

    def write_summary(self, *, wire_bytes: int | None, stages: int, workers: int | None) -> None:
        """Write `summary.json`; None for what this life of the trainer has seen nothing of.

        Raises:
            RunFailed: that is impossible.

        """
        held_out = (self._held_out.get(Step(0)), self._held_out.get(Step(self._pace.num_steps)))
        summary = self._pace.summary(
            monotonic(), held_out_loss=held_out, wire_bytes=wire_bytes, stages=stages, workers=workers
        )
        self._folder.write_summary(summary)

    def _roll_back(self, step: Step) -> None:
        self._pace.roll_back(step)
        self._held_out = {at: loss for at, loss in self._held_out.items() if at <= step}

    def _append(self, writer: JsonLinesWriter, record: dict[str, Any], *, durable: bool) -> None:
        alarm_at_s = monotonic()
        while True:
            try:
                return writer.append(record, durable=durable)
            except RunFailed as error:
                if monotonic() >= alarm_at_s:
                    alarm_at_s = monotonic() + ALARM_S
                    self._progress.say(f"the run waits for its disk: {error}")
                if not self.wait(RETRY_S):
                    raise GaveUp(str(error)) from None

    def _time_s(self) -> float:
        return round(monotonic() - self._begun_s, 6)
