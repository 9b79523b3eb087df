"""A broken rule is noticed: the proof that clean schedules prove something."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    "waiting-is-active": ("storm", 16),
    "last-of-its-stage-goes": ("aimed", 6),
    "view-tells-no-step": ("aimed", 0),
    "void-forgotten": ("storm", 3),
    "outputs-once": ("storm", 12),
    "leaver-takes-jobs": ("aimed", 4),
    "pulls-once": ("aimed", 6),
    "reports-a-moment": ("aimed", 12),
    "idle-too-early": ("aimed", 49),
    "broker-forgets-voids": ("storm", 14),
    "leaves-while-something-comes": ("aimed", 22),
    "charges-the-size": ("storm", 7),
    "branch-unchecked": ("drawn", 84),
    "prepare-once": ("drawn", 14),
    "commit-once": ("drawn", 31),
    "view-once": ("storm", 16),
    "restore-once": ("drawn", 8),
    "heirs-forgotten": ("aimed", 3),
    "results-that-are-lost": ("aimed", 111),
    "ranges-say-the-present": ("aimed", 7),
    "leave-not-durable": ("aimed", 3),
    "replay-unvoided": ("storm", 3),
    "moves-without-fence": ("drawn", 7),
    "moves-the-last": ("aimed", 12),
    "rollback-unlogged": ("drawn", 39),
    "never-back": ("drawn", 39),
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


@pytest.mark.parametrize("make", dict.fromkeys(AIMED.values()), ids=lambda make: make.__name__)
def test_schedules_that_are_aimed_at_a_mutant_are_clean_without_it(make: Callable[[int], Schedule]) -> None:
    for seed in range(10):
        violation = run(make(seed)).violation
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
