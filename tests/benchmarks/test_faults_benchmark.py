"""`zswarm bench faults`: that it strikes what it says, and that what it finds is what the fault cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zswarm.benchmarks import faults
from zswarm.benchmarks.faults import (
    CALM,
    HEARTBEAT_S,
    KINDS,
    NEVER_S,
    Kind,
    Trial,
    ends_s,
    leaves_of,
    main,
    noticed_of,
    strike_all,
    tails_of,
)
from zswarm.benchmarks.figures import Tail
from zswarm.errors import RunFailed
from zswarm.simulation.faults import Fault, Strike
from zswarm.simulation.mutants import in_force
from zswarm.simulation.symbolic import Pace

SMALL = replace(CALM, num_stages=2, workers_per_stage=2, num_microbatches=6)
"""A step of about 3 s."""
TRAINER, FROZEN = KINDS[2], KINDS[3]


def trial(kind: Kind, *, struck: float, in_all: float) -> Trial:
    return Trial(
        kind=kind.name, seed=0, node="worker-0", at=0.5, struck=struck, in_all=in_all, left_after_s=1.5, num_redone=3
    )


def test_one_bad_case_in_ten_misses_the_target_and_one_in_a_hundred_does_not() -> None:
    assert Tail(name="", values=[0.1] * 99 + [9.0], below=0.5).is_met
    assert not Tail(name="", values=[0.1] * 90 + [9.0] * 10, below=0.5).is_met
    assert Tail(name="", values=[0.1] * 90 + [9.0] * 10).is_met is None


def test_both_steps_are_held_against_the_target_and_the_trainers_start_is_allowed_for() -> None:
    trials = [trial(kind, struck=0.65, in_all=0.55) for kind in KINDS]
    tails = tails_of(trials, step_s=4.0)
    below = {tail.name.removesuffix(", in all"): tail.below for tail in tails[::2]}
    assert [tail.below for tail in tails[1::2]] == list(below.values())
    assert below == pytest.approx({kind.name: kind.below + kind.waits_s / 4.0 for kind in KINDS})
    assert below[TRAINER.name] == pytest.approx(0.8)
    assert [tail.is_met for tail in tails[::2]] == [kind.below + kind.waits_s / 4.0 > 0.55 for kind in KINDS]
    assert [tail.is_met for tail in tails[1::2]] == [kind.below + kind.waits_s / 4.0 > 0.65 for kind in KINDS]


def test_how_soon_each_is_noticed_is_held_against_its_target_in_heartbeats() -> None:
    trials = [trial(kind, struck=0.0, in_all=0.0) for kind in KINDS]
    noticed = noticed_of(trials)
    assert [tail.name for tail in noticed] == [
        f"{kind.name}: noticed" for kind in KINDS if kind.noticed_below is not None
    ]
    assert all(tail.values == [1.5 / HEARTBEAT_S] for tail in noticed)
    (never, *_) = noticed_of([replace(trials[0], left_after_s=None)])
    assert never.is_met is False
    assert [tail.is_met for tail in noticed] == [kind.noticed_below > 3.0 for kind in KINDS if kind.noticed_below]


def test_a_hang_is_noticed_from_the_job_on_that_hangs() -> None:
    (hangs,) = (kind for kind in KINDS if kind.fault is Fault.HANG)
    for seed in range(3):
        _, (found,) = strike_all(replace(SMALL, seed=seed), [hangs])
        assert found.left_after_s is not None
        assert hangs.noticed_below is not None
        assert found.left_after_s < hangs.noticed_below * HEARTBEAT_S


def test_whoever_is_cut_off_is_noticed_as_soon_as_whoever_freezes() -> None:
    for kind in KINDS:
        if kind.fault is Fault.PARTITION:
            _, (found,) = strike_all(SMALL, [kind])
            assert found.left_after_s is not None
            assert 1.9 * HEARTBEAT_S < found.left_after_s < 4.0 * HEARTBEAT_S


def test_every_kind_strikes_a_process_of_its_role() -> None:
    step_s, trials = strike_all(SMALL)
    assert [each.kind for each in trials] == [kind.name for kind in KINDS]
    assert [each.node.partition("-")[0] for each in trials] == [kind.role for kind in KINDS]
    assert 2.0 < step_s < 5.0
    assert all(0.0 <= each.at < 1.0 for each in trials)


def test_whoever_leaves_takes_until_the_commit_and_nothing_is_done_again() -> None:
    killed, leaves = KINDS[0], next(kind for kind in KINDS if kind.fault is Fault.LEAVE_WORKER)
    step_s, (worker,) = strike_all(SMALL, [leaves])
    assert worker.num_redone == 0
    assert worker.left_after_s is not None
    assert worker.left_after_s == pytest.approx((1.0 - worker.at) * step_s, abs=0.3 * step_s)
    _, (gone,) = strike_all(SMALL, [killed])
    assert gone.left_after_s is not None
    assert gone.left_after_s < HEARTBEAT_S
    lines = leaves_of([worker, gone])
    assert any(line.startswith("worker leaves: out after ") and "0.0 microbatches done again" in line for line in lines)
    assert leaves_of([]) == []


def test_the_same_seed_finds_the_same() -> None:
    assert strike_all(SMALL, [TRAINER]) == strike_all(SMALL, [TRAINER])


def test_a_step_waits_for_a_trainer_that_is_away_for_long() -> None:
    """Nobody else can end it: what it costs is the time until the trainer is back, and that of no other step."""
    away_s = 30.0
    step_s, (found,) = strike_all(SMALL, [replace(TRAINER, lasts_s=away_s)])
    left_s = step_s * (1.0 - found.at)
    assert away_s - left_s < found.struck * step_s < away_s + step_s
    assert found.in_all == pytest.approx(found.struck, abs=0.5)


def test_until_the_strike_both_runs_are_the_same() -> None:
    without = ends_s(SMALL)
    strike = Strike(fault=Fault.KILL_WORKER, at_s=without[1] - 0.001, lasts_s=NEVER_S, salt=0, node="worker-1")
    struck = ends_s(replace(SMALL, strikes=(strike,)))
    assert struck[0] == without[0]
    assert struck[2] > without[2]


def test_a_fault_that_nobody_notices_is_no_trial() -> None:
    """A worker that stands still for a moment is not given up."""
    with pytest.raises(RunFailed, match="has not noticed"):
        strike_all(SMALL, [replace(FROZEN, lasts_s=0.01)])


def test_a_run_that_breaks_a_promise_is_named() -> None:
    """What a broken machine costs is no figure."""
    with in_force("commit-before-log"), pytest.raises(RunFailed, match=r"seed 0, .*I4"):
        strike_all(SMALL, [KINDS[0]])


def test_figures_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "CALM", replace(SMALL, pace=Pace(forward_s=0.1)))
    main(trials=2, json_file=tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["trials"]) == 2 * len(KINDS)
    assert {trial["seed"] for trial in found["trials"]} == {0, 1}
    assert found["figures"][0]["p95"] == found["figures"][0]["max"] == max(found["figures"][0]["values"])
    printed = capsys.readouterr().out
    assert all(kind.name in printed for kind in KINDS)
