from __future__ import annotations

from importlib.resources import files

import pytest

from zswarm.simulation.churn import spot
from zswarm.simulation.churn.preemptions import SHIPPED, parsed, shipped_trace
from zswarm.simulation.churn.spot import NUM_ZONES, SEED, main, spot_trace


def lifetimes_s(changes):
    """How long those lived who came after the beginning and have left."""
    came, lived = {}, []
    for change in changes:
        if change.is_arrival:
            came[change.worker] = change.time_s
        elif came[change.worker] > 0.0:
            lived.append(change.time_s - came[change.worker])
    return lived


def test_the_shipped_trace_is_what_the_generator_makes(capsys):
    main([])
    shipped = files("zswarm.simulation.churn").joinpath(SHIPPED).read_text()
    assert capsys.readouterr().out == shipped
    assert len(shipped) < 200_000


def test_another_seed_makes_another_trace_of_the_same_kind():
    other = spot_trace(seed=SEED + 1)
    assert other != shipped_trace()
    assert len(other) == pytest.approx(len(shipped_trace()), rel=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_every_trace_can_be_read(seed):
    changes = spot_trace(seed=seed, hours=3.0, num_workers=40)
    assert list(parsed(map(str, changes), "made")) == changes
    assert sum(change.time_s == 0.0 for change in changes) == 40
    assert changes[-1].time_s <= 3 * 3600.0


def test_the_arguments_are_those_of_the_trace(capsys):
    main(["--seed", "3", "--hours", "2", "--workers", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert "seed 3" in lines[0]
    assert lines[1:] == [str(change) for change in spot_trace(seed=3, hours=2.0, num_workers=8)]


def test_nobody_lives_for_more_than_a_day_and_some_are_lost_early():
    lived = lifetimes_s(spot_trace(hours=80.0))
    assert max(lived) <= spot.MOST_LIFETIME_S + 1.0
    early = sum(life_s < 3600.0 for life_s in lived) / len(lived)
    assert 0.15 < early < 0.35


def test_some_leave_together():
    """A zone takes back more than a fifth of its machines within two minutes; by chance hardly two would go."""
    gone = [change.time_s for change in shipped_trace() if not change.is_arrival]
    most = max(sum(at_s <= other_s < at_s + spot.BATCH_LASTS_S for other_s in gone) for at_s in gone)
    assert most > 0.2 * spot.NUM_WORKERS / NUM_ZONES


def test_capacity_follows_the_time_of_day():
    """Six hours after the beginning there is most of it, and twelve hours later least."""
    sizes, present = {}, 0
    for change in spot_trace(hours=24.0, num_workers=1200):
        present += 1 if change.is_arrival else -1
        sizes[int(change.time_s // 3600)] = present
    assert sizes[6] > 1.2 * sizes[19]
