from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zswarm.errors import LocalProtocolError
from zswarm.wiring import POLICIES, BrokerState, Fixed, InterleavedWeightedRoundRobin, QueueWeighted, make_wiring

DRAWS = 20_000


def broker(session: int, **of) -> BrokerState:
    return BrokerState(broker=session, **of)


def shares(policy, brokers) -> dict[int, float]:
    """Return how often each broker is chosen, of `DRAWS` times."""
    counts = Counter(policy.choose(brokers, brokers) for _ in range(DRAWS))
    return {session: count / DRAWS for session, count in counts.items()}


def test_queue_weights_are_free_bytes_over_depth_plus_one():
    brokers = [
        broker(1, free_bytes=100, depth=0),
        broker(2, free_bytes=100, depth=3),
        broker(3, free_bytes=50, depth=0),
        broker(4, free_bytes=300, depth=5),
    ]
    expected = {1: 100 / 225, 2: 25 / 225, 3: 50 / 225, 4: 50 / 225}
    assert shares(QueueWeighted(Random(1).random), brokers) == pytest.approx(expected, abs=0.015)


def test_a_broker_without_free_room_is_chosen_when_it_is_alone_or_all_are_full():
    full = [broker(1), broker(2)]
    assert shares(QueueWeighted(Random(1).random), full) == pytest.approx({1: 0.5, 2: 0.5}, abs=0.015)
    assert QueueWeighted(Random(1).random).choose(full[1:], full) == 2


def test_uniform_is_uniform_whatever_the_brokers_say():
    brokers = [broker(1, free_bytes=10**9), broker(2, depth=99), broker(3, response_s=7.0)]
    assert shares(make_wiring("uniform", Random(1).random), brokers) == pytest.approx(
        {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, abs=0.015
    )


def reference_iwrr(response_s: list[float], calls: int) -> list[int]:
    """Algorithm 1 of arXiv:2301.11913 for brokers of constant speed, ties to the lowest number."""
    priority = [0.0] * len(response_s)
    order = []
    for _ in range(calls):
        chosen = min(range(len(priority)), key=lambda i: (priority[i], i))
        priority[chosen] += response_s[chosen]
        order.append(chosen)
    return order


def first_wins():
    """A source of randomness that breaks ties in favour of the first."""
    count = iter(range(10**6))
    return lambda: next(count) / 10**6


@settings(derandomize=True, max_examples=50)
@given(response_s=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]), min_size=1, max_size=5))
def test_iwrr_follows_the_papers_algorithm(response_s):
    brokers = [broker(session, response_s=s) for session, s in enumerate(response_s)]
    policy = InterleavedWeightedRoundRobin(first_wins())
    assert [policy.choose(brokers, brokers) for _ in range(60)] == reference_iwrr(response_s, 60)


def test_iwrr_chooses_in_proportion_to_speed():
    brokers = [broker(1, response_s=1.0), broker(2, response_s=2.0), broker(3, response_s=4.0)]
    expected = {1: 4 / 7, 2: 2 / 7, 3: 1 / 7}
    assert shares(InterleavedWeightedRoundRobin(Random(1).random), brokers) == pytest.approx(expected, abs=0.001)


def test_iwrr_breaks_ties_at_random():
    brokers = [broker(1, response_s=1.0), broker(2, response_s=1.0)]
    firsts = Counter(InterleavedWeightedRoundRobin(Random(seed).random).choose(brokers, brokers) for seed in range(400))
    assert firsts[1] == pytest.approx(200, abs=40)


def test_iwrr_lets_a_new_broker_in_at_the_current_minimum():
    """At zero it would get everything until it had caught up with the others' past."""
    old = [broker(1, response_s=1.0), broker(2, response_s=1.0)]
    policy = InterleavedWeightedRoundRobin(Random(1).random)
    for _ in range(100):
        policy.choose(old, old)
    everybody = [*old, broker(3, response_s=1.0)]
    chosen = Counter(policy.choose(everybody, everybody) for _ in range(30))
    assert all(9 <= count <= 11 for count in chosen.values())


def test_iwrr_forgets_a_broker_that_left():
    old = [broker(1, response_s=1.0), broker(2, response_s=1.0)]
    policy = InterleavedWeightedRoundRobin(Random(1).random)
    for _ in range(20):
        policy.choose(old, old)
    policy.choose(old[:1], old[:1])
    assert set(policy._priority_s) == {1}


def test_iwrr_chooses_among_those_with_credit():
    everybody = [broker(1, response_s=1.0), broker(2, response_s=9.0)]
    policy = InterleavedWeightedRoundRobin(Random(1).random)
    assert {policy.choose(everybody[1:], everybody) for _ in range(10)} == {2}


def test_iwrr_visits_brokers_that_never_answered_in_turn():
    brokers = [broker(session) for session in range(4)]
    policy = InterleavedWeightedRoundRobin(Random(1).random)
    assert sorted(policy.choose(brokers, brokers) for _ in range(4)) == [0, 1, 2, 3]


def test_fixed_waits_for_its_own_broker():
    everybody = [broker(session) for session in (1, 2, 3)]
    for seed in range(20):
        policy = Fixed(Random(seed).random)
        own = policy.choose(everybody, everybody)
        others = [state for state in everybody if state.broker != own]
        assert policy.choose(others, everybody) is None
        assert policy.choose(everybody, everybody) == own


def test_fixed_producers_spread_over_the_brokers():
    everybody = [broker(session) for session in (1, 2, 3)]
    chosen = Counter(Fixed(Random(seed).random).choose(everybody, everybody) for seed in range(300))
    assert all(count == pytest.approx(100, abs=30) for count in chosen.values())


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0 - 2**-53])
def test_every_policy_returns_a_broker_with_credit_or_none(name, draw):
    everybody = [broker(session, free_bytes=10, depth=1, response_s=1.0) for session in range(5)]
    able = everybody[1:4]
    chosen = make_wiring(name, lambda: draw).choose(able, everybody)
    assert chosen in {1, 2, 3} or (name == "fixed" and chosen is None)


def test_equal_seeds_choose_equally():
    brokers = [broker(session, free_bytes=10 * session + 1) for session in range(5)]
    for name in POLICIES:
        one, two = make_wiring(name, Random(3).random), make_wiring(name, Random(3).random)
        chosen = [one.choose(brokers, brokers) for _ in range(50)]
        assert chosen == [two.choose(brokers, brokers) for _ in range(50)]


def test_an_unknown_policy_is_our_bug():
    with pytest.raises(LocalProtocolError, match="'fastest'"):
        make_wiring("fastest", Random(1).random)
