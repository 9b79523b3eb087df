"""`zswarm local`: a whole swarm on this machine, on loopback, gone when the command is.

this process --fork--> brokers            (before torch is imported: they stay small)
|  import torch, plan the stages
+-------fork--> trainer, workers     (torch is imported once for all)
|
+-- passes Ctrl-C on, starts again who dies, ends whoever is left
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

from brokers.service import serve_broker
from zswarm import limits
from zswarm.cli.family import Family, free_port
from zswarm.cli.large_imports import large_imports
from zswarm.cli.resuming import advice
from zswarm.cli.supervisor import TRAINER, WORKERS, Body, Supervisor
from zswarm.config import RunConfig
from zswarm.device_names import CPU
from zswarm.errors import INTERRUPTED
from zswarm.ids import Address, NodeId
from zswarm.machine import Exit
from zswarm.swarm_key import SwarmKey

HOST = "127.0.0.1"
LISTEN = Address(f"tcp://{HOST}:*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What the command line said."""

    run_file: Path
    out: Path | None
    workers: int
    """Per stage, as `brokers`."""
    brokers: int
    threads: int
    devices: tuple[str, ...]
    """Of the workers, in turn."""
    key: SwarmKey | None
    """Its children inherit it in memory: it is in no argument and no file."""
    begun_s: float


def run_local(config: RunConfig, options: LocalOptions) -> int:
    """Run a whole swarm; returns the exit code.

    Raises:
        UserError: the model, the data or the run folder is not what the run file says.

    """
    coordinator = Address(f"tcp://{HOST}:{free_port(HOST)}")
    with Family() as family:
        bodies: dict[str, Body] = {}
        for index in range(config.pipeline.stages * options.brokers):
            name = f"broker-{index}"
            bodies[name] = partial(_broker, name, coordinator, options.key, family)
            family.fork(name, partial(bodies[name], 0))
        others, path = _prepare_with_torch(config, options, coordinator, family)
        words = advice(sys.argv[1:], path)
        return Supervisor(family, bodies | others, note=partial(_note, path), advice=words).run()


def _note(path: Path, processes: dict[str, int]) -> None:
    from zswarm.trainer.run_folder import write_processes

    write_processes(path, processes)


def _broker(name: str, coordinator: Address, key: SwarmKey | None, family: Family, _num_lives: int) -> int:
    end = serve_broker(
        node=NodeId(name),
        coordinator=coordinator,
        listen=LISTEN,
        capacity_bytes=limits.BROKER_CAPACITY_BYTES,
        key=key,
        overseer=family.lifeline,
    )
    return _leave(name, end)


def _prepare_with_torch(
    config: RunConfig, options: LocalOptions, coordinator: Address, family: Family
) -> tuple[dict[str, Body], Path]:
    """Import torch, plan, make the run folder.

    Returns what the trainer and the workers do, by their names, and the run folder.
    """
    with large_imports():
        from stages.allowed import EVERYTHING
        from stages.service import Computing, serve_worker
        from zswarm.cli.planning import prepare_run
    from zswarm.trainer.progress import Progress
    from zswarm.trainer.run_folder import RunFolder, open_run_folder
    from zswarm.trainer.service import TrainerOptions, serve_trainer

    plan, source = prepare_run(config, options.run_file)
    _preload(config, options.devices)
    with open_run_folder(config, out=options.out, run_file=options.run_file, resume=True) as folder:
        path = folder.path
    print(f"zswarm: {path}", file=sys.stderr, flush=True)

    def trainer(num_lives: int) -> int:
        trainer_options = TrainerOptions(
            open_folder=partial(RunFolder, path),
            progress=Progress(config.run.name, steps=config.run.steps),
            source=source,
            begun_s=monotonic() if num_lives else options.begun_s,
            listen=coordinator,
            workers_per_stage=options.workers,
            brokers_per_stage=options.brokers,
            key=options.key,
        )
        end = serve_trainer(config, plan, trainer_options, overseer=family.lifeline)
        if end.code not in {0, INTERRUPTED}:
            print(f"zswarm: {end.text}", file=sys.stderr)
        return end.code

    def worker(name: str, device: str, _num_lives: int) -> int:
        end = serve_worker(
            node=NodeId(name),
            coordinator=coordinator,
            listen=LISTEN,
            computing=Computing(device=device, threads=options.threads, allowed=EVERYTHING),
            key=options.key,
            overseer=family.lifeline,
        )
        return _leave(name, end)

    bodies: dict[str, Body] = {TRAINER: trainer}
    for index in range(config.pipeline.stages * options.workers):
        device = options.devices[index % len(options.devices)]
        bodies[f"{WORKERS}{index}"] = partial(worker, f"{WORKERS}{index}", device)
    return bodies, path


def _preload(config: RunConfig, devices: Sequence[str]) -> None:
    """Import once what every worker would import; not what looks for cards, where there are any: whoever has done so gives his
    children none."""
    if config.wire.codec == "bnb8" and set(devices) == {CPU}:
        importlib.import_module("bitsandbytes")


def _leave(name: str, end: Exit) -> int:
    if end.code != 0:
        print(f"zswarm: {name}: {end.text}", file=sys.stderr)
    return end.code
