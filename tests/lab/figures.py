"""The figures of a swarm across machines, measured in a laboratory on this one; needs root.

python -m tests.lab.figures join      # what a join takes, and what it costs the run
python -m tests.lab.figures shares    # do unequal machines together what they do alone?
python -m tests.lab.figures churn     # what is left when machines are killed, frozen, cut off, and return
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from tests.lab import churn as churn_
from tests.lab import joining
from tests.lab import shares as shares_
from tests.lab.ground import LabError, why_not
from tests.lab.swarm import Site, Strangers, site
from zswarm.benchmarks.figures import Figure, claim, table_of
from zswarm.errors import RunFailed, UserError

TERMINATED = 143
"""Exit code after a termination signal, as shells have it."""
COUNT = click.IntRange(min=1)
SECONDS = click.FloatRange(min=1.0)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
json_option = click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")


@click.group()
def app() -> None:
    """Measure a swarm in a laboratory of network namespaces, each figure beside its target."""


@app.command()
@click.option("--rounds", type=COUNT, default=3, show_default=True, metavar="N", help="How often a machine joins.")
@click.option("--before", "before_s", type=SECONDS, default=30.0, show_default=True, metavar="S", help="Undisturbed.")
@seed_option
@json_option
def join(*, json_file: Path | None, **options: Any) -> None:
    """Measure what a join takes, and what it costs the run."""
    chosen = joining.JoinOptions(**options)
    title = f"a machine joins; {joining.RATE_MBIT:g} Mb/s, {joining.LATENCY_MS:g} ms, {joining.CORES:g} cores each"
    report(lambda site: joining.measure(site, chosen), title, json_file)


@app.command()
@click.option("--batch", "global_batch", type=COUNT, default=256, show_default=True, metavar="N", help="Global batch.")
@click.option("--steps", type=COUNT, default=3, show_default=True, metavar="N", help="Measured of each run.")
@seed_option
@json_option
def shares(*, json_file: Path | None, **options: Any) -> None:
    """Measure unequal machines together, beside each alone."""
    chosen = shares_.ShareOptions(**options)
    cores = " : ".join(f"{cores:g}" for cores in shares_.CORES)
    title = f"machines of {cores} cores, {shares_.RATE_MBIT:g} Mb/s, batches of {chosen.global_batch}"
    report(lambda site: shares_.measure(site, chosen), title, json_file)


@app.command()
@click.option("--duration", "duration_s", type=SECONDS, default=600.0, show_default=True, metavar="S", help="Of churn.")
@click.option("--every", "every_s", type=SECONDS, default=10.0, show_default=True, metavar="S", help="Between changes.")
@click.option("--calm", "calm_s", type=SECONDS, default=60.0, show_default=True, metavar="S", help="Before it.")
@seed_option
@json_option
def churn(*, json_file: Path | None, **options: Any) -> None:
    """Measure what is left when machines come and go."""
    chosen = churn_.ChurnOptions(**options)
    title = f"{churn_.NUM_MACHINES} machines, {churn_.STAGES} stages, a change every {chosen.every_s:g} s for {chosen.duration_s:g} s"
    report(lambda site: churn_.measure(site, chosen), title, json_file)


def report(measure: Callable[[Site], Sequence[Figure]], title: str, json_file: Path | None) -> None:
    """Make a laboratory, measure in it, print the figures, and write them to the file, too.

    Raises:
        UserError: no laboratory can be made here, or the file cannot be written.
        RunFailed: the swarm did not do what it should.

    """
    if (reason := why_not()) is not None:
        raise UserError(reason)
    claim(json_file)
    with site() as made:
        strangers = Strangers(made.lab)
        figures = [*measure(made), Figure(name="cores that others used", values=[strangers.cores()])]
    Console().print(table_of(figures, title))
    if json_file is not None:
        json_file.write_text(json.dumps({"title": title, "figures": [each.as_json() for each in figures]}, indent=1))


def main() -> NoReturn:
    """Run the command; a signal ends it in good order."""

    def terminated(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, terminated)
    try:
        app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (LabError, RunFailed, UserError) as error:
        click.echo(f"figures: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    sys.exit(0)


if __name__ == "__main__":
    main()
