from __future__ import annotations

from math import inf

import pytest

from zswarm.ids import Session
from zswarm.simulation.churn.downloads import Downloads

A, B, C = Session(1), Session(2), Session(3)


def downloads(*, givers):
    """Of 1000 bytes at 10 bytes/s: 100 s for one alone."""
    of = Downloads(1000.0, 10.0)
    of.num_givers = givers
    return of


def ended(of):
    """Let the next download end, and return when and whose it was."""
    at_s = of.next_s()
    of.serve(at_s)
    return at_s, of.end()


def test_one_alone_gets_the_bandwidth_of_one_machine_however_many_give():
    of = downloads(givers=5)
    of.begin(A)
    assert ended(of) == (100.0, A)
    assert (of.next_s(), of.num_takers, of.taken_bytes) == (inf, 0, 1000.0)


def test_takers_share_the_uplink_of_one_giver():
    of = downloads(givers=1)
    of.begin(A)
    of.serve(50.0)
    of.begin(B)
    assert ended(of) == (150.0, A)
    assert ended(of) == (200.0, B)
    assert of.taken_bytes == pytest.approx(2000.0)


def test_as_many_givers_as_takers_are_enough():
    of = downloads(givers=2)
    of.begin(A)
    of.begin(B)
    assert [ended(of), ended(of)] == [(100.0, A), (100.0, B)]


def test_a_giver_that_is_gone_slows_all_down():
    of = downloads(givers=2)
    of.begin(A)
    of.begin(B)
    of.serve(50.0)
    of.num_givers = 1
    assert ended(of) == (150.0, A)


def test_where_nobody_gives_the_trainer_does():
    of = downloads(givers=0)
    of.begin(A)
    of.begin(B)
    assert ended(of) == (200.0, A)


@pytest.mark.parametrize("gone", [A, B])
def test_who_gives_up_leaves_the_rest_to_the_other(gone):
    of = downloads(givers=1)
    of.begin(A)
    of.begin(B)
    of.serve(100.0)
    of.give_up(gone)
    assert of.num_takers == 1
    assert ended(of) == (150.0, B if gone == A else A)
    assert of.taken_bytes == pytest.approx(1500.0)


def test_who_comes_back_begins_anew():
    of = downloads(givers=3)
    of.begin(A)
    of.begin(B)
    of.serve(90.0)
    of.give_up(B)
    of.begin(C)
    assert [ended(of), ended(of)] == [(100.0, A), (190.0, C)]
