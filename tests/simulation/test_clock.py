"""Virtual time: a total order of events, and clocks that disagree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm.simulation.clock import EventQueue, NodeClock

times = st.floats(0, 1e6)


@given(st.lists(times))
def test_events_come_by_time_and_then_in_the_order_of_putting(at_s: list[float]) -> None:
    """Equal times keep their order, so that a run does not depend on how a heap breaks ties."""
    queue: EventQueue[int] = EventQueue()
    for index, time_s in enumerate(at_s):
        queue.put(time_s, index)
    came = [queue.pop() for _ in at_s]
    assert came == sorted(range(len(at_s)), key=lambda index: (at_s[index], index))


def test_the_past_is_now() -> None:
    queue: EventQueue[str] = EventQueue()
    queue.put(5.0, "first")
    queue.pop()
    queue.put(1.0, "late")
    assert queue.pop() == "late"
    assert queue.now_s == 5.0
    assert not len(queue)
    with pytest.raises(IndexError):
        queue.pop()


@given(offset_s=st.floats(-1e6, 1e6), rate=st.floats(0.8, 1.2), first_s=times, then_s=times)
def test_a_clock_never_runs_backwards(offset_s: float, rate: float, first_s: float, then_s: float) -> None:
    clock = NodeClock(offset_s=offset_s, rate=rate)
    earlier, later = sorted((first_s, then_s))
    assert clock.local_s(earlier) <= clock.local_s(later)
    assert clock.local_s(earlier) == clock.local_s(later)


@given(offset_s=st.floats(-1e6, 1e6), rate=st.floats(0.8, 1.2), deadline_s=times)
def test_a_deadline_is_never_read_too_early(offset_s: float, rate: float, deadline_s: float) -> None:
    """A machine that is woken at its deadline must see that it has come, whatever rounding does."""
    clock = NodeClock(offset_s=offset_s, rate=rate)
    woken_at_s = clock.true_s(deadline_s)
    assert clock.local_at_least_s(woken_at_s, deadline_s) >= deadline_s
    assert NodeClock(offset_s=offset_s, rate=rate).local_s(woken_at_s) == pytest.approx(deadline_s, abs=1e-6)
