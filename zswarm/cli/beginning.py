"""`zswarm init`: what a swarm needs before its first machine joins."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from zswarm.cli.folders import is_there
from zswarm.cli.key import default_path
from zswarm.config import RUN_NAME
from zswarm.errors import UserError
from zswarm.swarm_key import make_key_file, read_key_file

_HEADER = """\
# A run of zswarm: a byte-level GPT of 6 million parameters, trained on the source code of this Python's standard library.
#
#     zswarm train {run_file}    # on the machines that have joined the swarm
#     zswarm local {run_file}    # on this machine alone
#
"""
_KEYS = "# Every key is here."
"""Where the example begins that is the same for every run."""


def begin(run_file: Path) -> Iterator[str]:
    """Make the key and the run file, unless they are there; yields what was done, and what comes next.

    Raises:
        UserError: one of them cannot be made, or the key that is there cannot be used.

    """
    key_file = default_path()
    if is_there(key_file):
        read_key_file(key_file)
        yield f"{key_file}: the swarm key is there already"
    else:
        make_key_file(key_file)
        yield f"{key_file}: a new swarm key; whoever has it is a member of the swarm"
    try:
        with run_file.open("x", encoding="utf-8") as writer:
            writer.write(_first_run(run_file))
    except FileExistsError:
        yield f"{run_file}: is there already"
    except OSError as error:
        raise UserError(f"{run_file}: cannot be written: {error.strerror}") from None
    else:
        yield f"{run_file}: a run file with every key"
    yield "next:"
    yield "  zswarm key push MACHINE...   # the key to each other machine, by ssh"
    yield "  zswarm join                  # on each machine"
    yield f"{f'  zswarm train {_shown(run_file)}':31}# on any of them"


def _first_run(run_file: Path) -> str:
    """Return the example as a run of this file: with its name, and the commands that train it."""
    example = files("zswarm.cli").joinpath("examples", "tiny.toml").read_text(encoding="utf-8")
    _, mark, keys = example.partition(_KEYS)
    name = run_file.stem if re.fullmatch(RUN_NAME, run_file.stem) else "run"
    keys = re.sub(r'^name = "tiny" *', f'name = "{name}"'.ljust(24) + " ", keys, count=1, flags=re.MULTILINE)
    return _HEADER.format(run_file=_shown(run_file)) + mark + keys.replace("runs/tiny-", f"runs/{name}-")


def _shown(run_file: Path) -> str:
    """Return the file's name as it is typed."""
    return shlex.quote(str(run_file)) if str(run_file).isprintable() else "RUN.toml"
