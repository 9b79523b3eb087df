"""How long to wait for what takes its time: before a payload is sent again, and before a device counts as hanging.

A repetition that is sent while the first copy still waits for a slow link makes the link slower, and the
next one earlier still relative to it: at a constant interval, links that need longer than that for what
is on the way carry little else than repetitions. So the wait doubles each time.
"""

from __future__ import annotations

from zswarm import limits


def patience(first: float, num_sent: int) -> float:
    """Return how long to wait after having sent for the `num_sent`-th time, in the unit of `first`, the first wait."""
    return first * (1 << min(num_sent - 1, limits.MOST_DOUBLINGS))


def most_busy_s(usual_s: float, heartbeat_s: float) -> float:
    """Return for how long a worker may be busy with one task, of which `usual_s` says how long it usually takes; 0 if nobody
    knows."""
    if not usual_s:
        return limits.STUCK_FIRST_S
    return max(limits.STUCK_HEARTBEATS * heartbeat_s, limits.STUCK_TIMES * usual_s)
