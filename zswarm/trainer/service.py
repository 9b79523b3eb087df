"""The trainer's process: samples in, decisions of the coordinator, the run folder out. No torch."""

from __future__ import annotations

import hashlib
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from random import Random
from time import monotonic, sleep
from typing import Any

from zswarm import limits
from zswarm.config import Commission, RunConfig
from zswarm.data import Source
from zswarm.errors import INTERRUPTED, TRY_LATER, NotYet, RunFailed
from zswarm.ids import Address, Generation, Purpose, RunId, Session, Version
from zswarm.loop import Loop
from zswarm.machine import Exit, Health
from zswarm.overseer import NOBODY, Overseer
from zswarm.schedule import learning_rate
from zswarm.swarm_key import SwarmKey
from zswarm.trainer.checkpoint_thread import CheckpointThread, Tidy
from zswarm.trainer.checkpoints import Checkpoints
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.model_file import write_model
from zswarm.trainer.progress import Progress
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.report import GaveUp, Report
from zswarm.trainer.run_folder import DiskFull, RunFolder
from zswarm.trainer.samples import pack
from zswarm.trainer.settings import (
    Append,
    CoordinatorSettings,
    EvaluationDone,
    Forsake,
    Interrupted,
    Read,
    Sample,
    Sampled,
    Seal,
    StepDone,
    Store,
    Unreachable,
)
from zswarm.trainer.status import Patience, Vacancies, health
from zswarm.transport import Switchboard

NAP_S = 0.1
"""While the disk is waited for, how soon an interrupt is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the model is cut, worked out where torch is."""

    layers_per_stage: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    """Shape of one microbatch at each stage's input."""
    unit_bytes: tuple[int, ...]
    """Encoded size of one microbatch at each stage."""
    stage_costs: tuple[float, ...]
    """Of one microbatch at each stage, relative to the others."""
    state_bytes: tuple[int, ...]
    """Parameters and optimizer state of each stage."""
    targets_per_sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """What a trainer needs beside the run file and the plan."""

    open_folder: Callable[[], RunFolder]
    """Called once the trainer can listen: one that cannot leaves no folder behind."""
    progress: Progress
    source: Source
    begun_s: float
    """When the user's command began, or a later life of the trainer, on the monotonic clock."""
    listen: Address
    workers_per_stage: int
    brokers_per_stage: int
    key: SwarmKey | None = None
    """Without one, `listen` is of the loopback."""


def coordinator_settings(
    config: RunConfig, plan: Plan, options: TrainerOptions, *, recovered: Recovered | None
) -> CoordinatorSettings:
    """Return what the coordinator is told, but for the checkpoint; workers get the split that was worked out once."""
    pipeline = config.pipeline.model_copy(update={"split": plan.layers_per_stage})
    commission = Commission(**dict(config) | {"pipeline": pipeline, "inputs": plan.inputs}).canonical_json()
    basis = hashlib.blake2b(commission + options.source.digest(), digest_size=16).hexdigest()
    return CoordinatorSettings(
        run=recovered.run if recovered is not None else RunId(secrets.randbits(63) or 1),
        generation=_generation_after(recovered),
        first_session=recovered.next_session if recovered is not None else Session(1),
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
        stage_costs=plan.stage_costs,
        state_bytes=plan.state_bytes,
        rebalancing=config.pipeline.rebalancing,
        backup_every_s=None if config.pipeline.backup == "auto" else inf,
        configuration=commission,
        basis=basis,
        workers_per_stage=options.workers_per_stage,
        brokers_per_stage=options.brokers_per_stage,
        heartbeat_s=limits.HEARTBEAT_S,
        checkpoint_every=config.checkpoint.every,
        recovered=_on_basis(recovered, basis),
    )


def _generation_after(recovered: Recovered | None) -> Generation:
    """Return the generation of a trainer that goes on with a run.

    Two that do so from copies of one folder are hardly ever of the same one: members would obey both.
    """
    if recovered is None:
        return Generation(1)
    return Generation(recovered.generation + secrets.randbelow(limits.GENERATION_LEAP))


class Interruption:
    """The user's wish that the run ends: set by a signal, read by the loop."""

    def __init__(self, wake: Callable[[], None], overseer: Overseer = NOBODY) -> None:
        """Wake a loop with `wake`, which a signal handler may call."""
        self._wake = wake
        self._overseer = overseer
        self._is_taken = False
        self.is_set = False

    def set(self) -> None:
        """Say so."""
        self.is_set = True
        self._overseer.stopping("interrupted")
        self._wake()

    def take(self) -> list[Interrupted]:
        """Return the event, once."""
        if not self.is_set or self._is_taken:
            return []
        self._is_taken = True
        return [Interrupted()]

    def wait(self, duration_s: float) -> bool:
        """Sleep on purpose; False as soon as the user has asked for the end."""
        until_s = monotonic() + duration_s
        while not self.is_set and (left_s := until_s - monotonic()) > 0:
            sleep(min(NAP_S, left_s))
            self._overseer.turned()
        return not self.is_set


class TrainerService:
    """Carries out what the coordinator decides; `run` returns how the run ended."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        *,
        source: Source,
        report: Report,
        disk: CheckpointThread,
        interruption: Interruption,
    ) -> None:
        self._source = source
        self._report = report
        self._disk = disk
        self._interruption = interruption
        self._settings = settings
        self._patience = Patience(settings, monotonic())
        self._vacancies = Vacancies(settings)
        self.coordinator = Coordinator(settings, random=Random(settings.run + settings.generation).random)

    def run(self, switchboard: Switchboard, overseer: Overseer = NOBODY) -> Exit:
        """Serve on a switchboard whose coordinator socket is bound, until the run has ended.

        Raises:
            DiskFull: there is no room for the end of the run.
            RunFailed: the summary cannot be written for another reason.

        """
        loop = Loop(
            self.coordinator,
            switchboard,
            perform=self._perform,
            collect=lambda: [*self._disk.events(), *self._interruption.take()],
            on_unreachable=lambda peer: Unreachable(peer=peer),
        )
        try:
            overseer.begin(switchboard, lambda _now: health(self.coordinator, self._settings))
            end = loop.run(partial(self._turned, overseer))
        except GaveUp as error:
            # Nobody has been told of what is not in the log, and whoever takes the run up again reads the log.
            return Exit(code=INTERRUPTED, text=str(error))
        if end.code == TRY_LATER:
            raise DiskFull(end.text)
        roster = self.coordinator.roster
        self._report.write_summary(
            wire_bytes=switchboard.sent_bytes + roster.sent_bytes,
            stages=self._settings.num_stages,
            workers=roster.num_workers,
        )
        return end

    def _turned(self, overseer: Overseer) -> None:
        overseer.turned()
        now = monotonic()
        if text := self._patience.word(self.coordinator, now):
            self._report.say(text)
        for text in self._vacancies.words(self.coordinator, now):
            self._report.say(text)

    def _perform(
        self, command: Sample | Append | Store | Seal | Forsake | Read | StepDone | EvaluationDone
    ) -> Iterable[Any]:
        match command:
            case Sample():
                return [self._sample(command)]
            case Append():
                self._report.event(command.record, durable=command.durable)
                self._tidy_after(command.record)
            case Store() | Seal() | Forsake() | Read():
                return self._disk.submit(command)
            case StepDone():
                self._report.step_done(command)
            case EvaluationDone():
                self._report.evaluation_done(command)
        return ()

    def _tidy_after(self, record: dict[str, Any]) -> None:
        """Checkpoints are removed only when the log says that there is a newer one, or that the run goes back."""
        if record["event"] == "checkpoint" and not record.get("problem"):
            self._disk.submit(Tidy())
        elif record["event"] == "rollback":
            self._disk.submit(Tidy(back_to=(record["branch"], record["step"])))

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


def serve_trainer(config: RunConfig, plan: Plan, options: TrainerOptions, *, overseer: Overseer = NOBODY) -> Exit:
    """Train from the first step, or from where the run folder ends, to the last.

    Raises:
        UserError: the address or the run folder cannot be used.
        NotYet: there is no room for the last checkpoint, the summary or the model: another life of the trainer writes them.
        RunFailed: the summary or the model cannot be written for another reason.

    """
    try:
        return _serve(config, plan, options, overseer)
    except DiskFull as error:
        raise NotYet(f"{error}: make room there, and the run goes on in its folder") from None


def _serve(config: RunConfig, plan: Plan, options: TrainerOptions, overseer: Overseer) -> Exit:
    """Do so; raises DiskFull in place of NotYet."""
    with Switchboard(key=options.key) as switchboard:
        switchboard.bind("coordinator", options.listen)
        interruption = Interruption(switchboard.waker(), overseer)
        with options.open_folder() as folder, _interruptible(interruption.set):
            recovered = folder.recover()
            settings = coordinator_settings(config, plan, options, recovered=recovered)
            recovered = settings.recovered
            report = Report(config, folder=folder, progress=options.progress, begun_s=options.begun_s)
            checkpoints = Checkpoints(
                folder.checkpoints_path,
                run=settings.run,
                num_layers=sum(plan.layers_per_stage),
                keep=config.checkpoint.keep,
            )
            if recovered is not None and recovered.is_done(config.run.steps):
                end = Exit(code=0, text="all steps are done")
                overseer.begin(switchboard, lambda _now: Health(text=end.text))
                if not folder.is_summed_up(recovered.step):
                    report.take_up(recovered)
                    report.write_summary(wire_bytes=None, stages=settings.num_stages, workers=None)
            else:
                report.wait = interruption.wait
                if recovered is not None:
                    settings = replace(settings, checkpoint=_usable_checkpoint(checkpoints, recovered))
                with options.progress, CheckpointThread(checkpoints, wake=switchboard.waker()) as disk:
                    _take_up(report, settings)
                    service = TrainerService(
                        settings, source=options.source, report=report, disk=disk, interruption=interruption
                    )
                    end = service.run(switchboard, overseer)
            if end.code == 0:
                last = _last_checkpoint(folder, checkpoints, config.run.steps)
                files = checkpoints.parameter_files(last, turned=overseer.turned)
                write_model(folder.model_path, files, turned=overseer.turned)
            return end


def _on_basis(recovered: Recovered | None, basis: str) -> Recovered | None:
    """Return what can be gone on with: with other stages, another codec or other data nobody has what his stage needs."""
    if recovered is None or recovered.basis == basis:
        return recovered
    return replace(recovered, members=(), commit=None, moves={}, bequests={})


def _usable_checkpoint(checkpoints: Checkpoints, recovered: Recovered) -> Version | None:
    """Return the newest checkpoint of the run's present history.

    Its hashes are computed now if it is certain to be gone back to, because nobody is left.
    """
    return checkpoints.newest(recovered.is_void, with_hashes=not recovered.members)


def _take_up(report: Report, settings: CoordinatorSettings) -> None:
    """Tell the user where a run goes on that was cut short."""
    found, checkpoint = settings.recovered, settings.checkpoint
    if found is None:
        return
    report.take_up(found)
    behind = f"the newest checkpoint is of step {checkpoint[1]}" if checkpoint is not None else "there is no checkpoint"
    known = f"; {len(found.members)} processes were part of it" if found.members else ""
    if not found.basis:
        known = "; it is of an older version: what nobody has saved is done again"
    elif found.basis != settings.basis:
        known = "; the run file or its data are not as before: what nobody has saved is done again"
    report.say(f"going on at step {found.step}; {behind}{known}")


def _last_checkpoint(folder: RunFolder, checkpoints: Checkpoints, steps: int) -> Version:
    """Return the checkpoint after the last step: the model is put together from it."""
    last = checkpoints.newest(lambda version: version[1] != steps, with_hashes=False)
    if last is None:
        raise RunFailed(f"{folder.checkpoints_path}: there is no checkpoint of step {steps} to make the model from")
    return last
