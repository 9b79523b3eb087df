"""`zswarm bench`: how fast this machine is at what a run is made of, and how right a swarm is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zswarm.cli.key import key_option

COUNT = click.IntRange(min=1)

pairs_option = click.option(
    "--pairs", type=COUNT, default=3, show_default=True, metavar="N", help="How often each system is measured."
)
json_file_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write all measurements to this file too.",
)


@click.group()
def bench() -> None:
    """Measure this machine's speed at what a run is made of."""


@bench.command()
@click.option("--threads", type=COUNT, default=1, show_default=True, metavar="N", help="Threads of torch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def codec(**options: Any) -> None:
    """Relative error, bytes and GB/s of each codec."""
    from zswarm.benchmarks.codec import main

    main(**options)


@bench.command()
@pairs_option
@key_option
@json_file_option
def broker(**options: Any) -> None:
    """Messages and bytes per second through one broker, beside a bare loop, and its memory."""
    from zswarm.benchmarks.broker import main

    main(**options)


@bench.command()
@click.option("--model", type=click.Choice(["tiny", "mid", "card"]), default="tiny", show_default=True)
@pairs_option
@json_file_option
def training(**options: Any) -> None:
    """Samples per second of a swarm, beside the compute limit and torch's own pipeline."""
    from zswarm.benchmarks.training import main

    main(**options)


@bench.command()
@click.option("--trials", type=COUNT, default=40, show_default=True, metavar="N", help="How often each fault strikes.")
@json_file_option
def faults(**options: Any) -> None:
    """Steps that one fault costs, and how soon it is noticed, by the simulator's clock; takes five minutes."""
    from zswarm.benchmarks.faults import main

    main(**options)


@bench.command()
@click.option("--rounds", type=COUNT, default=3, show_default=True, metavar="N", help="How many brokers are attacked.")
@json_file_option
def attack(**options: Any) -> None:
    """What strangers without the swarm key cost a broker; takes a minute."""
    from zswarm.benchmarks.attack import main

    main(**options)


@bench.command()
@click.option("--seeds", type=COUNT, default=10, show_default=True, metavar="N", help="Runs of each policy.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Who comes and goes, in lines TIME_S,arrive|leave,WORKER; default: a synthetic trace of spot machines, 32 h.",
)
@json_file_option
def rebalancing(**options: Any) -> None:
    """What part of the possible throughput a swarm has whose workers come and go for hours; takes some minutes."""
    from zswarm.benchmarks.rebalancing import main

    main(**options)


@bench.command()
@click.argument("run_file", metavar="RUN.toml", type=click.Path(path_type=Path))
@click.option("--workers", type=COUNT, default=2, show_default=True, metavar="N", help="Workers of each stage.")
def equality(*, run_file: Path, workers: int) -> None:
    """How far a swarm's parameters and losses are from those of one process; takes a while."""
    from zswarm.benchmarks.equality import equality

    equality(run_file, workers=workers)
