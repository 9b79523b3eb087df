from __future__ import annotations

import pytest

from brokers.voids import Voids
from tests.letters import key, void
from zswarm.ids import Purpose


@pytest.fixture
def voids():
    """Attempts of microbatches 0 and 2 of step 0 below 5 are void."""
    voids = Voids()
    voids.note(void(5, 0b101))
    return voids


@pytest.mark.parametrize(
    ("microbatch", "of", "is_void"),
    [
        (0, {"attempt": 4}, True),
        (2, {"attempt": 0}, True),
        (0, {"attempt": 5}, False),
        (1, {"attempt": 0}, False),
        (0, {"step": 1}, False),
        (0, {"branch": 1}, False),
        (0, {"purpose": Purpose.EVALUATE}, False),
    ],
    ids=["below", "far below", "the new one", "not named", "another step", "another branch", "evaluation"],
)
def test_what_a_void_covers(voids, microbatch, of, is_void):
    assert voids.covers(key(microbatch, **of)) is is_void


def test_floors_only_rise(voids):
    """A late copy of an older Void changes nothing for what a newer one has named."""
    voids.note(void(3, 0b011))
    assert voids.covers(key(0, attempt=4))
    assert voids.covers(key(1, attempt=2))
    assert not voids.covers(key(1, attempt=3))
    assert voids.newest == 5
    voids.note(void(9, 0, step=1))
    assert voids.newest == 9


def test_floors_are_forgotten_with_their_step(voids):
    voids.note(void(9, 1, step=1))
    voids.drop_before((0, 1))
    assert not voids.covers(key(0))
    assert voids.covers(key(0, step=1))
    assert voids.newest == 9
