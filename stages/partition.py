"""Which layers make which stage, and what follows from it for the wire.

`auto` cuts the layers where the costliest stage is as cheap as it can be, and of all such cuts takes the
most even one. It depends on the configuration alone, so every process comes to the same cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.model import Model, load_model
from stages.optimizer import num_states
from stages.trace import LayerTrace, cost, trace
from zswarm import limits
from zswarm.compression import load_size_bytes
from zswarm.config import RunConfig
from zswarm.errors import UserError

TOKEN_DTYPE = torch.uint8
BYTES_PER_VALUE = 4
"""Of parameters and optimizer state: both are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage."""

    first_layer: int
    num_layers: int
    input_shape: tuple[int, ...]
    """Of one microbatch."""
    input_dtype: torch.dtype
    """As it travels: tokens are bytes."""
    num_parameters: int
    state_bytes: int
    """Parameters and optimizer state."""
    cost: float
    """Of forward and backward of one microbatch, in floating-point operations."""
    unit_bytes: int
    """Encoded size of one microbatch at this stage, the larger of its input, with what rides along, and of
    the gradient of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """All stages of a run."""

    stages: tuple[StagePlan, ...]
    targets_per_sample: int

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """Numbers of layers, stage 0 first."""
        return tuple(stage.num_layers for stage in self.stages)

    @property
    def unit_bytes(self) -> tuple[int, ...]:
        """What one microbatch costs at each stage: the larger of its input and of the gradient of its output."""
        return tuple(stage.unit_bytes for stage in self.stages)


def plan(config: RunConfig) -> Partition:
    """Check the model and cut it into stages.

    Raises:
        UserError: the model does not exist or does not chain, the split does not fit its layers, or a
            microbatch is too large to travel.

    """
    model = load_model(config.model.factory, config.model.arguments)
    counts = None if config.pipeline.split == "auto" else checked_split(config, len(model.layers))
    _check_num_stages(config, len(model.layers))
    layers = trace(
        model, batch_size=config.batch.microbatch, sequence_length=config.sequence_length, seed=config.run.seed
    )
    if counts is None:
        counts = split_evenly([cost(layer) for layer in layers], config.pipeline.stages)
    stages = []
    first = 0
    for index, count in enumerate(counts):
        stages.append(_stage(config, layers, first, count))
        _check_unit(config, stages[-1], index)
        first += count
    return Partition(stages=tuple(stages), targets_per_sample=config.sequence_length)


def layers_of_stage(config: RunConfig, model: Model, stage: int) -> range:
    """Return the layers of one stage; quick where the configuration says the split.

    Raises:
        UserError: as `plan`.

    """
    if config.pipeline.split == "auto":
        counts = plan(config).layers_per_stage
    else:
        counts = checked_split(config, len(model.layers))
    first = sum(counts[:stage])
    return range(first, first + counts[stage])


def checked_split(config: RunConfig, num_layers: int) -> tuple[int, ...]:
    """Return the run file's split.

    Raises:
        UserError: it does not add up to the model's layers.

    """
    counts = tuple(int(count) for count in config.pipeline.split)
    if sum(counts) != num_layers:
        raise UserError(
            f"pipeline.split = {list(counts)} adds up to {sum(counts)} layers and the model has {num_layers}: "
            f'write {len(counts)} numbers that add up to {num_layers}, or split = "auto"'
        )
    return counts


def split_evenly(costs: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Return the layer counts of the contiguous cut with the smallest largest stage cost.

    Among those, the one with the smallest sum of squares. Every stage gets at least one layer;
    `num_stages` is at most the number of layers.
    """
    num_layers = len(costs)
    sums = [0.0]
    for layer_cost in costs:
        sums.append(sums[-1] + layer_cost)

    def best(bound: float, *, by_largest: bool) -> list[list[tuple[float, int]]]:
        """Return for each number of stages and layers the best value and where its last stage begins."""
        table = [[(math.inf, 0)] * (num_layers + 1) for _ in range(num_stages + 1)]
        table[0][0] = (0.0, 0)
        for used in range(1, num_stages + 1):
            for end in range(used, num_layers + 1):
                for begin in range(used - 1, end):
                    own = sums[end] - sums[begin]
                    before = table[used - 1][begin][0]
                    if own <= bound and before < math.inf:
                        value = max(before, own) if by_largest else before + own * own
                        table[used][end] = min(table[used][end], (value, begin))
        return table

    largest = best(math.inf, by_largest=True)[num_stages][num_layers][0]
    table = best(largest, by_largest=False)
    counts: list[int] = []
    end = num_layers
    for used in range(num_stages, 0, -1):
        begin = table[used][end][1]
        counts.append(end - begin)
        end = begin
    return tuple(reversed(counts))


def _check_num_stages(config: RunConfig, num_layers: int) -> None:
    if num_layers > limits.MAX_LAYERS:
        raise UserError(
            f"the model has {num_layers} layers, and a run may have {limits.MAX_LAYERS}: let each of them do more"
        )
    if config.pipeline.stages > num_layers:
        raise UserError(
            f"pipeline.stages = {config.pipeline.stages} and the model has {num_layers} layers: "
            f"write stages = {num_layers} or fewer, or give the model more layers"
        )


def _stage(config: RunConfig, layers: Sequence[LayerTrace], first: int, count: int) -> StagePlan:
    own = layers[first : first + count]
    samples = (config.batch.microbatch, config.sequence_length)
    labels = (samples, TOKEN_DTYPE)
    shape, dtype = (samples, TOKEN_DTYPE) if first == 0 else (own[0].input_shape, own[0].input_dtype)
    sizes = [load_size_bytes([(shape, dtype), labels], config.wire.codec)]
    if first + count < len(layers):
        sizes.append(load_size_bytes([(own[-1].output_shape, own[-1].output_dtype)], config.wire.codec))
    num_parameters = sum(layer.num_parameters for layer in own)
    return StagePlan(
        first_layer=first,
        num_layers=count,
        input_shape=shape,
        input_dtype=dtype,
        num_parameters=num_parameters,
        state_bytes=BYTES_PER_VALUE * num_parameters * (1 + num_states(config.optimizer)),
        cost=sum(cost(layer) for layer in own),
        unit_bytes=max(sizes),
    )


def _check_unit(config: RunConfig, stage: StagePlan, index: int) -> None:
    if 2 * stage.unit_bytes > limits.MAX_PAYLOAD_BYTES:
        mib = stage.unit_bytes / 2**20
        most = limits.MAX_PAYLOAD_BYTES / 2**21
        fitting = int(config.batch.microbatch * most / mib)
        instead = f"write microbatch = {fitting} or less" if fitting else "use shorter sequences or a smaller model"
        raise UserError(
            f"batch.microbatch = {config.batch.microbatch} makes {mib:.1f} MiB of each microbatch at stage {index}, "
            f"and {most:.0f} MiB can travel: {instead}"
        )
