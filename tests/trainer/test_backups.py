"""How long what a worker has counted may be in no copy."""

from __future__ import annotations

from math import inf, sqrt

import pytest

from zswarm.ids import Stage
from zswarm.limits import FIRST_BANDWIDTH_BYTES_PER_S
from zswarm.trainer.backups import BURDEN, MEMORY_S, Backups

STATE_BYTES = int(2 * FIRST_BANDWIDTH_BYTES_PER_S)
"""Two seconds of it."""


def backups(**of: float) -> Backups:
    made = Backups((STATE_BYTES, 10 * STATE_BYTES), every_s=of.get("every_s"))
    made.counted(4, 100.0)
    return made


@pytest.mark.parametrize("num_lost", [0, 1])
def test_with_one_loss_or_none_never(num_lost):
    """One fault in a quiet run would be paid for with copies in every step after it."""
    made = backups()
    made.counted(4, 1000.0)
    for _ in range(num_lost):
        made.lost()
    assert made.every_s(Stage(0)) == inf


def test_it_is_the_root_of_twice_the_cost_times_the_time_between_losses():
    made = backups()
    made.counted(4, 400.0)
    for _ in range(3):
        made.lost()
    assert made.every_s(Stage(0)) == pytest.approx(sqrt(2 * BURDEN * 2.0 * 4 * 300.0 / 2))
    assert made.every_s(Stage(1)) > made.every_s(Stage(0))


def test_how_long_copies_take_is_learned():
    made = backups()
    made.counted(4, 10000.0)
    made.lost()
    made.lost()
    before = made.every_s(Stage(0))
    for _ in range(100):
        made.took(Stage(0), 0.02)
    assert made.every_s(Stage(0)) == pytest.approx(before / 10.0, rel=0.01)


def test_losses_are_forgotten():
    made = backups()
    made.lost()
    made.lost()
    made.counted(4, 100.0 + 3 * MEMORY_S)
    assert made.every_s(Stage(0)) == inf


def test_one_copy_does_not_follow_at_the_heels_of_the_other():
    made = backups()
    for _ in range(1000):
        made.lost()
    assert made.every_s(Stage(0)) == 4.0


def test_who_waits_for_slower_stages_copies_all_the_time_once_anybody_was_lost():
    made = backups()
    assert made.every_s(Stage(0), has_time=True) == inf
    made.lost()
    assert (made.every_s(Stage(0), has_time=True), made.every_s(Stage(0))) == (4.0, inf)
    made.counted(4, 100.0 + 3 * MEMORY_S)
    assert made.every_s(Stage(0), has_time=True) == inf


def test_what_is_set_is_not_learned():
    assert backups(every_s=3.0).every_s(Stage(1), has_time=True) == 3.0
    assert backups(every_s=3.0).every_s(Stage(1)) == 3.0
