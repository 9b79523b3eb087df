"""A broken rule is noticed: the proof that clean schedules prove something."""

from __future__ import annotations

import pytest

from zswarm.errors import UserError
from zswarm.outbox import Outbox
from zswarm.simulation.mutants import MUTANTS, in_force
from zswarm.simulation.simulate import run_seed

BUDGET = 250
"""Schedules within which each mutant must be noticed."""
TRIED_FIRST = {"homeless-gradient": 50}
"""Seeds that notice a mutant which most do not, to save time; of no account once they do not."""


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_noticed(name: str) -> None:
    seeds = [TRIED_FIRST.get(name, 0), *range(BUDGET)]
    with in_force(name):
        noticed = any(run_seed(seed).violation is not None for seed in seeds)
    assert noticed, f"{MUTANTS[name].breach}: {BUDGET} schedules notice nothing"


def test_a_mutant_leaves_no_trace() -> None:
    before = Outbox.resend_due
    with in_force("outputs-once"):
        assert Outbox.resend_due is not before
    assert Outbox.resend_due is before


def test_an_unknown_mutant_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no such mutant; choose one of"), in_force("x"):
        pass
