"""The tasks of a worker's compute thread, carried out: stages/tasks.py made real.

    Build                        the stage's layers, engine and optimizer from the run's configuration
    Run                          a job, see stages/passes.py
    Snapshot, Sum, Assemble      the arithmetic of the all-reduce, see stages/shards.py
    Apply                        the optimizer step, then everything of the old step is forgotten
    Export                       a range of a layer's state

Whatever goes wrong here, in a layer or in a peer's contribution to a sum, becomes Failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from stages import shards
from stages.engine import LayerFailed, StageEngine, one_line
from stages.flat import digest, square_norm
from stages.kept import Kept
from stages.memory import MemoryGauge, gauge_of
from stages.model import build_layer, load_model
from stages.optimizer import FlatOptimizer
from stages.partition import layers_of_stage
from stages.passes import Passes
from stages.tasks import (
    Applied,
    Apply,
    Assemble,
    Assembled,
    Build,
    Built,
    Discard,
    Export,
    Exported,
    Failed,
    Outcome,
    Run,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    Task,
)
from zswarm import limits
from zswarm.config import RunConfig
from zswarm.errors import LocalProtocolError, ZswarmError
from zswarm.ids import Round
from zswarm.wire import parcelled


@dataclass(slots=True)
class _Built:
    """What Build makes."""

    engine: StageEngine
    kept: Kept
    passes: Passes
    optimizer: FlatOptimizer


class Compute:
    """Carries out one task after the other on one device; `gauge` measures its memory."""

    def __init__(self, *, device: torch.device | None = None, gauge: MemoryGauge | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._gauge = gauge or gauge_of(self._device)
        self._built: _Built | None = None
        self._reduced: Tensor | None = None
        self._reduced_round: Round | None = None
        self._exported: tuple[int, bytes] | None = None

    def perform(self, task: Task) -> Iterator[Outcome]:
        """Carry out a task and yield what comes of it as soon as it is there."""
        try:
            yield from self._perform(task)
        except LayerFailed as error:
            yield Failed(layer=error.layer, text=str(error))
        except ZswarmError as error:
            yield Failed(layer="", text=str(error)[: limits.MAX_TEXT_CHARS])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the top of the compute thread
            yield Failed(layer=type(task).__name__, text=one_line(error))

    def _perform(self, task: Task) -> Iterator[Outcome]:
        match task:
            case Build():
                yield self._build(task)
            case Run():
                yield from self._stage.passes.run(task)
            case Snapshot():
                yield self._snapshot(task)
            case Sum():
                yield Summed(round=task.round, shard=task.shard, chunks=shards.add(task.contributions))
            case Assemble():
                yield self._assemble(task)
            case Discard():
                if self._reduced_round == task.round:
                    self._reduced_round = None
            case Apply():
                yield self._apply(task)
            case Export():
                yield self._export(task)

    @property
    def _stage(self) -> _Built:
        if self._built is None:
            raise LocalProtocolError("a task came before Build")
        return self._built

    def _build(self, task: Build) -> Built:
        self._built = self._reduced = self._reduced_round = self._exported = None
        config = RunConfig.from_json_untrusted(task.configuration)
        model = load_model(config.model.factory, config.model.arguments)
        own = layers_of_stage(config, model, task.stage)
        engine = StageEngine(
            [build_layer(model, index, config.run.seed) for index in own],
            first_layer=own.start,
            loss=model.loss if task.stage == task.num_stages - 1 else None,
            step_targets=config.batch.global_batch * config.sequence_length,
            seed=config.run.seed,
            device=self._device,
        )
        kept = Kept(config.pipeline.recompute, self._gauge)
        self._built = _Built(
            engine=engine,
            kept=kept,
            passes=Passes(engine, kept, codec=config.wire.codec),
            optimizer=FlatOptimizer(config.optimizer, engine.parameters.values),
        )
        return Built(
            num_parameters=engine.parameters.num_parameters,
            first_layer=own.start,
            num_layers=len(own),
            parameter_digest=digest(engine.parameters.values),
        )

    def _snapshot(self, task: Snapshot) -> Snapshotted:
        parameters = self._stage.engine.parameters
        parameters.attach_gradients()
        # Memory of its own each time: the frames may still be on their way when the next one is made.
        copied: np.ndarray[Any, np.dtype[np.float32]] = parameters.gradients.to("cpu", copy=True).numpy()
        return Snapshotted(round=task.round, shards=shards.cut(copied, task.num_shards))

    def _assemble(self, task: Assemble) -> Assembled:
        gradients = self._stage.engine.parameters.gradients
        self._reduced_round = None
        host = torch.empty(gradients.shape) if self._reduced is None else self._reduced.cpu()
        shards.join(task.shards, host.numpy())
        self._reduced = host.to(self._device)
        squares = square_norm(self._reduced)
        finite = math.isfinite(squares)
        self._reduced_round = task.round
        return Assembled(
            round=task.round,
            digest=digest(self._reduced),
            finite=finite,
            square_norm=squares if finite else 0.0,
        )

    def _apply(self, task: Apply) -> Applied:
        stage = self._stage
        if task.apply:
            if self._reduced is None or self._reduced_round != task.round:
                raise LocalProtocolError(f"no reduced gradient of round {task.round} is held")
            stage.optimizer.step(self._reduced, lr=task.lr, scale=task.scale)
        self._reduced_round = None
        self._exported = None
        stage.kept.clear()
        stage.engine.clear_gradients()
        return Applied(step=task.step, parameter_digest=digest(stage.engine.parameters.values))

    def _export(self, task: Export) -> Exported:
        engine = self._stage.engine
        index = task.layer - engine.first_layer
        if not 0 <= index < len(engine.layers):
            raise LocalProtocolError(f"layer {task.layer} is not one of this stage's")
        if self._exported is None or self._exported[0] != task.layer:
            tensors = {name: tensor.cpu().clone() for name, tensor in engine.layers[index].state_dict().items()}
            self._exported = (task.layer, save(tensors))
        whole = memoryview(self._exported[1])
        offset = min(max(0, task.offset_bytes), len(whole) - 1)
        return Exported(
            part=task.part,
            layer=task.layer,
            offset_bytes=offset,
            total_bytes=len(whole),
            load=parcelled(whole[offset : offset + limits.STATE_RANGE_BYTES], ()),
        )
