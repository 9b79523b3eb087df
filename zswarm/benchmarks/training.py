"""How fast a swarm on this machine trains, beside what the machine could do and beside 1F1B pipelining.

limit       two single-thread processes side by side, each training the whole model in a plain PyTorch loop
limit re    the same with recomputation in the backward
limit own   the same loop with zswarm's linear layers: what its transport and schedule alone cost
1F1B n      torch.distributed.pipelining over gloo, n stages, one single-thread process each
zswarm SxW  `zswarm local` with S stages of W workers, codec int8, recompute never, one thread each

All train the same byte GPT with AdamW, cut alike: in float32 on the processor; on a card in bfloat16, where all processes
share the card and torch's pipelining, which gloo gives no tensors of cards to, is left out. A speed is a global batch
over the median duration of a step after the first. See `intervals` for how noise is kept out of the
ratios; what others used of the machine meanwhile is printed beside them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from zswarm.benchmarks.baselines import Shape
from zswarm.benchmarks.bystanders import TOLERATED_CORES, Bystanders
from zswarm.benchmarks.children import Children
from zswarm.benchmarks.figures import Figure, claim, table_of
from zswarm.benchmarks.intervals import alternating, common_rate_per_s, paired_ratios, rate_per_s
from zswarm.errors import RunFailed, UserError

LIMIT, LIMIT_RECOMPUTE, LIMIT_OWN = "limit", "limit re", "limit own"
ONE_F_ONE_B_2, ONE_F_ONE_B_4 = "1F1B 2", "1F1B 4"
SWARM_2X1, SWARM_4X2 = "zswarm 2x1", "zswarm 4x2"
SYSTEMS = (LIMIT, SWARM_2X1, ONE_F_ONE_B_2, SWARM_4X2, ONE_F_ONE_B_4, LIMIT_OWN, LIMIT_RECOMPUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model to measure with, and how many steps make a stable median."""

    shape: Shape
    plain_steps: int
    pipeline_steps: int
    deadline_s: float
    """Of one measurement."""
    ahead_of_1f1b: float | None = None
    """Target of zswarm 2x1 over 1F1B 2."""
    of_limit: tuple[float, float] | None = (0.90, 0.80)
    """Targets of zswarm 2x1 and 4x2 over the limit."""
    first_step_s: float | None = None
    """Target of the time to the first step of zswarm 4x2."""
    systems: tuple[str, ...] = SYSTEMS
    """What is measured; of the larger model, where a step takes half a minute, only what has a target."""
    device: str = "cpu"
    precision: str = "float32"


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        shape=Shape(d_model=256, num_layers=8, num_heads=4, sequence_length=128, microbatch=4),
        plain_steps=6,
        pipeline_steps=11,
        deadline_s=120.0,
        ahead_of_1f1b=1.0,
        first_step_s=8.0,
    ),
    "mid": Size(
        shape=Shape(d_model=1024, num_layers=4, num_heads=8, sequence_length=256, microbatch=2),
        plain_steps=4,
        pipeline_steps=5,
        deadline_s=600.0,
        ahead_of_1f1b=0.97,
        systems=(LIMIT, SWARM_2X1, ONE_F_ONE_B_2, SWARM_4X2),
    ),
    "card": Size(
        shape=Shape(d_model=1536, num_layers=16, num_heads=12, sequence_length=1024, microbatch=4, global_batch=128),
        plain_steps=6,
        pipeline_steps=6,
        deadline_s=120.0,
        of_limit=None,
        systems=(LIMIT, SWARM_2X1, SWARM_4X2),
        device="cuda:0",
        precision="bfloat16",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One system, once."""

    system: str
    samples_per_s: float
    others_cores: float
    """Cores that other processes used meanwhile."""
    time_to_first_step_s: float | None = None


def even_split(num_blocks: int, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each stage: blocks evenly, the embedding with the first, the head with the last."""
    bounds = [num_blocks * index // num_stages for index in range(num_stages + 1)]
    split = [end - begin for begin, end in pairwise(bounds)]
    split[0] += 1
    split[-1] += 1
    return tuple(split)


def main(*, model: str = "tiny", pairs: int = 3, json_file: Path | None = None) -> None:
    """Measure every system `pairs` times and print each figure beside its target.

    With `json_file`, write all measurements and figures there too.

    Raises:
        UserError: there is no such model, or the file cannot be written.
        RunFailed: a system did not train.

    """
    if model not in SIZES:
        raise UserError(f"--model {model}: write {' or '.join(SIZES)}")
    claim(json_file)
    size, console = SIZES[model], Console()
    systems = _systems(size)
    rounds: list[dict[str, Measurement]] = []
    for number, order in enumerate(alternating(list(systems), pairs)):
        measured = {}
        for name in order:
            measured[name] = _measure(name, systems[name])
            console.print(f"round {number}: {_described(measured[name])}", highlight=False)
        rounds.append(measured)
    figures = figures_of(rounds, size)
    console.print(table_of(figures, f"training, {model}, median of {pairs} rounds"))
    most_cores = max(measurement.others_cores for measured in rounds for measurement in measured.values())
    if most_cores > TOLERATED_CORES:
        console.print(f"others used up to {most_cores:.2f} cores meanwhile: measure again on a quiet machine")
    if json_file is not None:
        found = {
            "model": model,
            "measurements": [[asdict(measurement) for measurement in measured.values()] for measured in rounds],
            "figures": [figure.as_json() for figure in figures],
        }
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def figures_of(rounds: Sequence[Mapping[str, Measurement]], size: Size) -> list[Figure]:
    """Return what is to be printed; each round has one measurement of every system."""

    def speeds(system: str) -> list[float]:
        return [measured[system].samples_per_s for measured in rounds]

    def ratio(above: str, below: str, at_least: float | None = None) -> Figure:
        values = paired_ratios(speeds(above), speeds(below))
        return Figure(name=f"{above} / {below}", values=values, at_least=at_least)

    figures = [Figure(name=f"{system}, samples/s", values=speeds(system)) for system in rounds[0]]
    pairs: list[tuple[str, str, float | None]] = [
        (SWARM_2X1, LIMIT, size.of_limit and size.of_limit[0]),
        (SWARM_2X1, ONE_F_ONE_B_2, size.ahead_of_1f1b),
        (SWARM_4X2, LIMIT, size.of_limit and size.of_limit[1]),
        (SWARM_2X1, LIMIT_OWN, None),
        (SWARM_4X2, LIMIT_OWN, None),
        (ONE_F_ONE_B_2, LIMIT, None),
        (ONE_F_ONE_B_4, LIMIT, None),
    ]
    figures += [ratio(*pair) for pair in pairs if set(pair[:2]) <= set(rounds[0])]
    waits = [measured[SWARM_4X2].time_to_first_step_s for measured in rounds]
    first = [wait for wait in waits if wait is not None]
    figures.append(Figure(name=f"{SWARM_4X2}, s to the first step", values=first, below=size.first_step_s))
    return figures


Speed = tuple[float, float | None]
"""Samples per second, and seconds to the first step where that is known."""


def _systems(size: Size) -> dict[str, Callable[[], Speed]]:
    every: dict[str, Callable[[], Speed]] = {
        LIMIT: partial(_side_by_side, size),
        SWARM_2X1: partial(_swarm, size, num_stages=2, num_workers=1),
        ONE_F_ONE_B_2: partial(_pipeline, size, num_stages=2),
        SWARM_4X2: partial(_swarm, size, num_stages=4, num_workers=2),
        ONE_F_ONE_B_4: partial(_pipeline, size, num_stages=4),
        LIMIT_OWN: partial(_side_by_side, size, own_kernels=True),
        LIMIT_RECOMPUTE: partial(_side_by_side, size, recompute=True),
    }
    return {system: every[system] for system in size.systems}


def _measure(name: str, run: Callable[[], Speed]) -> Measurement:
    bystanders = Bystanders()
    samples_per_s, first_step_s = run()
    return Measurement(
        system=name,
        samples_per_s=samples_per_s,
        others_cores=bystanders.cores(),
        time_to_first_step_s=first_step_s,
    )


def _side_by_side(size: Size, *, recompute: bool = False, own_kernels: bool = False) -> Speed:
    command = _baseline(size, num_steps=size.plain_steps, recompute=recompute, own_kernels=own_kernels)
    ends_s = _step_ends(size, [command, command])
    try:
        return common_rate_per_s(ends_s, size.shape.global_batch), None
    except ValueError as error:
        raise RunFailed(f"two processes side by side were too unequal: {error}") from None


def _pipeline(size: Size, *, num_stages: int) -> Speed:
    with tempfile.TemporaryDirectory(prefix="zswarm-bench-") as folder:
        split, rendezvous = even_split(size.shape.num_layers, num_stages), f"{folder}/rendezvous"
        commands = [
            _baseline(size, num_steps=size.pipeline_steps, split=split, rank=rank, rendezvous=rendezvous)
            for rank in range(num_stages)
        ]
        return rate_per_s(_step_ends(size, commands)[0], size.shape.global_batch), None


def _baseline(size: Size, **assignment: Any) -> list[str]:
    where = {"device": size.device, "precision": size.precision}
    text = json.dumps({"shape": asdict(size.shape), **where, **assignment})
    return ["-m", "zswarm.benchmarks.baselines", text]


def _step_ends(size: Size, commands: Sequence[Sequence[str]]) -> list[list[float]]:
    with Children(commands, deadline_s=size.deadline_s) as children:
        children.read_lines()
        children.write_line("go")
        return [json.loads(line) for line in children.read_lines()]


def _swarm(size: Size, *, num_stages: int, num_workers: int) -> Speed:
    with tempfile.TemporaryDirectory(prefix="zswarm-bench-") as folder:
        run_file, out = Path(folder, "run.toml"), Path(folder, "out")
        run_file.write_text(run_text(size, num_stages=num_stages))
        command = ["-m", "zswarm", "local", str(run_file), "--workers", str(num_workers), "--out", str(out)]
        command += ["--device", size.device]
        with Children([command], deadline_s=size.deadline_s) as children:
            children.wait(0)
        summary = json.loads((out / "summary.json").read_text())
    return float(summary["samples_per_s"]), float(summary["time_to_first_step_s"])


def run_text(size: Size, *, num_stages: int) -> str:
    """Return the run file of a swarm."""
    shape = size.shape
    return f"""
[run]
name = "bench"
steps = {size.pipeline_steps}

[model]
factory = "gpt"
d_model = {shape.d_model}
num_layers = {shape.num_layers}
num_heads = {shape.num_heads}
sequence_length = {shape.sequence_length}

[batch]
global_batch = {shape.global_batch}
microbatch = {shape.microbatch}

[pipeline]
stages = {num_stages}
split = {list(even_split(shape.num_layers, num_stages))}
recompute = "never"
precision = "{size.precision}"

[wire]
codec = "int8"

[optimizer]
name = "adamw"
"""


def _described(measurement: Measurement) -> str:
    suspect = "  (suspect)" if measurement.others_cores > TOLERATED_CORES else ""
    used = f"others used {measurement.others_cores:.2f} cores{suspect}"
    return f"{measurement.system:<11} {measurement.samples_per_s:6.2f} samples/s, {used}"
