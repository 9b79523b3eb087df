from __future__ import annotations

from math import exp, inf

import pytest

from zswarm.planning.churn import FIRST_GUESS_S, MEMORY_S, Churn


def test_before_anybody_has_left_the_first_guess_stands():
    assert Churn(100.0).residence_s(100.0) == FIRST_GUESS_S


def test_the_stay_is_the_time_that_all_have_spent_over_those_who_have_left():
    churn = Churn(0.0)
    for _ in range(3):
        churn.join(0.0)
    churn.leave(1000.0)
    churn.leave(2000.0)
    spent_s = 3 * 1000.0 + 2 * 1000.0 + 1 * 500.0
    assert churn.residence_s(2500.0) == pytest.approx((FIRST_GUESS_S + spent_s) / 3)


def test_of_many_the_first_guess_does_not_matter():
    """A hundred workers, one of which is lost and replaced every minute, stay for 100 minutes."""
    churn = Churn(0.0)
    for _ in range(100):
        churn.join(0.0, is_newcomer=False)
    for minute in range(1, 1000):
        churn.leave(60.0 * minute)
        churn.join(60.0 * minute)
    assert churn.residence_s(60000.0) == pytest.approx(6000.0, rel=0.01)
    assert churn.join_every_s(60000.0) == pytest.approx(60.0, rel=0.05)


def test_who_begins_with_the_run_is_no_newcomer():
    churn = Churn(0.0)
    churn.join(0.0, is_newcomer=False)
    assert churn.join_every_s(60.0) == inf
    churn.join(60.0)
    assert churn.join_every_s(60.0) == pytest.approx(60.0, rel=0.05)


def test_newcomers_of_long_ago_are_forgotten():
    churn = Churn(0.0)
    for second in range(100):
        churn.join(float(second))
    soon, late = churn.join_every_s(100.0), churn.join_every_s(100.0 + 5 * MEMORY_S)
    assert soon == pytest.approx(1.0, rel=0.05)
    assert late == pytest.approx(MEMORY_S * exp(5) / 100, rel=0.1)
