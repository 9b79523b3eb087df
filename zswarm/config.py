"""The run file: everything that decides a run, checked once, before anything starts.

A run file is TOML with the sections of `RunConfig`. Every wrong value becomes a `UserError` that names
the file, the `section.key`, what is wrong with it and what to write instead. The trainer sends the checked
configuration to every worker as canonical JSON, so workers need no file.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PositiveInt,
    ValidationError,
    model_validator,
)

from zswarm import limits
from zswarm.config_errors import describe
from zswarm.errors import RemoteProtocolError, UserError
from zswarm.planning.planners import Rebalancing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
BYTE_VALUES = 256
"""Distinct tokens of a byte-level data source."""
MAX_STEPS = 2**32 - 1
MAX_SEED = 2**63 - 1
AllReduceCodec = Literal["none", "bf16"]


def _paths(value: object) -> object:
    """Turn `source` into "stdlib" or a tuple of paths; what is neither stays as it is."""
    if value == "stdlib":
        return value
    paths = [value] if isinstance(value, str) else value
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(path, str) and path for path in paths):
        return tuple(paths)
    raise ValueError('must be "stdlib", a path or glob in quotes, or a list of those')


def _split(value: object) -> object:
    """Turn `split` into "auto" or a tuple of layer counts."""
    if value == "auto":
        return value
    if isinstance(value, (list, tuple)) and all(type(count) is int and count >= 1 for count in value):
        return tuple(value)
    raise ValueError('must be "auto" or a list with the number of layers of each stage, such as [2, 3, 3]')


def _betas(value: object) -> object:
    """Turn `betas` into a pair of floats in [0, 1)."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        numbers = [float(beta) for beta in value if type(beta) in {int, float} and 0 <= beta < 1]
        if len(numbers) == len(value):
            return tuple(numbers)
    raise ValueError("must be two numbers, each at least 0 and below 1, such as [0.9, 0.95]")


Source = Literal["stdlib"] | tuple[str, ...]
Split = Literal["auto"] | tuple[int, ...]


class Section(BaseModel):
    """A section of the run file: immutable, unknown keys refused, no type bent into another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(Section):
    """What the run is called and how long it is."""

    name: Annotated[str, Field(pattern=RUN_NAME)] = "run"
    """Letters, digits, dot, dash and underscore: it names the run folder."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    """Optimizer steps."""


class ModelSection(Section):
    """Which model: every key but `factory` is an argument of the factory."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    factory: Annotated[str, Field(min_length=1, max_length=limits.MAX_TEXT_CHARS)] = "gpt"
    """A built-in name such as `gpt`, or `package.module:function`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the factory, values as JSON has them."""
        return dict(self.__pydantic_extra__)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        length = self.arguments.get("sequence_length")
        if type(length) is not int or not 1 <= length <= limits.MAX_DIMENSION:
            near = difflib.get_close_matches("sequence_length", self.arguments, n=1)
            missing = f"is missing (model.{near[0]} is something else)" if near else "is missing"
            problem = missing if length is None else f"must not be {length!r}"
            raise ValueError(
                f"model.sequence_length {problem}: write a whole number from 1 to {limits.MAX_DIMENSION}, "
                "the bytes of one sequence, such as sequence_length = 128"
            )
        vocabulary = self.arguments.get("vocab_size", BYTE_VALUES)
        if type(vocabulary) is not int or vocabulary < BYTE_VALUES:
            raise ValueError(
                f"model.vocab_size must not be {vocabulary!r}: tokens are bytes, write {BYTE_VALUES} or more"
            )
        return self


class DataSection(Section):
    """What is trained on, and what is kept aside to measure the loss on."""

    source: Annotated[Source, BeforeValidator(_paths)] = "stdlib"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the corpus that is never trained on."""
    held_out_microbatches: Annotated[int, Field(ge=1, le=limits.MAX_MICROBATCHES)] = 8


class BatchSection(Section):
    """Sizes in sequences, and how the gradients of a step's microbatches become one."""

    global_batch: Annotated[int, Field(ge=1)]
    """Sequences of one optimizer step."""
    microbatch: Annotated[int, Field(ge=1, le=limits.MAX_DIMENSION)]
    """Sequences that travel through the pipeline together."""
    accumulation: Literal["float32", "exact"] = "float32"
    """How gradients are summed: `exact` in fixed point, where neither order nor who computed what changes a bit."""

    @model_validator(mode="after")
    def _check_divisible(self) -> Self:
        count, rest = divmod(self.global_batch, self.microbatch)
        if rest:
            near = [number for number in (count * self.microbatch, (count + 1) * self.microbatch) if number]
            raise ValueError(
                f"batch.global_batch = {self.global_batch} is not a multiple of batch.microbatch = "
                f"{self.microbatch}: write global_batch = {' or '.join(map(str, near))}"
            )
        if count > limits.MAX_MICROBATCHES:
            least = -(-self.global_batch // limits.MAX_MICROBATCHES)
            raise ValueError(
                f"batch.global_batch = {self.global_batch} makes {count} microbatches of {self.microbatch}; a step "
                f"has at most {limits.MAX_MICROBATCHES}: write microbatch = {least} or more"
            )
        return self


class PipelineSection(Section):
    """How the layers are cut into stages and how microbatches find their way."""

    stages: Annotated[int, Field(ge=1, le=limits.MAX_STAGES)] = 1
    split: Annotated[Split, BeforeValidator(_split)] = "auto"
    """Layers of each stage; `auto` cuts them evenly by cost."""
    wiring: Literal["queue", "iwrr", "uniform", "fixed"] = "queue"
    recompute: Literal["auto", "always", "never"] = "auto"
    rebalancing: Rebalancing = "priced"
    """Who moves to another stage: workers whose move is worth its cost, the paper's Algorithm 2, or nobody."""
    backup: Literal["auto", "never"] = "auto"
    """Copies of what each worker has counted in a step, at another one of its stage: as often as they are worth it, or never."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """In what arithmetic layers compute; parameters, gradients and the optimizer are float32 in any case."""
    window: Annotated[int, Field(ge=1, le=limits.MAX_MICROBATCHES)] | None = None
    """Most microbatches in the pipeline at once; without it, the trainer decides."""

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.split != "auto" and len(self.split) != self.stages:
            raise ValueError(
                f"pipeline.split has {len(self.split)} numbers and pipeline.stages = {self.stages}: "
                'write one number of layers for each stage, or split = "auto"'
            )
        return self


class WireSection(Section):
    """How tensors travel."""

    codec: Literal["none", "bf16", "int8", "bnb8"] = "int8"
    """Encoding of activations and their gradients on every leg."""
    all_reduce: AllReduceCodec = "none"
    """Encoding of the parameters' gradients that the workers of a stage add up."""


class OptimizerSection(Section):
    """The optimizer step; a run file gives `betas` to adamw only and `momentum` to sgd only."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: Annotated[tuple[float, float], BeforeValidator(_betas)] = (0.9, 0.95)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the whole model's gradient; 0 does not clip."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0


class CheckpointSection(Section):
    """What the run folder keeps, to go on from after a loss that the swarm does not survive."""

    every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    """Optimizer steps from one checkpoint to the next."""
    keep: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 3
    """How many of the newest stay."""


class RunConfig(Section):
    """A whole run file."""

    run: RunSection
    model: ModelSection
    data: DataSection = DataSection()
    batch: BatchSection
    pipeline: PipelineSection = PipelineSection()
    wire: WireSection = WireSection()
    optimizer: OptimizerSection = OptimizerSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _check_exact(self) -> Self:
        if self.batch.accumulation == "exact" and self.wire.all_reduce != "none":
            raise ValueError(
                f'wire.all_reduce = "{self.wire.all_reduce}" rounds what batch.accumulation = "exact" keeps exact: '
                'write all_reduce = "none", or accumulation = "float32"'
            )
        return self

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one optimizer step."""
        return self.batch.global_batch // self.batch.microbatch

    @property
    def sequence_length(self) -> int:
        """Tokens of one sequence."""
        return int(self.model.arguments["sequence_length"])

    def canonical_json(self) -> bytes:
        """Return the configuration as JSON; equal configurations give equal bytes."""
        tree = self.model_dump(mode="json")
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json_untrusted(cls, buffer: bytes) -> Self:
        """Read what `canonical_json` wrote and the network brought.

        Raises:
            RemoteProtocolError: it is not a valid configuration.

        """
        try:
            return cls.model_validate_json(bytes(buffer))
        except (ValidationError, RecursionError) as error:
            raise RemoteProtocolError(f"the run's configuration is not valid: {error}") from None


class Commission(RunConfig):
    """What workers are told: the run file, and what was worked out of it once."""

    inputs: tuple[tuple[PositiveInt, ...], ...] = ()
    """Shape of one microbatch at each stage's input; empty where nobody knows."""

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if self.inputs and len(self.inputs) != self.pipeline.stages:
            raise ValueError(f"{len(self.inputs)} inputs for {self.pipeline.stages} stages")
        return self


def load_run_file(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run file.

    `overrides` are `section.key=value` texts whose values are TOML, or plain text where they are no
    TOML. Relative paths of `data.source` count from the run file's folder, or from the current one
    where an override gives them.

    Raises:
        UserError: the file, or an override, is wrong; the text names every problem.

    """
    path = Path(path)
    tree = _read(path)
    _anchor(tree, path.parent)
    origins = {}
    for override in overrides:
        section, key, value = _parse_override(override)
        overridden = tree.setdefault(section, {})
        if not isinstance(overridden, dict):
            raise UserError(f"{path}: {section} must be a section: write [{section}] and its keys below it")
        fragment = {section: {key: value}}
        _anchor(fragment, Path.cwd())
        overridden.update(fragment[section])
        origins[section, key] = f"--set {override}"
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(error, schema=RunConfig, path=path, origins=origins)) from None
    _refuse_unused(config.optimizer, path, origins)
    return config


def _refuse_unused(optimizer: OptimizerSection, path: Path, origins: Mapping[tuple[str, str], str]) -> None:
    """Refuse a key that is given and means nothing to the optimizer: whoever wrote it expects that it does something.

    Not a rule of the section: the configuration that a worker gets says all keys.
    """
    key, other = ("betas", "adamw") if optimizer.name == "sgd" else ("momentum", "sgd")
    if key not in optimizer.model_fields_set:
        return
    origin = origins.get(("optimizer", key))
    place = f"{origin}: " if origin else ""
    raise UserError(
        f"{path}: {place}optimizer.{key} is for {other} only, and optimizer.name = '{optimizer.name}': "
        f'leave {key} out, or write name = "{other}"'
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such run file: correct its path, or have `zswarm init` make one"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the run file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 (byte {error.start}); a run file is TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML: nested too deeply") from None


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or "." in key:
        raise UserError(f"--set {override}: write SECTION.KEY=VALUE, such as --set run.steps=50")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return section, key, text
    return section, key, parsed["value"] if set(parsed) == {"value"} else text


def _anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of `data.source` absolute, in place."""
    section = tree.get("data")
    source = section.get("source") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(source, str) and source not in {"", "stdlib"}:
        section["source"] = [str(folder.absolute() / Path(source).expanduser())]
    elif isinstance(section, dict) and isinstance(source, list):
        section["source"] = [
            str(folder.absolute() / Path(item).expanduser()) if isinstance(item, str) and item else item
            for item in source
        ]
