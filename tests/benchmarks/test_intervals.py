from __future__ import annotations

import pytest

from zswarm.benchmarks.intervals import alternating, common_rate_per_s, paired_ratios, rate_per_s


def test_the_first_step_does_not_count():
    """A speed comes from the steps after the first, however long that one took."""
    assert rate_per_s([100.0, 102.0, 104.0], 32) == 16.0
    assert rate_per_s([0.1, 2.1, 4.1], 32) == pytest.approx(16.0)


def test_one_slow_step_does_not_count():
    """The median, not the mean: one interrupted step changes nothing."""
    assert rate_per_s([0.0, 2.0, 9.0, 11.0, 13.0], 32) == 16.0


@pytest.mark.parametrize("ends_s", [[], [1.0]])
def test_a_speed_needs_a_step_after_the_first(ends_s):
    with pytest.raises(ValueError, match="no step after the first"):
        rate_per_s(ends_s, 32)


def test_side_by_side_the_rates_add_up():
    """Two processes of equal speed are twice as fast as one."""
    assert common_rate_per_s([[0.0, 2.0, 4.0], [0.5, 2.5, 4.5, 6.5]], 32) == 32.0


def test_steps_with_the_machine_to_oneself_do_not_count():
    """Before the other one's first step has ended, and after its last, a process may be faster."""
    alone_before = [0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0]
    alone_after = [3.0, 5.0, 7.0, 9.0, 10.0, 11.0, 12.0]
    assert common_rate_per_s([alone_before, alone_after], 32) == 32.0


def test_processes_that_do_not_overlap_have_no_common_speed():
    with pytest.raises(ValueError, match="no step after the first"):
        common_rate_per_s([[0.0, 1.0, 2.0], [1.5, 2.5, 3.5]], 32)


def test_ratios_are_made_within_a_round():
    """A machine that is twice as fast in one round has the same ratio in it."""
    assert paired_ratios([18.0, 36.0], [20.0, 40.0]) == [0.9, 0.9]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_ratios([1.0], [1.0, 2.0])


def test_rounds_alternate_in_order():
    """A steady drift makes A faster than B in one round and slower in the next."""
    assert alternating("ABC", 3) == [["A", "B", "C"], ["C", "B", "A"], ["A", "B", "C"]]
