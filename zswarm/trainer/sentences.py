"""What happens to a swarm, in a sentence for whoever watches it: one for each record of the event log that is news."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

SKIPPED_SHOWN = 10
"""Of steps that are skipped one after the other, the first is told and then each of this number."""


LEAST_LATE_S = 0.1
"""Less than so much is no longer than usual."""


class Narrator:
    """Reads the records in their order and says what a user wants to know.

    Who comes before training begins, and who leaves when it is over, is no news.
    """

    def __init__(self, *, step: int = 0) -> None:
        """Begin with the step that is to be committed next."""
        self._step = step
        self._has_begun = step > 0
        self._is_over = False
        self._num_skipped = 0

    def sentence(self, record: dict[str, Any]) -> str | None:
        """Return what is to be told of a record; None for most."""
        match record["event"]:
            case "join" if self._has_begun:
                return f"{record['node']} has joined stage {record['stage']}"
            case "leave" if not self._is_over:
                return _leave(record)
            case "evaluation":
                self._has_begun = True
            case "commit":
                self._has_begun = True
                return self._commit(record)
            case "replay":
                return f"step {record['step']}: {_microbatches(record['microbatches'])} sent through the pipeline again"
            case "abort":
                return f"step {self._step}, stage {record['stage']}: the all-reduce begins anew: {record['reason']}"
            case "checkpoint" if record.get("problem"):
                return f"no checkpoint of step {record['step']}: {record['problem']}; the run goes on without it"
            case "rollback":
                return self._roll_back(record)
            case "finish":
                self._is_over = True
        return None

    def _commit(self, record: dict[str, Any]) -> str | None:
        self._step = record["step"] + 1
        self._num_skipped = 0 if record["apply"] else self._num_skipped + 1
        if self._num_skipped == 1:
            return f"step {record['step']} is skipped: its gradient is not finite, the parameters stay as they are"
        if self._num_skipped and self._num_skipped % SKIPPED_SHOWN == 0:
            return f"{self._num_skipped} steps in a row are skipped by now, up to step {record['step']}"
        late_s = record.get("late_s")
        if late_s is None:
            return None
        longer = f"{late_s:.1f} s longer than" if late_s >= LEAST_LATE_S else "no longer than"
        return f"step {record['step']} took {longer} usual"

    def _roll_back(self, record: dict[str, Any]) -> str:
        before, self._step = self._step, record["step"]
        target = f"the checkpoint of step {self._step}" if self._step else "its beginning"
        again_s = record.get("again_s")
        again = f": {again_s:.1f} s of it are done again" if again_s is not None else ""
        return f"{record['reason']}; the run goes back from step {before} to {target}{again}"


def _leave(record: dict[str, Any]) -> str:
    lost = record.get("lost", 0)
    num_lost = len(lost) if isinstance(lost, Sized) else lost
    again = f"; {_microbatches(num_lost)} computed again" if num_lost else ""
    if record.get("heir") is not None:
        again = ", and has handed over what it had computed"
    if num_lost and (redone_s := record.get("redone_s")):
        again += f", about {redone_s:.1f} s of work"
    if queued := record.get("queued"):
        again = f"; {_microbatches(queued)} to go another way"
    return f"{record['node']} (stage {record['stage']}) is gone: {record['reason']}{again}"


def _microbatches(which: Sized | int) -> str:
    count = len(which) if isinstance(which, Sized) else which
    return "1 microbatch is" if count == 1 else f"{count} microbatches are"
