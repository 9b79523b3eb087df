"""What a trainer needs of a run beside its file: the plan, made here because it takes torch, which the trainer does not, and
the samples."""

from __future__ import annotations

from pathlib import Path

from stages.partition import plan
from zswarm.config import RunConfig
from zswarm.data import Source, open_source
from zswarm.errors import UserError
from zswarm.trainer.service import Plan


def prepare_run(config: RunConfig, run_file: Path) -> tuple[Plan, Source]:
    """Cut the model into stages and open the data.

    Raises:
        UserError: the model does not exist, does not chain, or has too few layers; a file of the data is missing or
            unreadable, or all of them are too small. The text begins with the run file.

    """
    try:
        return _plan(config), open_source(config)
    except UserError as error:
        raise type(error)(f"{run_file}: {error}") from error


def _plan(config: RunConfig) -> Plan:
    partition = plan(config)
    return Plan(
        layers_per_stage=partition.layers_per_stage,
        inputs=tuple(stage.input_shape for stage in partition.stages),
        unit_bytes=partition.unit_bytes,
        stage_costs=tuple(stage.cost for stage in partition.stages),
        state_bytes=tuple(stage.state_bytes for stage in partition.stages),
        targets_per_sample=partition.targets_per_sample,
    )
