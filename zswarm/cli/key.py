"""`zswarm key`: the file that makes processes on several machines members of one swarm, and the option that names it."""

from __future__ import annotations

import os
from pathlib import Path

import click

VARIABLE = "ZSWARM_KEY"


def default_path() -> Path:
    """Return where this user's swarm key is, by the XDG base directory specification: a relative folder counts as none."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".config") / "zswarm" / "key"


def _path(_: click.Context, __: click.Parameter, value: str | None) -> Path | None:
    """Return the file that the option names, the default one if it names none, None if it is not there."""
    if value is None:
        return None
    return Path(value) if value else default_path()


key_option = click.option(
    "--key",
    "key_file",
    is_flag=False,
    flag_value="",
    callback=_path,
    envvar=VARIABLE,
    metavar="[FILE]",
    help="Encrypt, and talk only to holders of this swarm key; without FILE, of ~/.config/zswarm/key. "
    f"Also from {VARIABLE}. Needed to leave the loopback.",
)


@click.group()
def key() -> None:
    """Make the key that the processes of a swarm know each other by."""


@key.command()
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
def init(*, file: Path | None) -> None:
    """Make a swarm key.

    In FILE, or in ~/.config/zswarm/key, readable by you alone. A file that is there is left as it is. Whoever has the
    key is a member of the swarm: copy it to each of its machines over ssh, and to nobody else.
    """
    from zswarm.swarm_key import make_key_file

    path = file or default_path()
    make_key_file(path)
    click.echo(path)
