"""The plan of a run for its trainer, made here because it takes torch, which the trainer does not."""

from __future__ import annotations

from stages.partition import plan
from zswarm.config import RunConfig
from zswarm.trainer.service import Plan


def plan_run(config: RunConfig) -> Plan:
    """Cut the model into stages.

    Raises:
        UserError: the model does not exist, does not chain, or has too few layers.

    """
    partition = plan(config)
    return Plan(
        layers_per_stage=partition.layers_per_stage,
        inputs=tuple(stage.input_shape for stage in partition.stages),
        unit_bytes=partition.unit_bytes,
        stage_costs=tuple(stage.cost for stage in partition.stages),
        state_bytes=tuple(stage.state_bytes for stage in partition.stages),
        targets_per_sample=partition.targets_per_sample,
    )
