"""The commands of a machine that is part of a swarm: `init`, `join`, `beacon`, `pause`, `resume`, `doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zswarm.cli.devices import described, devices_option, found_devices
from zswarm.cli.key import key_option
from zswarm.cli.models import allow_option, allowed_models
from zswarm.cli.places import (
    BEACON_PORT,
    host_option,
    key_of,
    machine_option,
    place_of,
    prepare_for_connections,
    seeds_option,
)

if TYPE_CHECKING:
    from zswarm.beacon.service import Place

COUNT = click.IntRange(min=1)
port_option = click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=BEACON_PORT,
    show_default=True,
    metavar="N",
    help="Where this machine's beacon listens.",
)


@click.command()
@click.argument("run_file", metavar="[RUN.toml]", default="run.toml", type=click.Path(path_type=Path))
def init(*, run_file: Path) -> None:
    """Begin a swarm: make its key, and a run file to start from.

    The key is ~/.config/zswarm/key; the run file has every key with what it means. What is there already stays as it is.
    """
    from zswarm.cli.beginning import begin

    for line in begin(run_file):
        click.echo(line)


@click.command()
@seeds_option
@host_option
@port_option
@machine_option
@key_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="On each device; each computes one stage.",
)
@click.option("--brokers", type=click.IntRange(min=0), metavar="N", help="Otherwise as many as workers.")
@click.option(
    "--threads", type=COUNT, default=1, show_default=True, metavar="N", help="Threads that torch may use per worker."
)
@devices_option
@allow_option
def join(
    *, workers: int, brokers: int | None, devices: tuple[str, ...], modules: tuple[str, ...], **where: Any
) -> None:
    """Make this machine part of the swarm.

    Starts its beacon, by which machines find each other, and brokers and workers that take part in whatever run
    `zswarm train` begins on any of them, one after the other, until Ctrl-C. What a run needs comes from the run.
    """
    from zswarm.cli.join import JoinOptions, run_join
    from zswarm.cli.supervisor import say
    from zswarm.transport import address_at

    threads, port = where.pop("threads"), where["port"]
    place, why = _place(is_beacon=True, **where)
    if devices and not workers:
        raise click.BadParameter("there are no workers that would use it: leave it out", param_hint="--device")
    found = found_devices(devices) if workers else {}
    names = tuple(name for name in found for _ in range(workers))
    options = JoinOptions(
        place=place,
        beacon=address_at(place.host, port),
        devices=names,
        brokers=len(names) if brokers is None else brokers,
        threads=threads,
        allowed=allowed_models(modules),
    )
    on = f" on {described(found)}" if found else ""
    say(f"{place.machine} joins at {place.host}:{port} ({why}): {len(names)} workers{on}, {options.brokers} brokers")
    sys.exit(run_join(options))


@click.command()
@seeds_option
@host_option
@port_option
@machine_option
@key_option
def beacon(*, port: int, **where: Any) -> None:
    """Be found, and tell of others and of runs: what `zswarm join` starts beside brokers and workers."""
    from zswarm.beacon.service import serve_beacon
    from zswarm.cli.started_by import started_by
    from zswarm.cli.supervisor import say
    from zswarm.transport import address_at

    place, why = _place(port=port, is_beacon=True, **where)
    say(f"beacon of {place.machine} at {place.host}:{port} ({why})")
    serve_beacon(place, listen=address_at(place.host, port), say=say, overseer=started_by())


@click.command()
@seeds_option
@host_option
@port_option
@key_option
@click.option("--no-bandwidth", is_flag=True, help="Leave out what takes a third of a second per pair at 200 Mb/s.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def doctor(*, port: int, no_bandwidth: bool, as_json: bool, **where: Any) -> None:
    """Say which machines of the swarm reach which, how fast, and what is in the way where they do not.

    Exits with code 1 if there is a hole.
    """
    from zswarm.cli.doctor import examine

    place, why = _place(port=port, name=None, **where)
    sys.exit(examine(place, why=why, with_rates=not no_bandwidth, as_json=as_json))


@click.command()
def pause() -> None:
    """Give this machine's devices back to their owner: the workers of `zswarm join` leave within seconds."""
    from zswarm.cli.pausing import pause as do

    click.echo("paused; `zswarm resume` takes it back" if do() else "it is paused already")


@click.command()
def resume() -> None:
    """Let this machine's workers take part again."""
    from zswarm.cli.pausing import resume as do

    click.echo("resumed" if do() else "it was not paused")


def _place(*, key_file: Path | None, port: int, **where: Any) -> tuple[Place, str]:
    prepare_for_connections()
    return place_of(key=key_of(key_file), beacon_port=port, **where)
