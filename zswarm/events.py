"""What the lines of `events.jsonl` say, checked.

Every record has `event` and `time_s` (seconds since the run began). Other fields than these may follow
in newer versions and are ignored, as are records of other kinds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from zswarm.limits import MAX_MICROBATCHES, MAX_STAGES

U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Count = Annotated[int, Field(ge=1)]
StageIndex = Annotated[int, Field(ge=0, lt=MAX_STAGES)]
MicrobatchIndex = Annotated[int, Field(ge=0, lt=MAX_MICROBATCHES)]
SessionKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,19})$")]
"""JSON's keys are texts: a session in decimal digits."""


class Event(BaseModel):
    """What every record has."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    time_s: Annotated[float, Field(ge=0)] = 0.0


class Start(Event):
    """The trainer has begun, or begun again with a higher generation."""

    event: Literal["start"]
    run: str
    """64 bits as hexadecimal digits."""
    generation: U64
    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)]
    split: list[Count]
    """Layers of each stage."""
    steps: Count
    num_microbatches: Annotated[int, Field(ge=1, le=MAX_MICROBATCHES)]
    basis: str = ""
    """Of what is computed, see CoordinatorSettings: on another one nobody goes on. The oldest logs have none."""


class Join(Event):
    """A process takes part from here on."""

    event: Literal["join"]
    node: str
    role: Literal["worker", "broker"]
    session: U64
    stage: StageIndex


class Leave(Event):
    """A process takes part no longer; its session is void."""

    event: Literal["leave"]
    session: U64


class Move(Event):
    """A worker is to go on in another stage, with a new session; with a `problem` it is not, after all."""

    event: Literal["move"]
    node: str
    session: U64
    stage: StageIndex
    """Where it was."""
    to: StageIndex
    problem: str | None = None


class StageCommit(BaseModel):
    """Whose gradients one stage's step is made of."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    stage: StageIndex
    round: U64
    digest: U64
    contributions: dict[SessionKey, list[MicrobatchIndex]]


class Commit(Event):
    """An optimizer step was decided, for all stages at once."""

    event: Literal["commit"]
    branch: U64
    step: U64
    stages: list[StageCommit]


class Abort(Event):
    """A round was given up; nothing of it counts."""

    event: Literal["abort"]
    stage: StageIndex
    round: U64


class Replay(Event):
    """Microbatches are computed again from their samples: what earlier attempts at them made is void."""

    event: Literal["replay"]
    step: U64
    attempt: U64
    microbatches: list[MicrobatchIndex]


class Checkpoint(Event):
    """The state after the first `step` steps is on the disk as a whole; with a `problem` it is not."""

    event: Literal["checkpoint"]
    branch: U64
    step: U64
    problem: str | None = None


class Rollback(Event):
    """From here on the run goes on from `step` on a new branch: the commits of this step and later ones are void."""

    event: Literal["rollback"]
    branch: U64
    """The new one."""
    step: U64


class Finish(Event):
    """The run has ended; `steps` were committed. With code 0 it says that these were all."""

    event: Literal["finish"]
    steps: U64
    code: int | None = None


Known = Start | Join | Leave | Move | Commit | Abort | Replay | Checkpoint | Rollback | Finish
_KINDS = {"start", "join", "leave", "move", "commit", "abort", "replay", "checkpoint", "rollback", "finish"}
_ADAPTER: TypeAdapter[Known] = TypeAdapter(Annotated[Known, Field(discriminator="event")])


def parse(record: dict[str, Any]) -> Known | None:
    """Return the record's event, None for a kind that is not known here.

    Raises:
        ValueError: it is none; the text says which field is wrong.

    """
    kind = record.get("event")
    if not isinstance(kind, str):
        raise ValueError("it has no text `event`")  # noqa: TRY004 - one kind of error for all that is wrong
    if kind not in _KINDS:
        return None
    try:
        return _ADAPTER.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}") from None
