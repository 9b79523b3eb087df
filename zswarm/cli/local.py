"""`zswarm local`: a whole swarm on this machine, on loopback, gone when the command is.

this process --fork--> brokers            (before torch is imported: they stay small)
|  import torch, plan the stages
+-------fork--> trainer, workers     (torch is imported once for all)
|
+-- passes Ctrl-C on, says who died, ends whoever is left
"""

from __future__ import annotations

import importlib
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

from brokers.service import serve_broker
from zswarm import limits
from zswarm.cli.family import Ended, Family, free_port, wake_on_signals
from zswarm.config import RunConfig
from zswarm.ids import Address, NodeId
from zswarm.machine import Exit

HOST = "127.0.0.1"
INTERRUPTED = 130
"""Exit code of the trainer when it was told to stop; who told it so says why."""
STOP_WITHIN_S = 1.8
"""After Ctrl-C: the trainer and everybody else have this long to stop by themselves."""
LEAVE_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What the command line said."""

    run_file: Path
    out: Path | None
    workers: int
    """Per stage, as `brokers`."""
    brokers: int
    threads: int
    begun_s: float


def run_local(config: RunConfig, options: LocalOptions) -> int:
    """Run a whole swarm; returns the exit code.

    Raises:
        UserError: the model, the data or the run folder is not what the run file says.

    """
    coordinator = Address(f"tcp://{HOST}:{free_port(HOST)}")
    with Family() as family:
        for index in range(config.pipeline.stages * options.brokers):
            family.fork(f"broker-{index}", partial(_broker, index, coordinator, family))
        trainer = _start_with_torch(config, options, coordinator, family)
        return _watch(family, trainer)


def _broker(index: int, coordinator: Address, family: Family) -> int:
    end = serve_broker(
        node=NodeId(f"broker-{index}"),
        coordinator=coordinator,
        host=HOST,
        capacity_bytes=limits.BROKER_CAPACITY_BYTES,
        lifeline=family.lifeline,
    )
    return _leave(f"broker-{index}", end)


def _start_with_torch(config: RunConfig, options: LocalOptions, coordinator: Address, family: Family) -> int:
    """Import torch, plan, fork the trainer and the workers; returns the trainer's process id."""
    from stages.service import serve_worker
    from zswarm.cli.planning import plan_run
    from zswarm.data import open_source
    from zswarm.trainer.progress import Progress
    from zswarm.trainer.run_folder import open_run_folder
    from zswarm.trainer.service import TrainerOptions, serve_trainer

    plan = plan_run(config)
    source = open_source(config)
    _preload(config)
    folder = open_run_folder(config, out=options.out, run_file=options.run_file)
    print(f"zswarm: {folder.path}", file=sys.stderr)

    def trainer() -> int:
        trainer_options = TrainerOptions(
            folder=folder,
            progress=Progress(config.run.name, steps=config.run.steps),
            source=source,
            begun_s=options.begun_s,
            listen=coordinator,
            workers_per_stage=options.workers,
            brokers_per_stage=options.brokers,
        )
        end = serve_trainer(config, plan, trainer_options, lifeline=family.lifeline)
        if end.code not in {0, INTERRUPTED}:
            print(f"zswarm: {end.text}", file=sys.stderr)
        return end.code

    def worker(index: int) -> int:
        end = serve_worker(
            node=NodeId(f"worker-{index}"),
            coordinator=coordinator,
            host=HOST,
            threads=options.threads,
            lifeline=family.lifeline,
        )
        return _leave(f"worker-{index}", end)

    trainer_pid = family.fork("trainer", trainer)
    for index in range(config.pipeline.stages * options.workers):
        family.fork(f"worker-{index}", partial(worker, index))
    return trainer_pid


def _preload(config: RunConfig) -> None:
    """Import once what every worker would import."""
    if config.wire.codec == "bnb8":
        importlib.import_module("bitsandbytes")


def _leave(name: str, end: Exit) -> int:
    if end.code != 0:
        print(f"zswarm: {name}: {end.text}", file=sys.stderr)
    return end.code


def _watch(family: Family, trainer: int) -> int:
    """Wait for the trainer; end the run if anybody else dies before it."""
    casualty: Ended | None = None
    deadline_s = float("inf")
    with wake_on_signals() as wait:
        while True:
            ended = family.reap()
            if trainer in ended:
                code = ended[trainer].code
                break
            lost = next((child for child in ended.values() if child.code != 0), None)
            if lost is not None and casualty is None and deadline_s == float("inf"):
                casualty = lost
                print(f"zswarm: {lost.describe()}: the run ends here", file=sys.stderr)
                family.signal(trainer, signal.SIGTERM)
                deadline_s = monotonic() + STOP_WITHIN_S
            if monotonic() >= deadline_s:
                code = 1
                break
            signals = wait(min(1.0, max(0.0, deadline_s - monotonic())))
            if deadline_s == float("inf") and (signal.SIGINT in signals or signal.SIGTERM in signals):
                print("zswarm: interrupted", file=sys.stderr)
                family.signal(trainer, signal.SIGTERM)
                deadline_s = monotonic() + STOP_WITHIN_S
        if code < 0:
            print(f"zswarm: {Ended(name='trainer', code=code).describe()}", file=sys.stderr)
        family.end(grace_s=LEAVE_WITHIN_S if deadline_s == float("inf") else 0.1)
    return 1 if casualty is not None or code < 0 else code
