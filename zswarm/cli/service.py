"""`zswarm service`: brokers, workers and runs as services of systemd."""

from __future__ import annotations

from pathlib import Path

import click

root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    default=Path("/"),
    metavar="DIR",
    help="Not this machine, but the one that has this folder as its root: an image.",
)


@click.group()
def service() -> None:
    """Have systemd start brokers and workers at boot, and run trainings."""


@service.command()
@click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Workers, one for each device 0 to N - 1.",
)
@click.option("--broker/--no-broker", "has_broker", default=True, show_default=True, help="With a broker, or without.")
@click.option("--start", "is_started", is_flag=True, help="Start them now, too, or again.")
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The zswarm that the services start; otherwise the one of this environment, or in an image /opt/zswarm's.",
)
@root_option
def install(*, num_workers: int, has_broker: bool, is_started: bool, program: Path | None, root: Path) -> None:
    """Install zswarm's services.

    Writes the units, and /etc/zswarm/zswarm.conf unless it is there, and has its beacon, a broker and N workers start at boot.
    Run it again after an upgrade, or with other options. The swarm key must be in /etc/zswarm/swarm.key.
    """
    from zswarm.cli import installation

    machine = installation.Machine(root=root)
    if is_started and not machine.is_this:
        raise click.UsageError("--start: what is in a folder does not run; leave it out")
    if program is None:
        program = installation.this_program() if machine.is_this else Path(installation.SHIPPED_PROGRAM)
    for done in installation.install(machine, program, num_workers=num_workers, has_broker=has_broker):
        click.echo(done)
    if is_started:
        for done in installation.start(machine):
            click.echo(done)


@service.command()
@root_option
def uninstall(*, root: Path) -> None:
    """Stop zswarm's services and remove them; key, configuration and run folders stay."""
    from zswarm.cli import installation

    for done in installation.uninstall(installation.Machine(root=root)):
        click.echo(done)
