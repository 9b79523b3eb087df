"""The trainer's process: samples in, decisions of the coordinator, the run folder out. No torch."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from zswarm import limits
from zswarm.config import RunConfig
from zswarm.data import Source
from zswarm.ids import Address, Generation, Purpose, Role, RunId, Session
from zswarm.lifeline import Lifeline
from zswarm.loop import Loop
from zswarm.machine import Exit
from zswarm.schedule import learning_rate
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.model_file import ModelFile
from zswarm.trainer.progress import Progress
from zswarm.trainer.report import Report
from zswarm.trainer.run_folder import RunFolder
from zswarm.trainer.samples import pack
from zswarm.trainer.settings import (
    Append,
    CoordinatorSettings,
    EvaluationDone,
    Interrupted,
    Sample,
    Sampled,
    StepDone,
    Store,
)
from zswarm.transport import Switchboard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the model is cut, worked out where torch is."""

    layers_per_stage: tuple[int, ...]
    unit_bytes: tuple[int, ...]
    """Size of one microbatch at each stage's input."""
    targets_per_sample: int


def coordinator_settings(
    config: RunConfig, plan: Plan, *, workers_per_stage: int, brokers_per_stage: int
) -> CoordinatorSettings:
    """Return what the coordinator of a new run is told; workers get the split that was worked out once."""
    pipeline = config.pipeline.model_copy(update={"split": plan.layers_per_stage})
    configuration = config.model_copy(update={"pipeline": pipeline}).canonical_json()
    return CoordinatorSettings(
        run=RunId(secrets.randbits(63) or 1),
        generation=Generation(1),
        first_session=Session(1),
        layers_per_stage=plan.layers_per_stage,
        steps=config.run.steps,
        num_microbatches=config.num_microbatches,
        num_targets=config.batch.global_batch * plan.targets_per_sample,
        num_held_out=config.data.held_out_microbatches,
        learning_rate=lambda step: learning_rate(config.optimizer, step, config.run.steps),
        grad_clip=config.optimizer.grad_clip,
        wiring=config.pipeline.wiring,
        window=config.pipeline.window or 0,
        unit_bytes=plan.unit_bytes,
        configuration=configuration,
        workers_per_stage=workers_per_stage,
        brokers_per_stage=brokers_per_stage,
        heartbeat_s=limits.HEARTBEAT_S,
    )


class TrainerService:
    """Carries out what the coordinator decides; `run` returns how the run ended."""

    def __init__(self, settings: CoordinatorSettings, *, source: Source, folder: RunFolder, report: Report) -> None:
        self._source = source
        self._model_path = folder.model_path
        self._report = report
        self._model = ModelFile()
        self._num_stages = settings.num_stages
        self._interrupted = False
        self.coordinator = Coordinator(settings, random=Random(settings.run).random)

    def run(self, switchboard: Switchboard, lifeline: Lifeline | None = None) -> Exit:
        """Serve on a switchboard whose coordinator socket is bound, until the run has ended."""
        if lifeline is not None:
            lifeline.watch(switchboard)
        loop = Loop(self.coordinator, switchboard, perform=self._perform, collect=self._interruptions)
        with _interruptible(partial(self._interrupt, switchboard.waker())):
            end = loop.run()
            records = self.coordinator.roster.records.values()
            self._report.write_summary(
                wire_bytes=switchboard.sent_bytes + sum(record.sent_bytes for record in records),
                stages=self._num_stages,
                workers=sum(record.role is Role.WORKER for record in records),
            )
            if end.code == 0:
                self._model.write(self._model_path)
        return end

    def _interrupt(self, wake: Callable[[], None]) -> None:
        self._interrupted = True
        wake()

    def _interruptions(self) -> Iterable[Interrupted]:
        interrupted, self._interrupted = self._interrupted, False
        return [Interrupted()] if interrupted else []

    def _perform(self, command: Sample | Append | Store | StepDone | EvaluationDone) -> Iterable[Any]:
        match command:
            case Sample():
                return [self._sample(command)]
            case Append():
                self._report.event(command.record, durable=command.durable)
            case Store():
                self._model.store(command)
            case StepDone():
                self._report.step_done(command)
            case EvaluationDone():
                self._report.evaluation_done(command)
        return ()

    def _sample(self, command: Sample) -> Sampled:
        if command.purpose is Purpose.TRAIN:
            arrays = self._source.samples(command.step, command.microbatch)
        else:
            arrays = self._source.held_out(command.microbatch)
        return Sampled(purpose=command.purpose, step=command.step, microbatch=command.microbatch, load=pack(*arrays))


@contextmanager
def _interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Turn Ctrl-C and a service manager's stop into an event, or into nothing once the folder is being closed."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: interrupt()) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """What a trainer needs beside the run file and the plan."""

    folder: RunFolder
    progress: Progress
    source: Source
    begun_s: float
    """When the user's command began, on the monotonic clock."""
    listen: Address
    workers_per_stage: int
    brokers_per_stage: int


def serve_trainer(config: RunConfig, plan: Plan, options: TrainerOptions, *, lifeline: Lifeline | None = None) -> Exit:
    """Train from the first step to the last."""
    report = Report(config, folder=options.folder, progress=options.progress, begun_s=options.begun_s)
    settings = coordinator_settings(
        config,
        plan,
        workers_per_stage=options.workers_per_stage,
        brokers_per_stage=options.brokers_per_stage,
    )
    with Switchboard() as switchboard:
        switchboard.bind("coordinator", options.listen)
        service = TrainerService(settings, source=options.source, folder=options.folder, report=report)
        with options.progress:
            return service.run(switchboard, lifeline)
