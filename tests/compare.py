"""How fast one version of zswarm trains beside another one: the same run with each, in turn, and the ratio within each pair.

git worktree add ../before dd48ff0
python -m tests.compare ../before . --pairs 7 --set pipeline.stages=4

Both run deploy/examples/tiny.toml of the first one, which the second has to understand as well, by `zswarm local`, on this machine,
which should have nothing else to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from zswarm.benchmarks.bystanders import TOLERATED_CORES, Bystanders
from zswarm.benchmarks.figures import Figure, table_of
from zswarm.benchmarks.intervals import alternating, paired_ratios

LIMIT_S = 600.0
SOURCE = click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)


def samples_per_s(source: Path, run_file: Path, options: list[str]) -> float:
    """Train with the version in this folder; the median over the steps after the first."""
    with tempfile.TemporaryDirectory(prefix="zswarm-compare-") as folder:
        out = Path(folder) / "run"
        subprocess.run(
            [sys.executable, "-m", "zswarm", "local", str(run_file), "--out", str(out), *options],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(source)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=LIMIT_S,
        )
        return float(json.loads((out / "summary.json").read_text())["samples_per_s"])


@click.command()
@click.argument("before", type=SOURCE)
@click.argument("after", type=SOURCE)
@click.option("--pairs", type=click.IntRange(min=1), default=7, show_default=True, metavar="N")
@click.option("--steps", type=click.IntRange(min=3), default=12, show_default=True, metavar="N", help="Of each run.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="Of each stage.")
@click.option("--set", "overrides", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key of the run file.")
def main(*, before: Path, after: Path, pairs: int, steps: int, workers: int, overrides: tuple[str, ...]) -> None:
    """Compare the samples per second of two source folders."""
    options = ["--workers", str(workers), "--brokers", "1", "--set", f"run.steps={steps}"]
    for override in overrides:
        options += ["--set", override]
    run_file, console = before / "deploy/examples/tiny.toml", Console(highlight=False)
    rates: dict[str, list[float]] = {"before": [], "after": []}
    most_cores = 0.0
    for number, order in enumerate(alternating([("before", before), ("after", after)], pairs)):
        for name, source in order:
            bystanders = Bystanders()
            rates[name].append(samples_per_s(source, run_file, options))
            most_cores = max(most_cores, bystanders.cores())
            console.print(f"pair {number}: {name} {rates[name][-1]:.2f} samples/s")
    ratios = Figure(name="after / before", values=paired_ratios(rates["after"], rates["before"]), at_least=0.98)
    figures = [*(Figure(name=f"{name}, samples/s", values=values) for name, values in rates.items()), ratios]
    console.print(table_of(figures, f"two versions, median of {pairs} pairs"))
    if most_cores > TOLERATED_CORES:
        console.print(f"others used up to {most_cores:.2f} cores meanwhile: measure again on a quiet machine")


if __name__ == "__main__":
    main()
