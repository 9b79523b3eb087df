"""A broken rule is noticed: the proof that clean schedules prove something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.storms import AIMED, storm
from zswarm.errors import UserError
from zswarm.outbox import Outbox
from zswarm.simulation.mutants import MUTANTS, in_force
from zswarm.simulation.schedule import Schedule, make_schedule
from zswarm.simulation.simulate import run

BUDGET = 100
"""Schedules of each sort within which each mutant must be noticed."""
KNOWN = {
    "job-of-an-old-life": ("aimed", 0),
    "needs-input-is-done": ("drawn", 22),
    "forward-sent-on-again": ("aimed", 145),
    "failed-checkpoint-is-newest": ("drawn", 122),
    "round-outlives-its-member": ("storm", 24),
    "round-used-again": ("drawn", 21),
    "waiting-is-active": ("storm", 16),
    "leaver-takes-jobs": ("aimed", 18),
    "last-of-its-stage-goes": ("aimed", 6),
    "leaves-while-something-comes": ("aimed", 33),
    "reports-a-moment": ("aimed", 23),
    "view-tells-no-step": ("aimed", 0),
}
"""What notices a mutant that most schedules do not, to save time; of no account once it does not."""


def _schedules(name: str) -> Iterator[Schedule]:
    sorts = {"drawn": make_schedule, "storm": storm} | ({"aimed": AIMED[name]} if name in AIMED else {})
    if name in KNOWN:
        sort, seed = KNOWN[name]
        yield sorts[sort](seed)
    for seed in range(BUDGET):
        for make in sorts.values():
            yield make(seed)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_noticed(name: str) -> None:
    """By a promise that it breaks: that a machine raises would say that the mutant does not fit it any more."""
    with in_force(name):
        found = (run(schedule).violation for schedule in _schedules(name))
        noticed = any(violation is not None and violation.rule != "crash" for violation in found)
    assert noticed, f"{MUTANTS[name].breach}: {BUDGET} schedules of each sort notice nothing"


@pytest.mark.parametrize("name", AIMED)
def test_schedules_that_are_aimed_at_a_mutant_are_clean_without_it(name: str) -> None:
    for seed in range(10):
        violation = run(AIMED[name](seed)).violation
        assert violation is None, f"seed {seed}: {violation}"


def test_who_takes_for_lost_what_lives_loses_time_and_nothing_else() -> None:
    with in_force("hasty"):
        for seed in range(12):
            violation = run(AIMED["void-forgotten"](seed)).violation
            assert violation is None or violation.rule in {"L2", "I8"}, f"seed {seed}: {violation}"


def test_storms_keep_every_promise() -> None:
    for seed in range(60):
        violation = run(storm(seed)).violation
        assert violation is None, f"storm {seed}: {violation}"


def test_a_mutant_leaves_no_trace() -> None:
    before = Outbox.resend_due
    with in_force("outputs-once"):
        assert Outbox.resend_due is not before
    assert Outbox.resend_due is before


def test_an_unknown_mutant_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no such mutant; choose one of"), in_force("x"):
        pass
