"""`zswarm chaos`: does a run come to the same end when its processes are killed and frozen at random?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

ROLES = ("worker", "broker", "trainer")
KINDS = ("kill", "freeze")
COUNT = click.IntRange(min=1)
F = TypeVar("F", bound=Callable[..., Any])


def _finite(_: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse nan, which is in every range of click's, and infinity."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", param=param)
    return value


def _some_of(names: Sequence[str], option: str, *, metavar: str, text: str) -> Callable[[F], F]:
    """Return an option that takes some of these names, with commas between them; all without it."""

    def chosen(_: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
        for name in value.split(","):
            if name not in names:
                raise click.BadParameter(f"{name!r} is none of {', '.join(names)}.", param=param)
        return tuple(value.split(","))

    return click.option(option, callback=chosen, default=",".join(names), show_default=True, metavar=metavar, help=text)


@click.command()
@click.argument("run_file", metavar="RUN.toml", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The run folder.")
@click.option("--faults", type=COUNT, default=20, show_default=True, metavar="N", help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    default=3.0,
    show_default=True,
    metavar="S",
    help="Mean seconds between two faults.",
)
@_some_of(ROLES, "--roles", metavar="ROLE,...", text="Whom to hit.")
@_some_of(KINDS, "--kinds", metavar="KIND,...", text="What to do: kill, or freeze for a while.")
@click.option("--spare-last", is_flag=True, help="Spare the last worker that holds a stage: no rollbacks.")
@click.option("--workers", type=COUNT, default=2, show_default=True, metavar="N", help="Workers of each stage.")
@click.option("--brokers", type=COUNT, default=2, show_default=True, metavar="N", help="Brokers of each stage.")
@click.option("--set", "overrides", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key of the run file.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of `zswarm reference` with the same settings; otherwise it is run.",
)
@click.option(
    "--limit-s",
    type=click.FloatRange(min=1),
    callback=_finite,
    default=3600.0,
    show_default=True,
    metavar="S",
    help="Longest time of it all.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write every fault and its cost to this file too.",
)
def chaos(**options: Any) -> None:
    """Train while processes are killed and frozen at random.

    Runs `zswarm local`, picks one of its processes at random times and kills it, or freezes it for 0.3 to 6
    seconds. Afterwards the log is audited, and with batch.accumulation = "exact" the parameters
    must be those of one process to the bit.
    """
    from zswarm.chaos.command import ChaosOptions
    from zswarm.chaos.command import chaos as body
    from zswarm.chaos.faults import Kind

    body(ChaosOptions(**options | {"kinds": tuple(map(Kind, options["kinds"]))}))
