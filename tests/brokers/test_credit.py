from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.credit import Credits
from zswarm.limits import CREDIT_UNITS

UNIT = 10


def credits_of(capacity_bytes: int, producers: int) -> Credits:
    flow = Credits(capacity_bytes=capacity_bytes, unit_bytes=UNIT)
    flow.set_producers(range(1, producers + 1))
    return flow


def held(flow: Credits) -> list[int]:
    return [account.credit_bytes for account in flow.accounts.values()]


@pytest.mark.parametrize(
    ("capacity_units", "producers", "expected"),
    [
        (100, 1, [2 * UNIT]),
        (100, 3, [2 * UNIT] * 3),
        (0, 2, [2 * UNIT] * 2),
        (0, 0, []),
    ],
)
def test_everybody_starts_with_all_units_of_credit(capacity_units, producers, expected):
    assert held(credits_of(capacity_units * UNIT, producers)) == expected


def test_only_what_was_granted_may_be_taken():
    flow = credits_of(0, 1)
    assert flow.take(1, 2 * UNIT)
    assert not flow.take(1, 1)
    assert flow.reserved_bytes == 4 * UNIT


def test_strangers_have_no_credit():
    flow = credits_of(1000, 1)
    assert not flow.take(2, 1)
    assert flow.account(2) is None


def test_taking_reserves_room_for_the_gradient_too():
    """Room that was promised is reserved, so that what is free stays the same."""
    flow = credits_of(8 * UNIT, 1)
    free_bytes = flow.free_bytes
    flow.take(1, UNIT)
    assert flow.reserved_bytes == 2 * UNIT
    assert flow.free_bytes == free_bytes


def test_what_is_taken_is_granted_again_while_there_is_room():
    flow = credits_of(6 * UNIT, 1)
    flow.take(1, UNIT)
    assert flow.grant() == [1]
    assert held(flow) == [2 * UNIT]
    flow.take(1, UNIT)
    assert flow.grant() == []
    flow.release(UNIT)
    assert flow.grant() == [1]


def test_first_units_come_before_second_ones():
    flow = credits_of(0, 2)
    for _ in range(2):
        flow.take(1, UNIT)
        flow.take(2, UNIT)
    assert flow.grant() == []
    flow.release(UNIT)
    flow.release(UNIT)
    assert flow.grant() == [1, 2]
    assert held(flow) == [UNIT, UNIT]


def test_a_newcomer_gets_credit_however_little_room_idle_producers_left():
    """An idle producer once held all of a small capacity, so that a later one could not send at all."""
    flow = credits_of(4 * UNIT, 1)
    assert held(flow) == [2 * UNIT]
    flow.set_producers([1, 2])
    assert held(flow) == [2 * UNIT, 2 * UNIT]


def test_grants_are_cumulative():
    flow = credits_of(1000, 1)
    for taken in range(1, 6):
        flow.take(1, UNIT)
        flow.grant()
        account = flow.account(1)
        assert (account.granted_bytes, account.received_bytes) == ((taken + 2) * UNIT, taken * UNIT)


def test_who_begins_anew_is_granted_what_everybody_may_have():
    flow = credits_of(100 * UNIT, 2)
    for _ in range(5):
        flow.take(1, UNIT)
        flow.grant()
    reserved_bytes, free_bytes = flow.reserved_bytes, flow.free_bytes
    flow.begin_anew(1)
    assert (flow.account(1).granted_bytes, flow.account(1).received_bytes) == (0, 0)
    assert flow.grant() == [1]
    assert (flow.account(1).granted_bytes, flow.account(2).granted_bytes) == (2 * UNIT, 2 * UNIT)
    assert (flow.reserved_bytes, flow.free_bytes) == (reserved_bytes, free_bytes)
    flow.begin_anew(9)
    assert flow.account(9) is None


def test_leaving_takes_the_credit_back():
    flow = credits_of(8 * UNIT, 2)
    assert flow.free_bytes == 0
    flow.set_producers([2])
    assert flow.free_bytes == 4 * UNIT
    assert held(flow) == [2 * UNIT]


def test_nothing_is_granted_beyond_the_bound_that_leavers_left():
    flow = credits_of(0, 3)
    for producer in (1, 2, 3):
        flow.take(producer, 2 * UNIT)
    flow.set_producers([3])
    assert flow.reserved_bytes == 12 * UNIT > flow.bound_bytes
    assert held(flow) == [0]
    for _ in range(3):
        flow.release(2 * UNIT)
    assert flow.grant() == [3]


def test_what_is_kept_counts_as_free():
    flow = credits_of(8 * UNIT, 1)
    flow.take(1, UNIT)
    flow.keep(UNIT)
    assert (flow.reserved_bytes, flow.kept_bytes, flow.free_bytes, flow.excess_bytes) == (0, 2 * UNIT, 6 * UNIT, 0)
    flow.reserve_again(UNIT)
    assert (flow.reserved_bytes, flow.kept_bytes, flow.free_bytes) == (2 * UNIT, 0, 4 * UNIT)


def test_a_grant_takes_the_room_of_what_is_kept():
    flow = credits_of(4 * UNIT, 1)
    flow.take(1, UNIT)
    flow.keep(UNIT)
    assert flow.excess_bytes == 0, "it was reserved, which was promised: nothing is needed yet"
    assert flow.grant() == [1]
    assert flow.excess_bytes == 2 * UNIT
    flow.give_up(UNIT)
    assert (flow.kept_bytes, flow.excess_bytes) == (0, 0)


@settings(derandomize=True)
@given(
    capacity_bytes=st.integers(0, 200),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, UNIT)), max_size=80),
    released=st.randoms(use_true_random=False),
)
def test_the_bound_holds_and_nobody_starves(capacity_bytes, sizes, released):
    """Payloads of any size up to a unit: after all are released, everybody has its units again."""
    flow = credits_of(capacity_bytes, 4)
    taken: list[int] = []
    kept: list[int] = []
    for producer, size_bytes in sizes:
        if flow.take(producer, size_bytes):
            taken.append(size_bytes)
        else:
            assert flow.account(producer).credit_bytes < size_bytes
        if taken and released.random() < 0.4:
            flow.release(taken.pop(released.randrange(len(taken))))
        if taken and released.random() < 0.4:
            kept.append(taken.pop())
            flow.keep(kept[-1])
        if kept and released.random() < 0.2:
            taken.append(kept.pop())
            flow.reserve_again(taken[-1])
        assert flow.excess_bytes == 0, "only a grant needs the room of what is kept"
        flow.grant()
        while flow.excess_bytes:
            flow.give_up(kept.pop(0))
        promised = sum(held(flow))
        assert min(held(flow)) >= 0
        assert flow.reserved_bytes == 2 * sum(taken)
        assert flow.kept_bytes == 2 * sum(kept)
        assert flow.reserved_bytes + flow.kept_bytes + 2 * promised <= flow.bound_bytes
        assert flow.free_bytes == flow.bound_bytes - flow.reserved_bytes - 2 * promised
    for size_bytes in taken:
        flow.release(size_bytes)
    flow.grant()
    assert all((CREDIT_UNITS - 1) * UNIT < bytes_ <= CREDIT_UNITS * UNIT for bytes_ in held(flow))
