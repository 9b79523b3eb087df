"""`zswarm train`: the process that owns a run, and a child that tells the machines of the swarm of it."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zswarm import limits
from zswarm.beacon.service import Place, announce
from zswarm.cli.family import Family
from zswarm.cli.planning import prepare_run
from zswarm.cli.resuming import advice
from zswarm.cli.started_by import started_by
from zswarm.cli.supervisor import say
from zswarm.config import RunConfig
from zswarm.errors import INTERRUPTED
from zswarm.ids import Address
from zswarm.machine import Exit
from zswarm.messages import Offer
from zswarm.overseer import NOBODY
from zswarm.trainer.progress import Progress
from zswarm.trainer.run_folder import RunFolder, open_run_folder
from zswarm.trainer.service import TrainerOptions, serve_trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCommand:
    """What the command line said."""

    run_file: Path
    out: Path | None
    listen: Address
    workers: int
    """Per stage, as `brokers`: the run begins when so many have come."""
    brokers: int
    place: Place
    """Where machines of the swarm are looked for; its key is the trainer's, too."""
    begun_s: float


def run_trainer(config: RunConfig, command: TrainerCommand) -> Exit:
    """Wait for the swarm and train.

    Raises:
        UserError: the model, the data, the run folder or the address cannot be used.

    """
    plan, source = prepare_run(config, command.run_file)
    opened: list[Path] = []

    def open_folder() -> RunFolder:
        folder = open_run_folder(config, out=command.out, run_file=command.run_file, resume=True)
        say(str(folder.path))
        opened.append(folder.path)
        return folder

    options = TrainerOptions(
        open_folder=open_folder,
        progress=Progress(config.run.name, steps=config.run.steps),
        source=source,
        begun_s=command.begun_s,
        listen=command.listen,
        workers_per_stage=command.workers,
        brokers_per_stage=command.brokers,
        key=command.place.key,
    )
    with Family() as family:
        offer = Offer(
            name=config.run.name[: limits.MAX_MACHINE_CHARS], coordinator=command.listen, nonce=secrets.randbits(63)
        )
        overseer = started_by()
        family.fork("announcer", partial(_announce, command.place, offer, family))
        end = serve_trainer(config, plan, options, overseer=overseer)
    if end.code == INTERRUPTED and overseer is NOBODY:
        for folder in opened:
            say(advice(sys.argv[1:], folder))
    return end


def _announce(place: Place, offer: Offer, family: Family) -> int:
    return announce(place, offer, say=say, overseer=family.lifeline).code
