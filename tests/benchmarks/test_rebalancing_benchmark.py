"""`zswarm bench rebalancing`: that it compares what it says, and writes what it finds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from zswarm.benchmarks import rebalancing
from zswarm.benchmarks.rebalancing import (
    ANYWHERE,
    OURS,
    PLACED,
    SCENES,
    figures_of,
    large_swarm,
    lives,
    main,
    pairs,
    percents_of,
    table_of_shares,
)
from zswarm.errors import UserError
from zswarm.simulation.churn.preemptions import shipped_trace
from zswarm.simulation.churn.setting import Setting
from zswarm.simulation.churn.spot import spot_trace, text_of

PAPERS, COUNTED = SCENES[0], SCENES[1]


def begin_of_trace(hours):
    return [change for change in shipped_trace() if change.time_s <= hours * 3600.0]


def test_every_policy_is_compared_and_ours_is_held_against_its_target():
    assert len(list(pairs(SCENES))) == 4 + 8 + 8 + 4
    assert OURS in PLACED
    held = [scene.name for scene in SCENES if scene.at_least_percent == 97.0 and OURS in scene.policies]
    assert held == ["500 Mb/s", "unequal"]


def test_in_the_papers_setting_policies_come_in_the_papers_order():
    """Nothing, Algorithm 2 every 300 s, every 60 s; and ours is none of the worse."""
    changes = begin_of_trace(6.0)
    none, slow, fast, ours = (percents_of(lives(PAPERS.setting, policy, changes, 1))[0] for policy in ANYWHERE)
    assert none + 3.0 < slow < fast < ours < 100.0


def test_with_downloads_counted_ours_is_better_than_the_paper_s_and_reaches_its_target():
    changes = begin_of_trace(6.0)
    (ours,) = percents_of(lives(COUNTED.setting, OURS, changes, 1))
    (published,) = percents_of(lives(COUNTED.setting, ANYWHERE[2], changes, 1))
    assert published < ours
    assert ours >= 97.0


def test_a_large_swarm_is_simulated_and_its_time_taken():
    outcome, took_s = large_swarm(num_stages=4, num_workers=24, hours=1.0)
    assert 0.5 < outcome.share < 1.0
    assert outcome.num_joins >= 24
    assert took_s > 0.0


def test_a_missed_target_is_called_one():
    large, _ = large_swarm(num_stages=2, num_workers=8, hours=0.5)
    outcomes = [replace(large, microbatches=0.96 * large.optimal_microbatches)]
    figures = figures_of([(COUNTED, OURS, outcomes)], large, 601.0)
    assert [figure.is_met for figure in figures] == [False, None, False]


def test_the_papers_figures_stand_beside_its_own_setting_only():
    large, _ = large_swarm(num_stages=2, num_workers=8, hours=0.5)
    found = [(scene, policy, [large]) for scene, policy in pairs(SCENES)]
    column = table_of_shares(found, begin_of_trace(1.0)).columns[5]
    assert column.header == "paper"
    assert list(column.cells) == ["82.7", "95.8", "97.6"] + [""] * 21


def test_a_trace_with_too_few_workers_is_refused():
    changes = spot_trace(hours=0.5, num_workers=2)
    with pytest.raises(UserError, match="never has workers for 4 stages"):
        lives(Setting(), OURS, changes, 1)


def test_figures_are_printed_and_written(tmp_path, monkeypatch, capsys):
    changes = spot_trace(hours=0.5, num_workers=16)
    (tmp_path / "trace.csv").write_text(text_of(changes, seed=0))
    monkeypatch.setattr(rebalancing, "large_swarm", lambda: large_swarm(num_stages=2, num_workers=8, hours=0.5))
    main(seeds=2, trace=tmp_path / "trace.csv", json_file=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["runs"]) == 2 * len(list(pairs(SCENES)))
    assert {run["num_joins"] for run in found["runs"]} == {sum(change.is_arrival for change in changes)}
    assert len(found["figures"]) == 5
    printed = capsys.readouterr().out
    assert all(scene.name in printed for scene in SCENES)
