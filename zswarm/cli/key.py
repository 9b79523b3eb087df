"""`zswarm key`: the file that makes processes on several machines members of one swarm, and the option that names it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click

from zswarm.cli.folders import user_folder
from zswarm.errors import UserError

VARIABLE = "ZSWARM_KEY"
PUSH_WITHIN_S = 60.0
"""For ssh to one machine, a password typed included."""
_RECEIVE = (
    'umask 077 && folder="${XDG_CONFIG_HOME:-$HOME/.config}/zswarm" && mkdir -p "$folder" && '
    'cat > "$folder/key.new" && mv "$folder/key.new" "$folder/key"'
)
"""What ssh runs there, with the key on its input: it is in nobody's list of processes."""


def default_path() -> Path:
    """Return where this user's swarm key is."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "key"


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


@key.command()
@click.argument("machines", metavar="[USER@]MACHINE...", nargs=-1, required=True)
@click.option("--key", "file", metavar="FILE", type=click.Path(path_type=Path), help="Otherwise ~/.config/zswarm/key.")
def push(*, machines: tuple[str, ...], file: Path | None) -> None:
    """Copy the swarm key to machines, by ssh.

    It becomes ~/.config/zswarm/key there, readable by that user alone, in place of any that is there.
    """
    push_key(file or default_path(), machines)


@key.command()
@click.argument("machines", metavar="[USER@]MACHINE...", nargs=-1)
@click.option("--key", "file", metavar="FILE", type=click.Path(path_type=Path), help="Otherwise ~/.config/zswarm/key.")
def rotate(*, machines: tuple[str, ...], file: Path | None) -> None:
    """Make another swarm key in place of this one, and push it to MACHINES.

    For when somebody has it who should not. The old one stays beside it as key.old, for you alone. Processes that run
    go on with the key that they began with, so that whoever has the old one is shut out when all have been started again.
    """
    from zswarm.swarm_key import replace_key_file

    path = file or default_path()
    old = replace_key_file(path)
    click.echo(f"{path}: a new key; the old one is in {old}")
    push_key(path, machines)
    click.echo("start the processes of the swarm again: they have the key that they began with")


def push_key(path: Path, machines: tuple[str, ...]) -> None:
    """Copy a key file to machines; all are tried.

    Raises:
        UserError: it is no key, or some have not got it.

    """
    from zswarm.swarm_key import read_key_file

    read_key_file(path)
    content = path.read_bytes()
    failed = []
    for machine in machines:
        problem = _push(content, machine)
        click.echo(f"{machine}: {problem or 'has the key'}")
        if problem is not None:
            failed.append(machine)
    if failed:
        raise UserError(f"the key has not reached {', '.join(failed)}: `ssh MACHINE` must work from here")


def _push(content: bytes, machine: str) -> str | None:
    """Copy it to one; returns what went wrong."""
    if machine.startswith("-"):
        return "is no machine"
    try:
        done = subprocess.run(  # noqa: S603 - whom to call is what the user has asked for, and no shell reads it here
            ["ssh", machine, _RECEIVE],  # noqa: S607 - the user's own ssh
            input=content,
            capture_output=True,
            check=False,
            timeout=PUSH_WITHIN_S,
        )
    except FileNotFoundError:
        return "there is no ssh on this machine"
    except subprocess.TimeoutExpired:
        return f"no answer within {PUSH_WITHIN_S:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ssh ended with {done.returncode}"
