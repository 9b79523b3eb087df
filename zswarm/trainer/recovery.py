"""What the event log of a run says to the trainer that takes it up again.

The log is the only thing that a trainer must not lose: the run, the number of the next session, the branch and
the last committed step, with what every worker needs to apply it. What is in flight is not in it; workers
and brokers report that themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from zswarm import events, limits
from zswarm.bequests import Left
from zswarm.ids import Address, Branch, Generation, NodeId, Role, Round, RunId, Session, Stage, Step, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredMember:
    """A process that had joined and had not left."""

    session: Session
    node: NodeId
    boot_nonce: int
    role: Role
    stage: Stage
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredCommit:
    """The last commit, for workers that hold its result and have not applied it."""

    step: Step
    scale: float
    lr: float
    apply: bool
    rounds: dict[Stage, tuple[Round, int]]
    """The round of each stage and the digest of its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """See the module."""

    run: RunId
    generation: Generation
    """The least of the trainer that reads this: one more than any in the log."""
    next_session: Session
    branch: Branch
    step: Step
    """The step that is to be committed next."""
    members: tuple[RecoveredMember, ...]
    commit: RecoveredCommit | None
    """None before the first commit and right after a rollback."""
    moves: dict[NodeId, tuple[Role, Stage]] = field(default_factory=dict)
    """Processes that were moved and have not joined since, and where they shall be."""
    bequests: dict[Session, Left] = field(default_factory=dict)
    """By leaver, whose what of its count is, in the step in work."""
    held_out: dict[Step, float] = field(default_factory=dict)
    """Held-out losses that are known, by step."""
    checkpoint: Version | None = None
    """The newest that the log calls complete; whether it still is, the disk knows."""
    checkpoints: tuple[Version, ...] = ()
    """All that the log calls complete, of the present history, by step."""
    losses: tuple[float, ...] = ()
    """Of the committed steps of the branch in force, from the first; nan where a loss was not finite."""
    rollbacks: tuple[Version, ...] = ()
    """The branches that were begun by going back, and to which step."""
    basis: str = ""
    """Of the last generation, see CoordinatorSettings: members and commit are on it."""
    exit_code: int | None = None
    """How the last generation has ended; None if the log does not say that it has."""
    wall_s: float = 0.0
    """How long the earlier generations have lasted together."""

    def is_void(self, version: Version) -> bool:
        """Are parameters of this version no part of the run's present history?"""
        branch, step = version
        is_undone = any(branch < later and step > to for later, to in self.rollbacks)
        return is_undone or branch > self.branch or step > self.step

    def is_done(self, steps: int) -> bool:
        """Has a run of so many steps ended well?"""
        return self.exit_code == 0 and self.step >= steps


def recover(records: Iterable[dict[str, Any]]) -> Recovered | None:
    """Return what the records say, None if no run has begun in them.

    Raises:
        ValueError: the records contradict themselves; the text says where.

    """
    reader = _Reader()
    for number, record in enumerate(records, 1):
        try:
            reader.read(record)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return reader.recovered()


# -- the records, as far as they matter here -----------------------------------------------------------

Flag = Annotated[bool, Field(strict=True)]


class _Start(events.Event):
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{1,16}$")]
    generation: events.U64
    basis: str = ""


class _Join(events.Event):
    node: str
    role: str
    session: events.Count
    stage: events.StageIndex
    boot_nonce: events.U64
    addresses: Annotated[list[str], Field(min_length=1, max_length=2)]


class _Leave(events.Event):
    session: events.U64
    heir: events.U64 | None = None
    left: list[Annotated[int, Field(ge=0, lt=limits.MAX_MICROBATCHES)]] = Field(default_factory=list)


class _Move(events.Event):
    node: str
    session: events.U64
    to: events.StageIndex
    problem: str | None = None


class _Commit(events.Event):
    branch: events.U64
    step: events.U64
    loss: float | None = None
    scale: float
    lr: float
    apply: Flag
    stages: list[events.StageCommit]


class _Version(events.Event):
    """A checkpoint or a rollback."""

    branch: events.U64
    step: events.U64
    problem: str | None = None


class _Evaluation(events.Event):
    step: events.U64
    loss: float | None = None


class _Finish(events.Event):
    code: int | None = None


E = TypeVar("E", bound=events.Event)


def _checked(kind: type[E], record: dict[str, Any]) -> E:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (record["event"], *first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None


class _Reader:
    """Follows the log from its first record to its last."""

    def __init__(self) -> None:
        self._run: RunId | None = None
        self._generation = 0
        self._basis = ""
        self._sessions: set[int] = set()
        """All that were ever issued."""
        self._members: dict[int, RecoveredMember] = {}
        self._moves: dict[NodeId, tuple[Role, Stage]] = {}
        self._bequests: dict[Session, Left] = {}
        self._branch, self._step = Branch(0), Step(0)
        self._commit: RecoveredCommit | None = None
        self._losses: list[float] = []
        self._held_out: dict[Step, float] = {}
        self._checkpoints: list[Version] = []
        self._rollbacks: list[Version] = []
        self._exit_code: int | None = None
        self._time_s = self._wall_s = 0.0

    def recovered(self) -> Recovered | None:
        """See `recover`."""
        if self._run is None:
            return None
        found = Recovered(
            run=self._run,
            generation=Generation(self._generation + 1),
            next_session=Session(max(self._sessions, default=0) + 1),
            branch=self._branch,
            step=self._step,
            members=tuple(self._members.values()),
            commit=self._commit,
            moves=self._moves,
            bequests=self._bequests,
            held_out=self._held_out,
            losses=tuple(self._losses),
            rollbacks=tuple(self._rollbacks),
            basis=self._basis,
            exit_code=self._exit_code,
            wall_s=self._wall_s + self._time_s,
        )
        usable = [version for version in self._checkpoints if not found.is_void(version)]
        usable.sort(key=lambda version: (version[1], version[0]))
        return replace(found, checkpoints=tuple(usable), checkpoint=usable[-1] if usable else None)

    def read(self, record: dict[str, Any]) -> None:
        """Take in the next record; what is of no account here is skipped."""
        match record.get("event"):
            case "start":
                self._start(_checked(_Start, record))
            case "join":
                self._join(_checked(_Join, record))
            case "leave":
                self._leave(_checked(_Leave, record))
            case "move":
                self._move(_checked(_Move, record))
            case "commit":
                self._committed(_checked(_Commit, record))
            case "evaluation":
                evaluation = _checked(_Evaluation, record)
                self._held_out[Step(evaluation.step)] = _number(evaluation.loss)
            case "checkpoint":
                self._checkpoint(_checked(_Version, record))
            case "rollback":
                self._roll_back(_checked(_Version, record))
            case "finish":
                # Every process of that life was told to end; a code is always there but in the oldest logs.
                self._exit_code = _checked(_Finish, record).code or 0
                self._members.clear()
                self._moves.clear()
                self._bequests.clear()
        time_s = record.get("time_s")
        if isinstance(time_s, int | float):
            self._time_s = max(self._time_s, float(time_s))

    def _start(self, start: _Start) -> None:
        run = RunId(int(start.run, 16))
        if self._run not in {None, run}:
            raise ValueError(f"run {run:016x}, it was {self._run:016x}")
        if start.generation <= self._generation:
            raise ValueError(f"generation {start.generation} after {self._generation}")
        if self._run is not None:
            self._wall_s, self._time_s = self._wall_s + self._time_s, 0.0
        self._run, self._generation = run, start.generation
        if start.basis != self._basis:
            # Whoever took part before was told to end, or never heard of it: in any case it cannot go on as it is.
            self._basis = start.basis
            self._forget_members()
        self._exit_code = None

    def _forget_members(self) -> None:
        self._members.clear()
        self._moves.clear()
        self._bequests.clear()
        self._commit = None

    def _join(self, join: _Join) -> None:
        if join.session in self._sessions:
            raise ValueError(f"session {join.session} joins a second time")
        self._sessions.add(join.session)
        self._moves.pop(NodeId(join.node), None)
        self._members[join.session] = RecoveredMember(
            session=Session(join.session),
            node=NodeId(join.node),
            boot_nonce=join.boot_nonce,
            role=Role(join.role),
            stage=Stage(join.stage),
            addresses=tuple(Address(address) for address in join.addresses),
        )

    def _leave(self, leave: _Leave) -> None:
        if leave.session not in self._sessions:
            raise ValueError(f"session {leave.session} leaves and has not joined")
        self._members.pop(leave.session, None)
        if leave.heir is not None:
            left = sum(1 << number for number in set(leave.left))
            self._bequests[Session(leave.session)] = Left(Session(leave.heir), left)

    def _move(self, move: _Move) -> None:
        member = self._members.get(move.session)
        if move.problem is None and member is not None:
            self._moves[member.node] = (member.role, Stage(move.to))

    def _committed(self, commit: _Commit) -> None:
        if self._run is None:
            raise ValueError("a commit before the start of the run")
        if (commit.branch, commit.step) != (self._branch, self._step):
            raise ValueError(
                f"step {commit.step} is committed on branch {commit.branch}, and step {self._step} of "
                f"branch {self._branch} is next"
            )
        self._commit = RecoveredCommit(
            step=self._step,
            scale=commit.scale,
            lr=commit.lr,
            apply=commit.apply,
            rounds={Stage(s.stage): (Round(s.round), s.digest) for s in commit.stages},
        )
        self._bequests.clear()
        self._losses.append(_number(commit.loss))
        self._step = Step(self._step + 1)

    def _checkpoint(self, checkpoint: _Version) -> None:
        if checkpoint.problem is not None:
            return
        version = (Branch(checkpoint.branch), Step(checkpoint.step))
        if version[0] == self._branch and version[1] > self._step:
            raise ValueError(f"a checkpoint of step {version[1]}, and step {self._step} is next")
        self._checkpoints.append(version)

    def _roll_back(self, rollback: _Version) -> None:
        if rollback.branch <= self._branch or rollback.step > self._step:
            raise ValueError(
                f"back to step {rollback.step} on branch {rollback.branch}, and step {self._step} of branch "
                f"{self._branch} is next"
            )
        self._branch, self._step = Branch(rollback.branch), Step(rollback.step)
        self._bequests.clear()
        self._rollbacks.append((self._branch, self._step))
        self._commit = None
        del self._losses[self._step :]
        self._held_out = {step: loss for step, loss in self._held_out.items() if step <= self._step}


def _number(value: float | None) -> float:
    """Return a number of the log, where null stands for one that is not finite."""
    return float("nan") if value is None else value
