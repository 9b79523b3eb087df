"""`zswarm`: the commands, their options, and the one place where an error becomes a message and an exit code.

A command's body is imported when it is called: `zswarm --help`, a broker and the audit import no torch.

    0    done
    1    the run failed, or the audit found a violation
    2    something that the user can mend
    75   the same, and it may mend itself: no such address, no way there or no answer to a name yet; a full disk
    78   `zswarm broker` and `zswarm worker`: the run does not take this process; starting it again is no use
    130  Ctrl-C
"""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from zswarm import __version__
from zswarm.cli.bench import bench
from zswarm.cli.chaos import chaos
from zswarm.cli.devices import described, device_option, devices_option, found_devices
from zswarm.cli.key import key, key_option
from zswarm.cli.large_imports import large_imports
from zswarm.cli.models import allow_option, allow_own_models, allowed_models
from zswarm.cli.places import (
    BEACON_PORT,
    TRAINER_PORT,
    host_option,
    key_of,
    place_of,
    prepare_for_connections,
    process_name,
    seeds_option,
)
from zswarm.cli.service import service
from zswarm.cli.swarm import beacon, doctor, init, join, pause, resume
from zswarm.device_names import CPU
from zswarm.errors import INTERRUPTED, REFUSED, TRY_LATER, NotYet, RunFailed, UserError
from zswarm.ids import Address, NodeId, Stage
from zswarm.limits import MAX_STAGES

if TYPE_CHECKING:
    from zswarm.machine import Exit
    from zswarm.swarm_key import SwarmKey

BEGUN_S = monotonic()
"""When the user's command began, as nearly as it can be known."""
SHOW_TRACEBACK = "ZSWARM_TRACEBACK"
COUNT = click.IntRange(min=1)
SEEK_S = 5.0
"""How long a command looks for the run that it is about."""


class FiniteRange(click.FloatRange):
    """Numbers of a range; nan, which is in every range, and infinity are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


run_file_argument = click.argument("run_file", metavar="RUN.toml", type=click.Path(path_type=Path))
folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
overrides_option = click.option(
    "--set", "overrides", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key of the run file; repeatable."
)
out_option = click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The run folder, new or empty; otherwise the next free one in runs/.",
)
resumed_out_option = click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The run folder: new, empty, or that of a run that was cut short, which goes on; "
    "otherwise the next free one in runs/.",
)
workers_option = click.option(
    "--workers", type=COUNT, default=2, show_default=True, metavar="N", help="Workers of each stage."
)
brokers_option = click.option(
    "--brokers", type=COUNT, default=1, show_default=True, metavar="N", help="Brokers of each stage."
)
threads_option = click.option(
    "--threads",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="Threads that torch may use for one operation.",
)
coordinator_option = click.option(
    "--coordinator",
    metavar="ADDRESS",
    help="Where the trainer listens, such as tcp://127.0.0.1:4711; otherwise whatever run this machine's beacon, or a "
    "seed, tells of, one after the other.",
)
name_option = click.option("--name", metavar="NAME", help="What this process is called in logs.")
level_option = click.option(
    "--log-level",
    "level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least level that is logged.",
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="zswarm %(version)s")
def app() -> None:
    """Train neural networks that are too big for one card, on machines that are too unreliable for
    ordinary pipeline parallelism.
    """


@app.command()
@run_file_argument
@workers_option
@brokers_option
@resumed_out_option
@overrides_option
@threads_option
@devices_option
@key_option
def local(*, run_file: Path, overrides: tuple[str, ...], key_file: Path | None, **swarm: Any) -> None:
    """Train with a whole swarm on this machine.

    Starts a trainer, brokers and workers that talk over loopback, starts again whichever of them dies, and ends
    them all when it ends.
    """
    from zswarm.cli.local import LocalOptions, run_local
    from zswarm.cli.supervisor import say
    from zswarm.config import load_run_file

    prepare_for_connections()
    allow_own_models()
    devices = found_devices(swarm["devices"])
    if set(devices) != {CPU}:
        say(f"workers compute on {described(devices)}")
    swarm["devices"] = tuple(devices)
    options = LocalOptions(run_file=run_file, key=key_of(key_file, default=False), begun_s=BEGUN_S, **swarm)
    sys.exit(run_local(load_run_file(run_file, overrides), options))


@app.command()
@run_file_argument
@out_option
@overrides_option
@threads_option
@device_option
def reference(*, run_file: Path, overrides: tuple[str, ...], **process: Any) -> None:
    """Train the same run in one process.

    A plain PyTorch loop over the same samples from the same parameters: what a swarm is held against. With
    batch.accumulation = "exact", the stages' own computations one after the other: equal to a swarm's to the bit.
    """
    from zswarm.cli.reference import run_reference_command
    from zswarm.config import load_run_file

    allow_own_models()
    config = load_run_file(run_file, overrides)
    run_reference_command(config, run_file=run_file, begun_s=BEGUN_S, **process)


@app.command()
@folder_argument
def audit(*, folder: Path) -> None:
    """Check that a run counted everything exactly once.

    Recomputes from the events in the run folder DIR that every microbatch of every committed step was
    counted exactly once at every stage.
    """
    from zswarm.audit import audit

    checks = audit(folder)
    for check in checks:
        click.echo(str(check))
    if not all(check.is_passed for check in checks):
        raise RunFailed(f"{folder}: what was committed is not what was asked for")


@app.command()
@folder_argument
@click.option("--prompt", default="", metavar="TEXT", help="What the text begins with.")
@click.option("--length", type=COUNT, default=400, show_default=True, metavar="N", help="How many bytes to add.")
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=0.8,
    show_default=True,
    metavar="T",
    help="0 takes the likeliest byte each time.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    metavar="K",
    help="Draw from the K likeliest bytes; 0 draws from all.",
)
@seed_option
def generate(*, folder: Path, **sampling: Any) -> None:
    """Print a text from the model of the run folder DIR."""
    from zswarm.cli.generate import Sampling, generate_text

    allow_own_models()
    generate_text(folder, Sampling(**sampling))


@app.command()
@run_file_argument
@click.option(
    "--listen",
    metavar="ADDRESS",
    help="The address of this machine, and port, where everybody comes to; otherwise the address that machines "
    f"of the swarm reach it by, and port {TRAINER_PORT}.",
)
@click.option(
    "--workers",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="Workers per stage to wait for; more may come.",
)
@click.option(
    "--brokers",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="Brokers per stage to wait for; more may come.",
)
@seeds_option
@resumed_out_option
@overrides_option
@key_option
@level_option
def train(
    *,
    run_file: Path,
    listen: str | None,
    seeds: tuple[str, ...],
    overrides: tuple[str, ...],
    key_file: Path | None,
    level: str,
    **swarm: Any,
) -> None:
    """Own a run: wait for its brokers and workers, and train.

    The run begins when every stage has its brokers and workers: those of machines that have joined the swarm
    (`zswarm join`) come by themselves, others are started with `zswarm broker` and `zswarm worker`. Whoever of
    them dies may come back at any time, and so may this command, with the same --out.
    """
    from zswarm.cli.trainer import TrainerCommand, run_trainer
    from zswarm.config import load_run_file
    from zswarm.transport import address_at, host_of

    allow_own_models()
    _node("trainer", "trainer", level)
    swarm_key = key_of(key_file)
    given = None if listen is None else _address("--listen", listen, swarm_key, listening=True)
    host = None if given is None else host_of(given)
    place, _ = place_of(name=None, host=host, seeds=seeds, key=swarm_key, beacon_port=BEACON_PORT)
    address = given or _address("--listen", address_at(place.host, TRAINER_PORT), swarm_key, listening=True)
    command = TrainerCommand(run_file=run_file, listen=address, place=place, begun_s=BEGUN_S, **swarm)
    _end(run_trainer(load_run_file(run_file, overrides), command))


@app.command()
@coordinator_option
@seeds_option
@host_option
@key_option
@click.option(
    "--capacity-gib",
    type=FiniteRange(min=0.01),
    default=1.0,
    show_default=True,
    metavar="GIB",
    help="Most memory for payloads.",
)
@name_option
@level_option
def broker(*, capacity_gib: float, name: str | None, level: str, **where: Any) -> None:
    """Take part in runs as a broker: hold a stage's queue."""
    from brokers.service import serve_broker

    serve = partial(serve_broker, node=_node("broker", name, level), capacity_bytes=int(capacity_gib * 2**30))
    _end(_serve(lambda: serve, **where))


@app.command()
@coordinator_option
@seeds_option
@host_option
@key_option
@device_option
@threads_option
@allow_option
@name_option
@level_option
def worker(*, device: str, threads: int, modules: tuple[str, ...], name: str | None, level: str, **where: Any) -> None:
    """Take part in runs as a worker: compute one stage."""
    node = _node("worker", name, level)
    allowed = allowed_models(modules)

    @large_imports()
    def prepare() -> Callable[..., Exit]:
        from stages.service import Computing, serve_worker

        return partial(serve_worker, node=node, computing=Computing(device=device, threads=threads, allowed=allowed))

    _end(_serve(prepare, **where))


@app.command()
@click.argument("node", metavar="NODE")
@click.argument("stage", metavar="STAGE", type=click.IntRange(0, MAX_STAGES - 1))
@coordinator_option
@seeds_option
@key_option
def move(*, node: str, stage: int, coordinator: str | None, seeds: tuple[str, ...], key_file: Path | None) -> None:
    """Move a worker to another stage of a run.

    NODE is the worker's name, as the log of the run has it; STAGE counts from 0. It goes when the step in work is
    committed, so that nothing is lost; never the last of its stage. The stage that it is in cancels that until then.
    """
    from zswarm.cli.move import move as move_worker

    who = process_name(node, option="NODE")
    swarm_key = key_of(key_file)
    if coordinator is None:
        coordinator = _running(seeds, swarm_key)
    address = _address("--coordinator", coordinator, swarm_key)
    click.echo(move_worker(node=who, stage=Stage(stage), coordinator=address, key=swarm_key))


@app.command()
@click.option("--schedules", type=COUNT, default=100, show_default=True, metavar="N", help="How many.")
@seed_option
@click.option("--mutant", metavar="NAME", help="Break a rule of the protocol meanwhile: is it noticed?")
@click.option("--trace", is_flag=True, help="Print every event and every command.")
@click.option(
    "--jobs", type=COUNT, default=1, show_default=True, metavar="N", help="Processes that share the schedules."
)
def simulate(*, schedules: int, seed: int, mutant: str | None, trace: bool, jobs: int) -> None:
    """Run the machines that train under a virtual clock.

    Random schedules, on a network that loses, repeats, reorders and cuts off, of processes that are killed,
    frozen and hung; every promise is checked after every event. The schedules are those of the seeds S, S + 1, ...
    """
    from zswarm.simulation.command import simulate

    if simulate(schedules, seed, mutant=mutant, trace=trace, jobs=jobs):
        raise RunFailed("a schedule broke a promise")


for command in (bench, chaos, key, init, join, beacon, pause, resume, doctor, service):
    app.add_command(command)


def main() -> None:
    """Run the command line and exit; one more Ctrl-C or SIGTERM while the interpreter ends does not change the exit code."""
    code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        app(arguments, prog_name="zswarm", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        return _fail(str(error), TRY_LATER if isinstance(error, NotYet) else 2)
    except RunFailed as error:
        _show_traceback()
        return _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; what is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the top of the main thread: whatever else it is, it is our bug
        _show_traceback()
        text = f"this is a bug of zswarm: {type(error).__name__}: {error}"
        return _fail(f"{text}; {SHOW_TRACEBACK}=1 in the environment shows where it comes from", 1)
    return 0


def _fail(text: str, code: int) -> int:
    click.echo(f"zswarm: {text}", err=True)
    return code


def _show_traceback() -> None:
    if os.environ.get(SHOW_TRACEBACK):
        traceback.print_exc()


def _address(option: str, text: str, swarm_key: SwarmKey | None, *, listening: bool = False) -> Address:
    from zswarm.transport import checked_address

    try:
        return checked_address(text, listening=listening, has_key=swarm_key is not None)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _serve(
    prepare: Callable[[], Callable[..., Exit]],  # may import torch, for which nobody waits who has mistyped an option
    *,
    coordinator: str | None,
    seeds: tuple[str, ...],
    host: str | None,
    key_file: Path | None,
) -> Exit:
    """Have a broker or worker take part in the coordinator's run, or without one in whatever runs there are."""
    from zswarm.cli.serving import or_interrupted, serve_runs
    from zswarm.cli.started_by import started_by
    from zswarm.logs import get_log
    from zswarm.transport import any_port, host_towards

    swarm_key = key_of(key_file)
    if coordinator is None:
        place, _ = place_of(name=None, host=host, seeds=seeds, key=swarm_key, beacon_port=BEACON_PORT)
        listen = _address("--host", any_port(place.host), swarm_key, listening=True)
        serve = partial(prepare(), listen=listen, key=swarm_key)
        return or_interrupted(lambda: serve_runs(place, serve, say=get_log().info, overseer=started_by()))
    address = _address("--coordinator", coordinator, swarm_key)
    option, host = ("--coordinator", host_towards(address)) if host is None else ("--host", host)
    listen = _address(option, any_port(host), swarm_key, listening=True)
    take_part = partial(prepare(), coordinator=address, listen=listen, key=swarm_key)
    return or_interrupted(lambda: take_part(overseer=started_by()))


def _running(seeds: tuple[str, ...], swarm_key: SwarmKey | None) -> str:
    """Return where the trainer of a run is, of which the beacons tell."""
    from zswarm.beacon.service import seek

    place, _ = place_of(name=None, host=None, seeds=seeds, key=swarm_key, beacon_port=BEACON_PORT)
    offer = seek(place, avoided={}, within_s=SEEK_S)
    if offer is None:
        raise UserError(f"no run has been found within {SEEK_S:.0f} s: name its trainer with --coordinator")
    return offer.coordinator


def _node(role: str, name: str | None, level: str) -> NodeId:
    """Name this process, set up its log, and let it have its connections."""
    from zswarm.logs import set_up_logs

    prepare_for_connections()
    node = process_name(name or f"{role}-{os.uname().nodename}-{os.getpid()}", option="--name")
    set_up_logs(node, level=level)
    return node


def _end(end: Exit) -> None:
    """Exit as the machine has ended: what is no failure of the run keeps its code."""
    if end.code == REFUSED:
        sys.exit(_fail(end.text, REFUSED))
    if end.code == INTERRUPTED:
        sys.exit(INTERRUPTED)
    if end.code != 0:
        raise RunFailed(end.text)
