"""Downloads of one stage's state, all at once: who gives shares its uplink among those who take.

Every taker gets the state in ranges from all givers, so that all of a stage progress at one rate: the bandwidth of one
machine, or less where there are more takers than givers. Then the order in which they end is that in which they began,
and what each has got is known from one number for all, `_served_bytes`: what somebody would have who had been there
from the beginning.
"""

from __future__ import annotations

from collections import deque
from math import inf

from zswarm.ids import Session


class Downloads:
    """See the module. Where nobody gives, the trainer does, from its checkpoint."""

    def __init__(self, size_bytes: float, bandwidth_bytes_per_s: float) -> None:
        self._size_bytes = size_bytes
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.num_givers = 0
        """Whoever changes it has accounted for the time until then."""
        self._served_bytes = 0.0
        self._served_until_s = 0.0
        self._ends_bytes: deque[tuple[float, Session]] = deque()
        """Of each taker, how much must have been served."""
        self._given_up: set[Session] = set()
        self.taken_bytes = 0.0
        """By all together."""

    @property
    def num_takers(self) -> int:
        """Downloads in work."""
        return len(self._ends_bytes) - len(self._given_up)

    @property
    def rate_bytes_per_s(self) -> float:
        """Of each taker."""
        return self._bandwidth_bytes_per_s * min(1.0, max(self.num_givers, 1) / max(self.num_takers, 1))

    def serve(self, now: float) -> None:
        """Account for the time until now."""
        served_bytes = self.rate_bytes_per_s * (now - self._served_until_s)
        self.taken_bytes += served_bytes * self.num_takers
        self._served_bytes += served_bytes
        self._served_until_s = now

    def begin(self, session: Session) -> None:
        """One more; time must be accounted for."""
        self._ends_bytes.append((self._served_bytes + self._size_bytes, session))

    def give_up(self, session: Session) -> None:
        """A taker is gone; time must be accounted for."""
        self._given_up.add(session)
        self._skip()

    def next_s(self) -> float:
        """Return when the next one ends, if nothing changes until then."""
        if not self._ends_bytes:
            return inf
        missing_bytes = self._ends_bytes[0][0] - self._served_bytes
        return self._served_until_s + max(missing_bytes, 0.0) / self.rate_bytes_per_s

    def end(self) -> Session:
        """Return whose download ends now, at `next_s`; time must be accounted for."""
        self._served_bytes, session = self._ends_bytes.popleft()
        self._skip()
        return session

    def _skip(self) -> None:
        while self._ends_bytes and self._ends_bytes[0][1] in self._given_up:
            self._given_up.remove(self._ends_bytes.popleft()[1])
