"""Was every microbatch of every committed step counted exactly once at every stage?

The answer is recomputed from `events.jsonl` alone: nothing that the coordinator concluded is believed,
only whose contributions it wrote down. The checks:

    log        every line is a record; one says what the run is, before anything is committed
    steps      every committed step once, in order, on one branch
    stages     every commit has every stage once, each with a round of its own that was not aborted
    ledgers    at every stage of every commit, each microbatch in one contribution, and no other
    sessions   contributions come from workers of that stage that had joined, and had not left
               before the step began
    end        the run says how many steps it committed, all of them if it says that all went well, and nothing is
               committed after that

A torn last line is what a power cut leaves; it is reported and is no violation, because a step counts
only after its line is on the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from zswarm import events
from zswarm.json_lines import read_json_lines

if TYPE_CHECKING:
    from pathlib import Path

    from zswarm.json_lines import Line

SHOWN = 5
"""Problems of one check that are told in full."""


@dataclass(slots=True, kw_only=True)
class Check:
    """One question, what was found, and every place where the answer is no."""

    name: str
    found: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        if self.is_passed:
            return f"ok    {self.name:<9} {self.found}"
        shown = [f"        {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            shown.append(f"        and {len(self.problems) - SHOWN} more")
        plural = "problem" if len(self.problems) == 1 else "problems"
        return "\n".join([f"FAIL  {self.name:<9} {len(self.problems)} {plural}", *shown])


@dataclass(slots=True, kw_only=True)
class _Life:
    """One session: where it may contribute, and when it ended."""

    stage: int
    is_worker: bool
    left_after_commits: int | None = None
    """How many steps were committed before it left."""


def audit(path: Path) -> list[Check]:
    """Check `events.jsonl` in the run folder `path`, or that file itself.

    Raises:
        UserError: it cannot be read.

    """
    lines, torn_bytes = read_json_lines(path / "events.jsonl" if path.is_dir() else path)
    return Audit(lines, torn_bytes=torn_bytes).checks


class Audit:
    """Reads the lines once, from the first to the last."""

    def __init__(self, lines: list[Line], *, torn_bytes: int) -> None:
        self._log = Check(name="log")
        self._steps = Check(name="steps")
        self._stages = Check(name="stages")
        self._ledgers = Check(name="ledgers")
        self._sessions = Check(name="sessions")
        self._end = Check(name="end")
        self._start: events.Start | None = None
        self._branch: int | None = None
        self._lives: dict[int, _Life] = {}
        self._contributors: set[int] = set()
        self._rounds: dict[int, str] = {}
        self._num_commits = 0
        self._num_counted = 0
        self._finish: events.Finish | None = None
        for line in lines:
            self._read(line)
        self._conclude(num_lines=len(lines), torn_bytes=torn_bytes)

    @property
    def checks(self) -> list[Check]:
        """The verdicts."""
        return [self._log, self._steps, self._stages, self._ledgers, self._sessions, self._end]

    def _read(self, line: Line) -> None:
        where = f"line {line.number}"
        if line.record is None:
            self._log.problems.append(f"{where}: not a JSON object")
            return
        try:
            event = events.parse(line.record)
        except ValueError as error:
            self._log.problems.append(f"{where}: {error}")
            return
        if self._start is None and isinstance(event, events.Commit | events.Abort | events.Finish):
            self._log.problems.append(f"{where}: comes before the start of the run")
            return
        if self._finish is not None and not isinstance(event, events.Leave | None):
            self._end.problems.append(f"{where}: {event.event} after the run has finished")
        match event:
            case events.Start():
                self._read_start(event, where)
            case events.Join():
                self._read_join(event, where)
            case events.Leave():
                self._read_leave(event, where)
            case events.Commit():
                self._read_commit(event, where)
            case events.Abort():
                self._read_abort(event, where)
            case events.Finish():
                self._finish = event
            case None:
                pass
            case _:
                assert_never(event)

    def _read_start(self, event: events.Start, where: str) -> None:
        if self._start is None:
            self._start = event
            return
        before, self._start = self._start, event
        if event.generation <= before.generation:
            self._log.problems.append(
                f"{where}: started again with generation {event.generation} after {before.generation}"
            )
        for key in ("run", "stages", "num_microbatches"):
            if getattr(event, key) != getattr(before, key):
                self._log.problems.append(
                    f"{where}: started again with {key} {getattr(event, key)}, it was {getattr(before, key)}"
                )

    def _read_join(self, event: events.Join, where: str) -> None:
        if event.session in self._lives:
            self._sessions.problems.append(f"{where}: session {event.session} joins a second time")
        self._lives[event.session] = _Life(stage=event.stage, is_worker=event.role == "worker")

    def _read_leave(self, event: events.Leave, where: str) -> None:
        life = self._lives.get(event.session)
        if life is None or life.left_after_commits is not None:
            self._sessions.problems.append(f"{where}: session {event.session} leaves and is not there")
        else:
            life.left_after_commits = self._num_commits

    def _read_abort(self, event: events.Abort, where: str) -> None:
        self._claim_round(event.stage, event.round, f"aborted in {where}", where)

    def _read_commit(self, event: events.Commit, where: str) -> None:
        where = f"{where}, step {event.step}"
        if event.step != self._num_commits:
            self._steps.problems.append(f"{where}: expected step {self._num_commits}")
        if self._branch is not None and event.branch != self._branch:
            self._steps.problems.append(f"{where}: branch {event.branch}, it was {self._branch}")
        if self._start is not None and event.step >= self._start.steps:
            self._steps.problems.append(f"{where}: the run has {self._start.steps} steps")
        self._branch = event.branch
        num_stages = self._start.stages if self._start else 0
        counts = Counter(stage.stage for stage in event.stages)
        for index in sorted(set(range(num_stages)) | set(counts)):
            if index >= num_stages:
                self._stages.problems.append(f"{where}: stage {index}, and the run has {num_stages}")
            elif counts[index] != 1:
                self._stages.problems.append(f"{where}: stage {index} is there {counts[index]} times")
        for stage in event.stages:
            place = f"{where}, stage {stage.stage}"
            self._claim_round(stage.stage, stage.round, f"committed in {where}", place)
            self._check_ledger(stage, place)
            self._check_sessions(stage, place)
        # After a gap the steps that follow are judged by what the log says, not by our count of it.
        self._num_commits = event.step + 1

    def _claim_round(self, stage: int, round_: int, fate: str, where: str) -> None:
        earlier = self._rounds.setdefault(round_, fate)
        if earlier is not fate:
            self._stages.problems.append(f"{where}: round {round_} of stage {stage} was {earlier}")

    def _check_ledger(self, stage: events.StageCommit, where: str) -> None:
        num_microbatches = self._start.num_microbatches if self._start else 0
        counts = Counter(index for counted in stage.contributions.values() for index in counted)
        self._num_counted += counts.total()
        for index in sorted(set(range(num_microbatches)) | set(counts)):
            times = counts[index]
            if index >= num_microbatches:
                self._ledgers.problems.append(f"{where}: microbatch {index}, and a step has {num_microbatches}")
            elif times == 0:
                self._ledgers.problems.append(f"{where}: microbatch {index} is missing")
            elif times > 1:
                owners = [session for session, counted in stage.contributions.items() if index in counted]
                self._ledgers.problems.append(
                    f"{where}: microbatch {index} is counted {times} times, by sessions {', '.join(owners)}"
                )

    def _check_sessions(self, stage: events.StageCommit, where: str) -> None:
        for text, counted in stage.contributions.items():
            session = int(text)
            life = self._lives.get(session)
            self._contributors.add(session)
            if life is None:
                problem = "has not joined"
            elif not life.is_worker:
                problem = "is a broker"
            elif life.stage != stage.stage:
                problem = f"belongs to stage {life.stage}"
            elif counted and life.left_after_commits is not None and life.left_after_commits < self._num_commits:
                problem = "had left before this step began"
            else:
                continue
            self._sessions.problems.append(f"{where}: session {session} {problem}")

    def _conclude(self, *, num_lines: int, torn_bytes: int) -> None:
        start, num_commits = self._start, self._num_commits
        torn = f"; {torn_bytes} bytes of a torn last line are not counted" if torn_bytes else ""
        self._log.found = f"{num_lines} records{torn}"
        if start is None:
            self._log.problems.insert(0, "the log has no start of a run")
            return
        steps = f"0 to {num_commits - 1}, each once, in order, on branch {self._branch}" if num_commits else "none"
        self._steps.found = f"{num_commits} of {start.steps} committed: {steps}"
        self._stages.found = f"{start.stages} in every commit, {len(self._rounds)} rounds, none used twice"
        self._ledgers.found = (
            f"{self._num_counted} contributions = {num_commits} steps x {start.stages} stages x "
            f"{start.num_microbatches} microbatches, each counted exactly once"
        )
        self._sessions.found = f"{len(self._contributors)} workers contributed, {len(self._lives)} processes joined"
        if self._finish is None:
            last = f"after step {num_commits - 1}" if num_commits else "before the first step was committed"
            self._end.found = f"the log ends {last}: the run was cut short"
        else:
            self._end.found = f"finished with {self._finish.steps} steps"
            if self._finish.steps != num_commits:
                self._end.problems.append(f"finished with {self._finish.steps} steps, and {num_commits} are committed")
            if self._finish.code == 0 and num_commits != start.steps:
                self._end.problems.append(f"finished with code 0 after {num_commits} of {start.steps} steps")
