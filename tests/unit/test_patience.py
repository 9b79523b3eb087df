from __future__ import annotations

from zswarm import limits
from zswarm.patience import patience


def test_each_wait_is_twice_the_one_before_up_to_a_bound():
    """At a constant interval, a link that was too slow for what was on the way carried little but repetitions."""
    waits_s = [patience(0.5, num_sent) for num_sent in range(1, 8)]
    assert waits_s == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert patience(1, 10**9) == 2**limits.MOST_DOUBLINGS
