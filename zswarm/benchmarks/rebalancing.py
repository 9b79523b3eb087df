"""What rebalancing is worth: swarms whose workers come and go for hours, as parts of the throughput that is possible.

The simulation is that of `zswarm.simulation.churn`: rates and downloads, no messages. All policies live through the
same trace; a seed decides all that is drawn: where newcomers go at random, what the coordinator measures, how long
queues are, and in the paper's setting who leaves. The optimum always has everybody where it is best, and downloads
nothing; for workers of unequal speeds it is an upper bound.

    paper's    downloads take no time, moves happen at once, and departures hit each stage alike, however many workers it
               has; newcomers go anywhere
    500 Mb/s   downloads of 3 GB take their time, moves wait for the end of a step, and those leave who leave in the trace
    unequal    the same with machines of speeds 1 : 0.5 : 0.25
    50 Mb/s    the same with equal machines and a tenth of the bandwidth: eight minutes for a download

The trace is not the paper's, which is not published, and how the paper's simulation places newcomers and what its
queues are it does not say: its figures are there to compare the size of things.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zswarm.benchmarks.figures import Figure, claim, table_of
from zswarm.errors import UserError
from zswarm.planning.priced import PricedPlanner
from zswarm.planning.published import Algorithm2, NoMoves
from zswarm.planning.view import Planner
from zswarm.simulation.churn.preemptions import Change, load_trace, shipped_trace
from zswarm.simulation.churn.setting import Leavers, Outcome, Placement, Policy, Setting
from zswarm.simulation.churn.spot import spot_trace
from zswarm.simulation.churn.swarm import ChurningSwarm

AT_LEAST_PERCENT = 97.0
LARGE_STAGES, LARGE_WORKERS, LARGE_BELOW_S = 32, 1000, 600.0
PAPER_PERCENT = {"none": 82.7, "Alg. 2, T = 300 s": 95.8, "Alg. 2, T = 60 s": 97.6}

PLANNERS: dict[str, Callable[[], Planner]] = {
    "none": NoMoves,
    "Alg. 2, T = 300 s": lambda: Algorithm2(period_s=300.0),
    "Alg. 2, T = 60 s": lambda: Algorithm2(period_s=60.0),
    "priced": PricedPlanner,
}
ANYWHERE = [Policy(name=name, planner=planner, placement=Placement.RANDOM) for name, planner in PLANNERS.items()]
PLACED = [replace(policy, placement=Placement.SLOWEST) for policy in ANYWHERE]
OURS = PLACED[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A setting, and whom to compare in it."""

    name: str
    setting: Setting
    policies: Sequence[Policy]
    is_papers: bool = False
    at_least_percent: float | None = None
    """What ours is held against."""


SCENES = (
    Scene(
        name="paper's",
        setting=Setting(state_bytes=0.0, leavers=Leavers.OF_ANY_STAGE, waits_for_steps=False),
        policies=ANYWHERE,
        is_papers=True,
    ),
    Scene(
        name="500 Mb/s",
        setting=Setting(),
        policies=[*ANYWHERE, *PLACED],
        at_least_percent=AT_LEAST_PERCENT,
    ),
    Scene(
        name="unequal",
        setting=Setting(speeds=(1.0, 0.5, 0.25)),
        policies=[*ANYWHERE, *PLACED],
        at_least_percent=AT_LEAST_PERCENT,
    ),
    Scene(name="50 Mb/s", setting=Setting(bandwidth_bytes_per_s=50e6 / 8), policies=PLACED),
)


def main(*, seeds: int = 10, trace: Path | None = None, json_file: Path | None = None) -> None:
    """Let every policy live through the trace `seeds` times and print what it reached, beside the paper's figures.

    With `json_file`, write every run there too.

    Raises:
        UserError: the file cannot be written, or the trace is none.

    """
    claim(json_file)
    changes = load_trace(trace) if trace is not None else shipped_trace()
    console = Console()
    found = [(scene, policy, lives(scene.setting, policy, changes, seeds)) for scene, policy in pairs(SCENES)]
    console.print(table_of_shares(found, changes))
    large, took_s = large_swarm()
    figures = figures_of(found, large, took_s)
    console.print(table_of(figures, "priced moves, newcomers to the slowest stage"))
    if json_file is not None:
        runs = [asdict(o) | {"scene": s.name, "placement": p.placement} for s, p, all_of in found for o in all_of]
        written = {"figures": [figure.as_json() for figure in figures], "runs": runs, "large": asdict(large)}
        json_file.write_text(json.dumps(written, indent=1) + "\n")


def pairs(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, Policy]]:
    """Yield each scene with each of its policies."""
    return ((scene, policy) for scene in scenes for policy in scene.policies)


def lives(setting: Setting, policy: Policy, changes: Sequence[Change], seeds: int) -> list[Outcome]:
    """Return one run of each seed.

    Raises:
        UserError: the trace never has as many workers as the swarm has stages.

    """
    outcomes = [ChurningSwarm(setting, policy, seed).run(changes) for seed in range(seeds)]
    if not all(outcome.optimal_microbatches > 0.0 for outcome in outcomes):
        raise UserError(f"the trace never has workers for {setting.num_stages} stages: nothing can be compared")
    return outcomes


def large_swarm(
    *, num_stages: int = LARGE_STAGES, num_workers: int = LARGE_WORKERS, hours: float = 32.0
) -> tuple[Outcome, float]:
    """Return a run of a large swarm with our planner, and the seconds of one core that it took to simulate."""
    setting = Setting(costs=(1.0,) * num_stages)
    begun_s = time.process_time()
    changes = spot_trace(num_workers=num_workers, hours=hours)
    outcome = ChurningSwarm(setting, OURS, seed=0).run(changes)
    return outcome, time.process_time() - begun_s


Found = Sequence[tuple[Scene, Policy, Sequence[Outcome]]]


def percents_of(outcomes: Sequence[Outcome]) -> list[float]:
    """Return what part of the optimum each run reached."""
    return [100.0 * outcome.share for outcome in outcomes]


def table_of_shares(found: Found, changes: Sequence[Change]) -> Table:
    """Return all policies of all scenes, each beside the paper's figure if there is one."""
    hours, num_runs = changes[-1].time_s / 3600.0, len(found[0][2])
    num_arrivals = sum(change.is_arrival for change in changes)
    title = f"% of the optimal throughput: {hours:.1f} h, {num_arrivals} workers in all, {num_runs} runs each"
    table = Table("setting", "planner", "newcomers", title=title, collapse_padding=True)
    for name in ("mean", "least", "paper", "moves/h", "GB/h"):
        table.add_column(name, justify="right")
    before: Scene | None = None
    for scene, policy, outcomes in found:
        if scene is not before:
            table.add_section()
        percents = percents_of(outcomes)
        num_moves = statistics.mean(outcome.num_moves for outcome in outcomes)
        num_bytes = statistics.mean(outcome.downloaded_bytes for outcome in outcomes)
        paper = PAPER_PERCENT.get(policy.name) if scene.is_papers else None
        table.add_row(
            scene.name if scene is not before else "",
            policy.name,
            "anywhere" if policy.placement is Placement.RANDOM else "slowest",
            f"{statistics.mean(percents):.1f}",
            f"{min(percents):.1f}",
            "" if paper is None else f"{paper:.1f}",
            f"{num_moves / hours:.0f}",
            f"{num_bytes / 1e9 / hours:.0f}",
        )
        before = scene
    return table


def figures_of(found: Found, large: Outcome, took_s: float) -> list[Figure]:
    """Return what is held against targets: our policy where there is one, and the large swarm."""
    figures = [
        Figure(name=f"{scene.name}, % of optimal", values=percents_of(outcomes), at_least=scene.at_least_percent)
        for scene, policy, outcomes in found
        if policy is OURS
    ]
    size = f"{LARGE_WORKERS} workers in {LARGE_STAGES} stages"
    figures.append(Figure(name=f"{size}, % of optimal", values=percents_of([large])))
    figures.append(
        Figure(name=f"{size}, {large.duration_s / 3600:.0f} h: seconds", values=[took_s], below=LARGE_BELOW_S)
    )
    return figures
