"""Whose model code a process runs: that of the current folder for the user's own run file, else what is allowed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stages.allowed import Allowed


def _module(name: str) -> str:
    """Return the name of a module, if it may be one."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise click.BadParameter(f"{name!r} is no module: write its name as in `import`, such as mymodel or lab.models")
    return name


allow_option = click.option(
    "--allow",
    "modules",
    multiple=True,
    metavar="MODULE",
    callback=lambda _ctx, _param, names: tuple(map(_module, names)),
    help="Run model code of this module, or package and all that is in it; repeatable. Without it only built-in "
    "models are computed here: whoever runs the trainer names the function that is called.",
)


def allow_own_models() -> None:
    """Let model.factory name a module in the current folder, as `python -m` does, but after installed ones."""
    sys.path.append(str(Path.cwd()))


def allowed_models(modules: tuple[str, ...]) -> Allowed:
    """Return what --allow has named; with any, modules of the current folder are found."""
    from stages.allowed import Allowed

    if modules:
        allow_own_models()
    return Allowed(modules=frozenset(modules), command=("zswarm", *sys.argv[1:]))
