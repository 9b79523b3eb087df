"""Stochastic wiring: to which broker of the next stage does this microbatch go?

A producer asks a policy, with the brokers that would take the microbatch now. All policies are pure: the
source of randomness is handed in, so that the simulator's runs repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from zswarm.errors import LocalProtocolError
from zswarm.ids import Session

Random = Callable[[], float]
"""Uniform in [0, 1)."""


@dataclass(slots=True, kw_only=True)
class BrokerState:
    """What a producer knows of a broker, from the broker's own answers."""

    broker: Session
    unit_bytes: int = 0
    """What a microbatch costs there at the least."""
    granted_bytes: int = 0
    received_bytes: int = 0
    """As far as the broker has said."""
    sent_bytes: int = 0
    free_bytes: int = 0
    depth: int = 0
    response_s: float = 0.0

    @property
    def credit_bytes(self) -> int:
        """Bytes that may be sent without asking again."""
        return self.granted_bytes - self.sent_bytes

    def cost_bytes(self, size_bytes: int) -> int:
        """Return what it costs to send a microbatch of this size."""
        return max(size_bytes, self.unit_bytes)


class Wiring(Protocol):
    """A policy. `brokers` is never empty and sorted by session; all of them have credit."""

    def choose(self, brokers: Sequence[BrokerState], everybody: Sequence[BrokerState]) -> Session | None:
        """Pick a broker, or None to wait for one without credit. `everybody` includes those without."""


class QueueWeighted:
    """Random, with weights `free / (1 + depth)`: short queues with room are likely, none is certain.

    The randomness keeps producers that see the same numbers from running to the same broker.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, brokers: Sequence[BrokerState], everybody: Sequence[BrokerState]) -> Session | None:
        """Pick a broker with credit."""
        del everybody
        weights = [max(state.free_bytes, 1) / (1 + state.depth) for state in brokers]
        point = self._random() * sum(weights)
        for state, weight in zip(brokers, weights, strict=True):
            point -= weight
            if point < 0:
                return state.broker
        return brokers[-1].broker


class InterleavedWeightedRoundRobin:
    """IWRR, Algorithm 1 of the SWARM paper (arXiv:2301.11913).

    Each broker has a priority; the one with the smallest is next, and choosing it adds its moving
    average of the response time to it, so that a broker twice as fast is chosen twice as often. A new
    broker enters at the current minimum. Ties are broken at random.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._priority_s: dict[Session, float] = {}

    def choose(self, brokers: Sequence[BrokerState], everybody: Sequence[BrokerState]) -> Session | None:
        """Pick the broker with credit whose priority is smallest."""
        known = {state.broker for state in everybody}
        self._priority_s = {broker: p for broker, p in self._priority_s.items() if broker in known}
        least = min(self._priority_s.values(), default=0.0)
        for state in everybody:
            self._priority_s.setdefault(state.broker, least)
        chosen = min(brokers, key=lambda state: (self._priority_s[state.broker], self._random()))
        self._priority_s[chosen.broker] += max(chosen.response_s, 1e-6)
        return chosen.broker


class Uniform:
    """Random, all alike: the baseline that the weights have to beat."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, brokers: Sequence[BrokerState], everybody: Sequence[BrokerState]) -> Session | None:
        """Pick any broker with credit."""
        del everybody
        return brokers[int(self._random() * len(brokers))].broker


class Fixed:
    """Always the same broker, as in a pipeline without stochastic wiring: waits while it has no credit."""

    def __init__(self, random: Random) -> None:
        self._place = random()

    def choose(self, brokers: Sequence[BrokerState], everybody: Sequence[BrokerState]) -> Session | None:
        """Pick the broker at this producer's place in the list, if it has credit."""
        own = everybody[int(self._place * len(everybody))].broker
        return own if any(state.broker == own for state in brokers) else None


POLICIES: dict[str, Callable[[Random], Wiring]] = {
    "queue": QueueWeighted,
    "iwrr": InterleavedWeightedRoundRobin,
    "uniform": Uniform,
    "fixed": Fixed,
}
"""The names that a run file may give."""


def make_wiring(name: str, random: Random) -> Wiring:
    """Return the policy of that name; `LocalProtocolError` for an unknown one (the run file is checked earlier)."""
    if name not in POLICIES:
        raise LocalProtocolError(f"no wiring policy is called {name!r}")
    return POLICIES[name](random)
