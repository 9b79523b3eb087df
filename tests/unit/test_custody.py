"""What a process has had in hand since its last report."""

from __future__ import annotations

from zswarm.custody import Custody

NOW = (0, 3)
NEXT = (0, 4)


def test_what_came_and_went_has_passed_and_what_is_held_has_not():
    custody = Custody()
    custody.take(NOW, 0)
    custody.take(NOW, 2)
    assert custody.passed(NOW, 0b0100) == 0b0001


def test_what_was_held_at_the_last_report_passes_when_it_is_gone_and_once():
    custody = Custody()
    custody.take(NOW, 1)
    assert custody.passed(NOW, 0b0010) == 0
    assert custody.passed(NOW, 0) == 0b0010
    assert custody.passed(NOW, 0) == 0


def test_what_is_held_though_nobody_said_that_it_came_passes_too():
    custody = Custody()
    assert custody.passed(NOW, 0b1000) == 0
    assert custody.passed(NOW, 0) == 0b1000


def test_each_step_has_its_own_and_older_ones_are_forgotten():
    custody = Custody()
    custody.take(NOW, 0)
    custody.take(NEXT, 1)
    custody.drop_before(NEXT)
    assert (custody.passed(NOW, 0), custody.passed(NEXT, 0)) == (0, 0b0010)
