"""What faults cost a run, in seconds, as far as that can be seen: it is written into the records of the event log.

    leave, replay, abort --> the step in work is disturbed --commit--> `late_s`, how much longer than usual it took
    rollback             --> `steps_again`, and `again_s`, the time since the step that it goes back to was begun, or begun again

Usual is the median of the last undisturbed steps of this trainer's life. The first step has nobody to be compared with.
"""

from __future__ import annotations

import statistics
from collections import deque
from itertools import islice
from typing import Any

USUAL_STEPS = 20
"""So many undisturbed steps are remembered."""
MOST_ENDS = 4096
"""So many ends of steps are remembered for a rollback: far more than are committed while a checkpoint is written. Without
any checkpoint they would be those of the whole run, which goes back to step 0 alone."""
DISTURBANCES = frozenset({"leave", "replay", "abort", "rollback"})


class Costs:
    """See the module. Takes all records of one life of a trainer, in their order, with `time_s`."""

    def __init__(self, *, step: int = 0) -> None:
        """Begin with the step that is to be committed next."""
        self._step = step
        self._usual_s: deque[float] = deque(maxlen=USUAL_STEPS)
        self._ends_s: dict[int, float] = {}
        """When steps were committed: the one before the newest checkpoint, and the last of those that another may come of."""
        self._begun_s: float | None = None
        """When the step in work began; None if this trainer has not seen that, as of its first one."""
        self._is_disturbed = False

    def priced(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with what it says of cost, if that is known."""
        event, time_s = record["event"], record["time_s"]
        self._is_disturbed |= event in DISTURBANCES
        match event:
            case "commit":
                return record | self._committed(record["step"], time_s)
            case "checkpoint" if not record.get("problem"):
                # A damaged one gives way to the one before it: what that costs is not told in seconds.
                self._ends_s = {step: end_s for step, end_s in self._ends_s.items() if step >= record["step"] - 1}
            case "rollback":
                return record | self._rolled_back(record["step"], time_s)
        return record

    def _committed(self, step: int, time_s: float) -> dict[str, Any]:
        cost: dict[str, Any] = {}
        if self._begun_s is not None:
            took_s = time_s - self._begun_s
            if not self._is_disturbed:
                self._usual_s.append(took_s)
            elif self._usual_s:
                cost = {"late_s": round(took_s - statistics.median(self._usual_s), 3)}
        self._step, self._begun_s, self._is_disturbed = step + 1, time_s, False
        self._ends_s[step] = time_s
        if len(self._ends_s) > MOST_ENDS:
            # The first is the newest checkpoint's, if there is one.
            del self._ends_s[next(islice(self._ends_s, 1, None))]
        return cost

    def _rolled_back(self, step: int, time_s: float) -> dict[str, Any]:
        cost: dict[str, Any] = {"steps_again": self._step - step}
        begun_s = self._ends_s.get(step - 1)
        if begun_s is not None:
            cost["again_s"] = round(time_s - begun_s, 3)
        self._ends_s = {at: end_s for at, end_s in self._ends_s.items() if at < step}
        if begun_s is not None:
            # What is lost up to now is told: the next rollback costs what is done from here on.
            self._ends_s[step - 1] = time_s
        self._step, self._begun_s = step, time_s
        return cost
