"""Was every microbatch of every committed step counted exactly once at every stage?

The answer is recomputed from `events.jsonl` alone, from the first line to the last. The checks:

    log        every line is a record; one says what the run is, before anything is committed; whenever the trainer
               starts again it is the same run, with a generation that is higher
    steps      every committed step follows the one before it, on the branch that is in force. A rollback goes to the
               next branch, and to step 0 or to a checkpoint that was complete before; it voids the commits from there
               on, and these steps are committed anew: in the end every step stands exactly once
    stages     every commit has every stage once, each with a round of its own that was not aborted, of the
               generation that is in force; layers are dealt to stages in another way only at step 0, with a rollback, or
               at a step that has a checkpoint: else nobody would have had the parameters of his new layers
    ledgers    at every stage of every commit, also of those that were voided later, each microbatch is in one
               contribution, and there is no other
    sessions   sessions join once and leave once; contributions come from workers of that stage that had joined, and
               had not left before the step began, that is, before the commit, rollback or start that precedes it.
               Nobody of before an end, or of before a start on another basis or with another split, is there after it.
               Whoever is moved leaves before he contributes again, unless the trainer itself died in between; a node has
               one session at a time
    end        whenever the run ends it says how many steps are committed, all of them, with a checkpoint of the last, if
               it says that all went well, and nothing is committed after that until the trainer starts again

Believed is what only the processes themselves can know: that a session counted what its list says, that a
digest is that of its result, that a checkpoint which is called complete is, and why anybody left. Not believed, but
recomputed, is everything that the coordinator concluded from it: that a step was complete, that it
counted once, that whoever contributed could, that a rollback went to where it could go. Replays are counted and judged by the
ledgers that came of them.

A torn last line is what a power cut leaves; it is reported and is no violation, because a step counts
only after its line is on the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from zswarm import events
from zswarm.errors import INTERRUPTED
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

    node: str
    stage: int
    is_worker: bool
    left_in_span: int | None = None
    farewell: str = "had left"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Committed:
    """A step that counts, as long as no rollback voids it."""

    num_stages: int
    num_counted: int


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
        self._split: list[int] = []
        """How the layers of the parameters in force are dealt to stages."""
        self._branch = 0
        self._checkpoints: set[int] = set()
        """Steps to which the run may go back."""
        self._rollbacks: list[events.Rollback] = []
        self._committed: dict[int, _Committed] = {}
        self._next_step = 0
        self._span = 0
        """What lies between two commits, rollbacks or starts is one span, counted from 0: so long a round may last."""
        self._lives: dict[int, _Life] = {}
        self._sessions_of: dict[str, int] = {}
        """The session that a node has, if it has one."""
        self._moved: dict[int, int] = {}
        """Where sessions were moved to that are still to leave."""
        self._contributors: set[int] = set()
        self._rounds: dict[int, str] = {}
        self._finish: events.Finish | None = None
        self._counts: Counter[str] = Counter()
        self._num_voided = 0
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
        if event is None:
            return
        if self._start is None and not isinstance(event, events.Start | events.Join | events.Leave):
            self._log.problems.append(f"{where}: comes before the start of the run")
            return
        if self._finish is not None and not isinstance(event, events.Start | events.Leave | events.Checkpoint):
            self._end.problems.append(f"{where}: {event.event} after the run has finished")
        self._counts[event.event] += 1
        match event:
            case events.Start():
                self._read_start(event, where)
            case events.Join():
                self._read_join(event, where)
            case events.Leave():
                self._read_leave(event, where)
            case events.Move():
                self._read_move(event, where)
            case events.Commit():
                self._read_commit(event, f"{where}, step {event.step}")
            case events.Abort():
                self._check_generation(event.stage, event.round, where)
                self._claim_round(event.stage, event.round, f"aborted in {where}", where)
            case events.Checkpoint():
                self._read_checkpoint(event, where)
            case events.Rollback():
                self._read_rollback(event, where)
            case events.Finish():
                self._read_finish(event, where)
            case events.Replay():
                pass
            case _:
                assert_never(event)

    def _read_start(self, event: events.Start, where: str) -> None:
        is_over, self._finish = self._finish is not None, None
        if len(event.split) != event.stages:
            self._log.problems.append(f"{where}: {event.stages} stages, and layers for {len(event.split)}")
        if self._start is None:
            self._start, self._split = event, event.split
            return
        before, self._start = self._start, event
        if is_over or (event.basis, event.split) != (before.basis, before.split):
            self._forget_members()
        # The last words of a trainer may have been that somebody is moved: then he stays.
        self._moved.clear()
        self._span += 1
        if event.generation <= before.generation:
            self._log.problems.append(
                f"{where}: started again with generation {event.generation} after {before.generation}"
            )
        for key in ("run", "num_microbatches"):
            if getattr(event, key) != getattr(before, key):
                self._log.problems.append(
                    f"{where}: started again with {key} {getattr(event, key)}, it was {getattr(before, key)}"
                )

    def _forget_members(self) -> None:
        """Whoever takes part was told to end, or has built what is of no use any more."""
        for life in self._lives.values():
            if life.left_in_span is None:
                life.left_in_span, life.farewell = self._span, "is of a life of the run that was over"
        self._sessions_of.clear()

    def _read_join(self, event: events.Join, where: str) -> None:
        if event.session in self._lives:
            self._sessions.problems.append(f"{where}: session {event.session} joins a second time")
        elif event.node in self._sessions_of:
            self._sessions.problems.append(
                f"{where}: {event.node} joins with session {event.session}, and session "
                f"{self._sessions_of[event.node]} of it is still there"
            )
        self._lives[event.session] = _Life(node=event.node, stage=event.stage, is_worker=event.role == "worker")
        self._sessions_of[event.node] = event.session

    def _read_leave(self, event: events.Leave, where: str) -> None:
        life = self._lives.get(event.session)
        if life is None or life.left_in_span is not None:
            self._sessions.problems.append(f"{where}: session {event.session} leaves and is not there")
        else:
            life.left_in_span = self._span
            self._moved.pop(event.session, None)
            if self._sessions_of.get(life.node) == event.session:
                del self._sessions_of[life.node]

    def _read_move(self, event: events.Move, where: str) -> None:
        life = self._lives.get(event.session)
        if life is None or life.left_in_span is not None or life.stage != event.stage:
            self._sessions.problems.append(
                f"{where}: session {event.session} is moved and is not in stage {event.stage}"
            )
        elif event.to == event.stage and not event.problem:
            self._sessions.problems.append(f"{where}: session {event.session} is moved to the stage that it is in")
        elif not event.problem:
            self._moved[event.session] = event.to

    def _read_checkpoint(self, event: events.Checkpoint, where: str) -> None:
        if event.problem:
            return
        if event.branch > self._branch or (event.branch == self._branch and event.step > self._next_step):
            self._steps.problems.append(
                f"{where}: a checkpoint of step {event.step} on branch {event.branch}; "
                f"the run is at step {self._next_step} on branch {self._branch}"
            )
        elif all(event.step <= later.step for later in self._rollbacks if later.branch > event.branch):
            self._checkpoints.add(event.step)

    def _read_rollback(self, event: events.Rollback, where: str) -> None:
        if event.branch != self._branch + 1:
            self._steps.problems.append(f"{where}: rolled back to branch {event.branch} from {self._branch}")
        if event.step > self._next_step:
            self._steps.problems.append(f"{where}: rolled back to step {event.step} from {self._next_step}")
        elif event.step != 0 and event.step not in self._checkpoints:
            self._steps.problems.append(f"{where}: rolled back to step {event.step}, which has no checkpoint")
        self._num_voided += max(0, self._next_step - event.step)
        self._committed = {step: done for step, done in self._committed.items() if step < event.step}
        self._checkpoints = {step for step in self._checkpoints if step <= event.step}
        self._rollbacks.append(event)
        self._branch, self._next_step = event.branch, event.step
        self._span += 1
        if self._start is not None:
            self._split = self._start.split

    def _read_commit(self, event: events.Commit, where: str) -> None:
        if self._start is None:
            return
        if event.step != self._next_step:
            self._steps.problems.append(f"{where}: expected step {self._next_step}")
        if event.branch != self._branch:
            self._steps.problems.append(f"{where}: branch {event.branch}, it was {self._branch}")
        if event.step >= self._start.steps:
            self._steps.problems.append(f"{where}: the run has {self._start.steps} steps")
        if self._start.split != self._split and event.step != 0 and event.step not in self._checkpoints:
            self._stages.problems.append(
                f"{where}: stages of {self._start.split} layers, they were {self._split}, nothing was rolled back, and "
                f"step {event.step} has no checkpoint"
            )
        num_stages = self._start.stages
        counts = Counter(stage.stage for stage in event.stages)
        for index in sorted(set(range(num_stages)) | set(counts)):
            if index >= num_stages:
                self._stages.problems.append(f"{where}: stage {index}, and the run has {num_stages}")
            elif counts[index] != 1:
                self._stages.problems.append(f"{where}: stage {index} is there {counts[index]} times")
        for stage in event.stages:
            place = f"{where}, stage {stage.stage}"
            self._check_generation(stage.stage, stage.round, place)
            self._claim_round(stage.stage, stage.round, f"committed in {where}", place)
            self._check_ledger(stage, place, num_microbatches=self._start.num_microbatches)
            self._check_sessions(stage, place)
        num_counted = sum(len(counted) for stage in event.stages for counted in stage.contributions.values())
        self._committed[event.step] = _Committed(num_stages=num_stages, num_counted=num_counted)
        # After what is wrong here, what follows is judged by what the log says, not by our count of it.
        self._next_step, self._branch, self._split = event.step + 1, event.branch, self._start.split
        self._span += 1

    def _check_generation(self, stage: int, round_: int, where: str) -> None:
        """Whoever opened a round ends it: its upper half says who that was."""
        if self._start is not None and round_ >> 32 != self._start.generation:
            self._stages.problems.append(
                f"{where}: round {round_} of stage {stage} is of generation {round_ >> 32}, and generation "
                f"{self._start.generation} is in force"
            )

    def _claim_round(self, stage: int, round_: int, fate: str, where: str) -> None:
        earlier = self._rounds.setdefault(round_, fate)
        if earlier is not fate:
            self._stages.problems.append(f"{where}: round {round_} of stage {stage} was {earlier}")

    def _check_ledger(self, stage: events.StageCommit, where: str, *, num_microbatches: int) -> None:
        counts = Counter(index for counted in stage.contributions.values() for index in counted)
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
            elif counted and life.left_in_span is not None and life.left_in_span < self._span:
                problem = f"{life.farewell} before this step began"
            elif session in self._moved:
                problem = f"was moved to stage {self._moved[session]}, and has not left"
            else:
                continue
            self._sessions.problems.append(f"{where}: session {session} {problem}")

    def _read_finish(self, event: events.Finish, where: str) -> None:
        self._finish = event
        if event.steps != self._next_step:
            self._end.problems.append(
                f"{where}: finished with {event.steps} steps, and {self._next_step} are committed"
            )
        if event.code != 0 or self._start is None:
            return
        if self._next_step != self._start.steps:
            self._end.problems.append(
                f"{where}: finished with code 0 after {self._next_step} of {self._start.steps} steps"
            )
        elif self._next_step not in self._checkpoints:
            self._end.problems.append(
                f"{where}: finished with code 0, and the state after step {self._next_step - 1} has no checkpoint"
            )

    # -- what is said when all is well ---------------------------------------------------------------

    def _conclude(self, *, num_lines: int, torn_bytes: int) -> None:
        start, num_commits, counts = self._start, self._next_step, self._counts
        torn = f"; {torn_bytes} bytes of a torn last line are not counted" if torn_bytes else ""
        restarts = _also(counts["start"] - 1, "restart of the trainer", "restarts of the trainer")
        self._log.found = f"{num_lines} records{restarts}{torn}"
        if start is None:
            self._log.problems.insert(0, "the log has no start of a run")
            return
        branches = f"branch {self._branch}" if self._branch == 0 else f"branches 0 to {self._branch}"
        steps = f"0 to {num_commits - 1}, each once, in order, on {branches}" if num_commits else "none"
        voided = _also(counts["rollback"], "rollback") + _also(self._num_voided, "step voided", "steps voided")
        self._steps.found = f"{num_commits} of {start.steps} committed: {steps}{voided}"
        stages = " or ".join(map(str, sorted({done.num_stages for done in self._committed.values()} | {start.stages})))
        aborted = _also(counts["abort"], "aborted", "aborted")
        self._stages.found = f"{stages} in every commit, {len(self._rounds)} rounds, none used twice{aborted}"
        num_counted = sum(done.num_counted for done in self._committed.values())
        replays = _also(counts["replay"], "replay")
        self._ledgers.found = (
            f"{num_counted} contributions = {num_commits} steps x {stages} stages x "
            f"{start.num_microbatches} microbatches, each counted exactly once{replays}"
        )
        left = _also(counts["leave"], "left", "left")
        contributed, joined = len(self._contributors), len(self._lives)
        self._sessions.found = f"{contributed} workers contributed, {joined} processes joined{left}"
        if self._finish is None:
            last = f"after step {num_commits - 1}" if num_commits else "before the first step was committed"
            self._end.found = f"the log ends {last}: the run was cut short"
        else:
            self._end.found = _ending(self._finish, start)


def _ending(finish: events.Finish, start: events.Start) -> str:
    """Return how the run has ended by its own account."""
    if finish.steps == start.steps and not finish.code:
        return f"finished with {finish.steps} steps"
    done = f"after {finish.steps} of {start.steps} steps"
    if finish.code == INTERRUPTED:
        return f"interrupted {done}"
    return f"ended with code {finish.code} {done}" if finish.code else f"ended {done}"


def _also(count: int, one: str, many: str = "") -> str:
    """Return ", 2 replays", and nothing for none."""
    return f", {count} {one if count == 1 else many or one + 's'}" if count > 0 else ""
