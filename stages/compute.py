"""The tasks of a worker's compute thread, carried out: stages/tasks.py made real.

    Build                        a rehearsal; then the stage's layers, engine and optimizer from the run's configuration
    Run                          a job, see stages/passes.py
    Snapshot, Sum, Assemble      the arithmetic of the all-reduce, see stages/accumulation.py and shards.py
    Apply                        the optimizer step, then everything of the old step is forgotten
    Reset                        everything of the step is forgotten, also what is unfinished
    Export, Import, Adopt        the layers' state and their steps as files, see stages/state.py

Whatever a job has left unfinished is done when nothing else is to be done, and before any other kind of task.
Whatever goes wrong here, in a layer, in a peer's contribution to a sum or in a file, becomes Failed; a model that
this machine cannot find, may not run, or has not the memory for, Unfit; a device that does not work any more, Broken.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from stages import shards
from stages.accumulation import Accumulator, accumulator_named
from stages.allowed import EVERYTHING, Allowed, NotHere
from stages.devices import is_broken, is_out_of_memory
from stages.engine import LayerFailed, StageEngine, one_line
from stages.flat import digest, square_norm
from stages.kept import Kept
from stages.memory import Memory, MemoryGauge, gauge_of
from stages.model import build_layer, load_model
from stages.optimizer import FlatOptimizer
from stages.partition import layers_of_stage
from stages.passes import Passes
from stages.precision import Arithmetic
from stages.rehearsal import rehearse_jobs, rehearse_round
from stages.share import Share
from stages.state import StageState
from stages.tasks import (
    Adopt,
    Adopted,
    Applied,
    Apply,
    Assemble,
    Assembled,
    Broken,
    Build,
    Built,
    Discard,
    Export,
    Exported,
    Failed,
    Import,
    Imported,
    Outcome,
    Reset,
    Run,
    ShareTaken,
    Snapshot,
    Snapshotted,
    Sum,
    Summed,
    TakeShare,
    Task,
    Unfit,
    WasReset,
)
from zswarm import limits
from zswarm.compression import CPU, host_memory
from zswarm.config import AllReduceCodec, Commission
from zswarm.errors import LocalProtocolError, RemoteProtocolError, ZswarmError
from zswarm.ids import Lease, Round, StatePart
from zswarm.wire import parcelled

EMPTY_SHARE = 0.9
"""Of a device's memory that is free or this process's own, if nobody else uses it."""
CONTEXT_BYTES = 1 << 30
"""Of a card, what the driver and this process's context may take besides, where that is more than the rest."""


@dataclass(slots=True)
class _Built:
    """What Build makes."""

    engine: StageEngine
    kept: Kept
    accumulator: Accumulator
    passes: Passes
    optimizer: FlatOptimizer
    state: StageState
    share: Share
    all_reduce: AllReduceCodec
    sums: Tensor
    """Of all contributions of a round, on the host."""


class Compute:
    """Carries out one task after the other on one device; `gauge` measures its memory, `allowed` says whose models.

    All of it in one thread, whose device it is.
    """

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        gauge: MemoryGauge | None = None,
        allowed: Allowed = EVERYTHING,
    ) -> None:
        self._device = device or CPU
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._gauge = gauge or gauge_of(self._device)
        self._allowed = allowed
        self._built: _Built | None = None
        self._alone: tuple[Round, Tensor] | None = None
        """The gradient of a round that nobody else takes part in."""
        self._reduced: Tensor | None = None
        self._reduced_round: Round | None = None

    def perform(self, task: Task) -> Iterator[Outcome]:
        """Carry out a task and yield what comes of it as soon as it is there."""
        lease = task.lease if isinstance(task, Run) else None
        return _guarded(self._perform(task), type(task).__name__, lease)

    @property
    def has_unfinished(self) -> bool:
        """Is there something that `go_on` could do?"""
        return self._built is not None and self._built.passes.unfinished is not None

    def go_on(self) -> Iterator[Outcome]:
        """Do a part of what jobs have left unfinished; a job that ends with it yields its outcome."""
        passes = self._stage.passes
        return _guarded(passes.go_on(), Run.__name__, passes.unfinished)

    def _perform(self, task: Task) -> Iterator[Outcome]:
        if not isinstance(task, (Run, Reset)):
            yield from self._finish()
        match task:
            case Build():
                yield self._build(task)
            case Run():
                yield from self._stage.passes.run(task)
                if self._stage.passes.is_urgent:
                    yield from self._finish()
            case Snapshot():
                yield self._snapshot(task)
            case Sum():
                yield self._sum(task)
            case Assemble():
                yield self._assemble(task)
            case Discard():
                if self._reduced_round == task.round:
                    self._reduced = self._reduced_round = None
                if self._alone is not None and self._alone[0] == task.round:
                    self._alone = None
            case Reset():
                self._clear()
                yield WasReset()
            case Apply():
                yield self._apply(task)
            case Export():
                yield self._export(task)
            case Import():
                yield self._import(task)
            case Adopt():
                yield self._adopt()
            case TakeShare():
                self._stage.share.take(task.ledger)
                yield ShareTaken()
            case _:
                assert_never(task)

    def _finish(self) -> Iterator[Outcome]:
        """Do all that is unfinished; a part that fails is its own job's failure."""
        while self.has_unfinished:
            yield from self.go_on()

    @property
    def _stage(self) -> _Built:
        if self._built is None:
            raise LocalProtocolError("a task came before Build")
        return self._built

    def _build(self, task: Build) -> Built:
        self._drop()
        try:
            config = Commission.from_json_untrusted(task.configuration)
        except RemoteProtocolError as error:
            raise NotHere(f"{error}; `zswarm --version` is to be the trainer's") from error
        self._built = self._made(task, config)
        job_s, round_s = self._rehearse(task, config)
        # Layers keep of a forward what they like: attributes, modules, parameters that the first numbers set. Made-up numbers
        # are to leave no trace, so the layers of the run are others.
        self._drop()
        self._built = self._made(task, config)
        engine = self._built.engine
        return Built(
            num_parameters=engine.parameters.num_parameters,
            parameter_digest=digest(engine.parameters.values),
            job_s=job_s,
            round_s=round_s,
        )

    def _drop(self) -> None:
        """Give up the stage that there is, and its memory."""
        is_built = self._built is not None
        self._built = self._alone = self._reduced = self._reduced_round = None
        if is_built:
            # Layers go in circles, and would take the next ones' place until somebody looks.
            gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _made(self, task: Build, config: Commission) -> _Built:
        """Return the stage with fresh parameters, of a model that nobody has used: its layers may have things in common."""
        model = load_model(config.model.factory, config.model.arguments, self._allowed)
        own = layers_of_stage(config, model, task.stage)
        arithmetic = Arithmetic(self._device, config.pipeline.precision)
        arithmetic.set_up(is_exact=config.batch.accumulation == "exact")
        engine = StageEngine(
            [build_layer(model, index, config.run.seed) for index in own],
            first_layer=own.start,
            loss=model.loss if task.stage == task.num_stages - 1 else None,
            step_targets=config.batch.global_batch * config.sequence_length,
            seed=config.run.seed,
            arithmetic=arithmetic,
        )
        kept = Kept(config.pipeline.recompute, self._gauge)
        accumulator = accumulator_named(config.batch.accumulation, engine.parameters, config.num_microbatches)
        optimizer = FlatOptimizer(config.optimizer, engine.parameters.values, engine.parameters.regions)
        return _Built(
            engine=engine,
            kept=kept,
            accumulator=accumulator,
            passes=Passes(engine, kept, accumulator=accumulator, codec=config.wire.codec),
            optimizer=optimizer,
            state=StageState(engine, optimizer),
            share=Share(accumulator, config.wire.all_reduce),
            all_reduce=config.wire.all_reduce,
            sums=host_memory(accumulator.num_values, accumulator.dtype, self._device),
        )

    def _rehearse(self, task: Build, config: Commission) -> tuple[float, float]:
        """Return how long the jobs and a round took; 0 for what is not known, or refuses made-up numbers."""
        stage, job_s, round_s = self._stage, 0.0, 0.0
        with _leniently(self._gauge):
            if config.inputs:
                job_s = rehearse_jobs(stage.passes, task, config)
        with _leniently(self._gauge):
            round_s = rehearse_round(self._snapshot, self._sum, self._assemble)
        return job_s, round_s

    def _clear(self) -> None:
        """Forget all that was counted, kept and reduced in this step."""
        stage = self._stage
        self._alone = self._reduced = self._reduced_round = None
        stage.passes.clear()
        stage.kept.clear()
        stage.engine.clear_gradients()
        stage.accumulator.clear()
        stage.share.clear()

    # -- the all-reduce and the optimizer step -------------------------------------------------------

    def _snapshot(self, task: Snapshot) -> Snapshotted:
        stage = self._stage
        if task.num_shards == 1:
            # Nobody else is to have it: no chunks, and the result is known.
            self._alone = task.round, stage.accumulator.alone()
            return Snapshotted(round=task.round, shards=((),))
        return Snapshotted(
            round=task.round, shards=shards.cut(stage.accumulator.contribution(), task.num_shards, stage.all_reduce)
        )

    def _sum(self, task: Sum) -> Summed:
        chunks = shards.add(task.contributions, self._stage.sums.numpy().dtype, self._stage.all_reduce)
        return Summed(round=task.round, shard=task.shard, chunks=chunks)

    def _assemble(self, task: Assemble) -> Assembled:
        stage = self._stage
        self._reduced_round = None
        if self._alone is not None and self._alone[0] == task.round:
            _, self._reduced = self._alone
            self._alone = None
        else:
            shards.join(task.shards, stage.sums.numpy(), stage.all_reduce)
            self._reduced = stage.accumulator.reduced(stage.sums).to(self._device)
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
        stage.state.retain(task.retained, task.step)
        if task.apply:
            if self._reduced is None or self._reduced_round != task.round:
                raise LocalProtocolError(f"no reduced gradient of round {task.round} is held")
            stage.optimizer.step(self._reduced, lr=task.lr, scale=task.scale)
        stage.state.keep_gradients(task.gradients, task.step, self._reduced if task.apply else None, lr=task.lr)
        self._clear()
        stage.state.changed()
        if task.snapshot:
            stage.state.keep_copy()
        return Applied(step=task.step, parameter_digest=digest(stage.engine.parameters.values))

    # -- the layers' state ---------------------------------------------------------------------------

    def _export(self, task: Export) -> Exported:
        state = self._stage.state
        if task.part is StatePart.SHARE:
            whole = self._stage.share.file(is_begun=task.offset_bytes > 0)
        elif task.step is None:
            whole = memoryview(state.file(task.part, task.layer, from_copy=task.from_snapshot))
        else:
            whole = memoryview(state.kept_file(task.part, task.layer, task.step))
        offset = min(max(0, task.offset_bytes), len(whole) - 1)
        return Exported(
            part=task.part,
            layer=task.layer,
            offset_bytes=offset,
            total_bytes=len(whole),
            load=parcelled(whole[offset : offset + limits.STATE_RANGE_BYTES], ()),
        )

    def _import(self, task: Import) -> Imported:
        stage = self._stage
        of = {"offset_bytes": task.offset_bytes, "total_bytes": task.total_bytes}
        if task.part is StatePart.SHARE:
            stage.share.receive_untrusted(task.ledger, kept=task.kept, **of, frames=task.load.frames)
        else:
            stage.state.receive_untrusted(task.part, task.layer, **of, frames=task.load.frames)
        return Imported(part=task.part)

    def _adopt(self) -> Adopted:
        stage = self._stage
        stage.state.adopt()
        self._clear()
        return Adopted(parameter_digest=digest(stage.engine.parameters.values))


def _guarded(outcomes: Iterator[Outcome], name: str, lease: Lease | None) -> Iterator[Outcome]:
    """Yield the outcomes of a task, or of a part of one; whatever is raised becomes Failed, Unfit or Broken."""
    try:
        yield from outcomes
    except LayerFailed as error:
        yield _of_the_device(error.__cause__, name, lease) or Failed(layer=error.layer, text=str(error), lease=lease)
    except NotHere as error:
        yield Unfit(text=str(error))
    except ZswarmError as error:
        text = str(error)[: limits.MAX_TEXT_CHARS]
        yield _of_the_device(error.__cause__, name, lease) or Failed(layer="", text=text, lease=lease)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the top of the compute thread
        yield _of_the_device(error, name, lease) or Failed(layer=name, text=one_line(error), lease=lease)


@contextmanager
def _leniently(gauge: MemoryGauge) -> Iterator[None]:
    """Let pass what a rehearsal raises, unless the device is broken, or has too little memory though nobody else uses it: what
    does not fit then never does.

    Who else does is seen when it fails: workers that begin on one card at the same time all find it empty.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        cause = error.__cause__ if isinstance(error, LayerFailed) else error
        if cause is not None and (is_broken(cause) or (is_out_of_memory(cause) and _is_own(gauge()))):
            raise


def _is_own(memory: Memory) -> bool:
    """Does nobody else use the device?"""
    others_bytes = memory.total_bytes - memory.free_bytes - memory.own_bytes
    return others_bytes <= max((1.0 - EMPTY_SHARE) * memory.total_bytes, CONTEXT_BYTES)


def _of_the_device(error: BaseException | None, name: str, lease: Lease | None) -> Unfit | Broken | None:
    """Return what an error means if it is one of the device; None if it is the layers', or the run's.

    A job that lacks memory is a job that has failed: the worker begins anew with all memory free, and others try, too.
    """
    if error is None or not (is_broken(error) or (is_out_of_memory(error) and lease is None)):
        return None
    if is_broken(error) or name != Build.__name__:
        return Broken(text=one_line(error))
    return Unfit(
        text="the stage does not fit into the device's memory; more stages, smaller microbatches or recompute = "
        f'"always" need less: {one_line(error)}'
    )
