"""Is training by a swarm the training that one process would do? Prints how far the two are apart.

sgd     codec none, 50 steps: relative difference of the final parameters        |swarm - one| / |one|
adamw   codec none, 50 steps: largest difference of any step's loss
int8    codec int8, 200 steps: held-out loss beside three seeds of one process
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from zswarm.errors import RunFailed

SEEDS = (0, 1, 2)
EXACTLY = ("wire.codec=none", "wire.all_reduce=none")
SGD = ("optimizer.name=sgd", "optimizer.lr=0.1", *EXACTLY)
ADAMW = EXACTLY
INT8 = ("wire.codec=int8",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run left in its folder."""

    summary: dict[str, Any]
    parameters: dict[str, np.ndarray]


def run(command: Sequence[str], run_file: Path, settings: Sequence[str], folder: Path) -> Outcome:
    """Run `zswarm COMMAND` on a run file with `--set` settings into a folder.

    Raises:
        RunFailed: it did not end well.

    """
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = [sys.executable, "-m", "zswarm", command[0], str(run_file), *command[1:], *options]
    done = subprocess.run([*arguments, "--out", str(folder)], capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode != 0:
        raise RunFailed(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    summary = json.loads((folder / "summary.json").read_text())
    return Outcome(summary=summary, parameters=load_file(folder / "model.safetensors"))


def relative_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the norm of the difference over the norm, of all parameters together."""
    if found.keys() != expected.keys():
        raise RunFailed(f"other parameters: {sorted(found.keys() ^ expected.keys())}")
    names = sorted(expected)
    difference = sum(float(np.square(found[n].astype(np.float64) - expected[n]).sum()) for n in names)
    norm = sum(float(np.square(expected[n].astype(np.float64)).sum()) for n in names)
    return float(np.sqrt(difference / norm))


def equality(run_file: Path, *, workers: int = 2, steps: int = 50, int8_steps: int = 200) -> dict[str, Any]:
    """Run swarm and single process side by side in turn; returns and prints the figures."""
    local = ("local", "--workers", str(workers))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="zswarm-equality-") as top:
        folder = Path(top)
        length = (f"run.steps={steps}",)
        for name, settings in (("sgd", SGD), ("adamw", ADAMW)):
            swarm = run(local, run_file, (*settings, *length), folder / f"{name}-swarm")
            one = run(("reference",), run_file, (*settings, *length), folder / f"{name}-one")
            found[f"{name}_parameters"] = relative_difference(swarm.parameters, one.parameters)
            pairs = zip(swarm.summary["loss"], one.summary["loss"], strict=True)
            found[f"{name}_loss"] = max(abs(a - b) for a, b in pairs)
        length = (f"run.steps={int8_steps}",)
        found["int8_held_out"] = run(local, run_file, (*INT8, *length), folder / "int8").summary["held_out_loss"]
        found["reference_held_out"] = [
            run(("reference",), run_file, (f"run.seed={seed}", *length), folder / f"seed-{seed}").summary[
                "held_out_loss"
            ]
            for seed in SEEDS
        ]
    _print(found)
    return found


def _print(found: dict[str, Any]) -> None:
    table = Table("what", "found", "target", title="a swarm beside one process")
    table.add_row("SGD: parameters, relative", f"{found['sgd_parameters']:.2e}", "1e-6")
    table.add_row("AdamW: loss of any step", f"{found['adamw_loss']:.2e}", "1e-3")
    low, high = min(found["reference_held_out"]), max(found["reference_held_out"])
    table.add_row("int8: held-out loss", f"{found['int8_held_out']:.4f}", f"{low:.4f} to {high:.4f}")
    Console().print(table)
