from __future__ import annotations

import math

import pytest

from tests.letters import evaluated
from tests.trainer.settings import settings
from zswarm.ids import Purpose
from zswarm.trainer.admission import Admission, order
from zswarm.trainer.settings import EvaluationDone

TRAIN, EVALUATE = Purpose.TRAIN, Purpose.EVALUATE


def admitted(samples) -> list[tuple[int, int]]:
    return [(sample.step, sample.microbatch) for sample in samples]


def test_the_order_of_a_run():
    run = settings(steps=2, num_microbatches=2, num_held_out=1)
    assert list(order(run)) == [
        (EVALUATE, 0, 0),
        (TRAIN, 0, 0),
        (TRAIN, 0, 1),
        (TRAIN, 1, 0),
        (TRAIN, 1, 1),
        (EVALUATE, 2, 0),
    ]


def test_the_window_bounds_what_is_in_flight():
    admission = Admission(settings())
    assert admitted(admission.admit(step=0, window=3)) == [(0, 0), (0, 1), (0, 2)]
    assert admission.admit(step=0, window=3) == []
    admission.counted(0, 0b101)
    assert admission.num_in_flight == 1
    assert admitted(admission.admit(step=0, window=3)) == [(0, 3), (1, 0)]


def test_nothing_beyond_the_next_step_is_admitted():
    admission = Admission(settings())
    assert len(admission.admit(step=0, window=100)) == 8
    assert admission.admit(step=0, window=100) == []
    assert admitted(admission.admit(step=1, window=100)) == [(2, index) for index in range(4)]
    assert admission.admit(step=3, window=100) == []


def test_counting_twice_or_what_is_not_in_flight_changes_nothing():
    admission = Admission(settings())
    admission.admit(step=0, window=2)
    for _ in range(2):
        admission.counted(0, 0b1001)
        admission.counted(1, 0b1111)
    assert list(admission.in_flight) == [(TRAIN, 0, 1)]


def test_the_held_out_loss_is_the_mean_over_predictions():
    admission = Admission(settings(num_held_out=2))
    admission.admit(step=0, window=100)
    assert not admission.is_evaluated(0)
    assert admission.evaluated(evaluated(9, 1, loss_sum=6.0, num_targets=3)) is None
    assert admission.evaluated(evaluated(9, 1, loss_sum=9.0, num_targets=1)) is None, "it came again"
    done = admission.evaluated(evaluated(9, 0, loss_sum=2.0, num_targets=1))
    assert done == EvaluationDone(step=0, loss=2.0)
    assert admission.is_evaluated(0)
    assert admission.evaluated(evaluated(9, 0)) is None


def test_a_held_out_loss_that_is_not_finite_is_a_result():
    """The message for it could not be encoded: the worker died of a model that diverged."""
    admission = Admission(settings(num_held_out=2))
    admission.admit(step=0, window=100)
    admission.evaluated(evaluated(9, 1, loss_sum=None))
    done = admission.evaluated(evaluated(9, 0))
    assert done is not None
    assert math.isnan(done.loss)
    assert admission.is_evaluated(0)


@pytest.mark.parametrize("message", [evaluated(9, 0, step=1), evaluated(9, 7)])
def test_losses_that_nobody_asked_for_are_ignored(message):
    admission = Admission(settings(num_held_out=1))
    admission.admit(step=0, window=1)
    assert admission.evaluated(message) is None
    assert admission.num_in_flight == 1


def test_the_last_parameters_are_evaluated_too():
    admission = Admission(settings(steps=1, num_microbatches=1, num_held_out=1))
    admission.admit(step=0, window=9)
    admission.evaluated(evaluated(9, 0))
    admission.counted(0, 1)
    assert not admission.is_evaluated(1)
    admission.evaluated(evaluated(9, 0, step=1))
    assert admission.is_evaluated(1)
    assert admission.num_in_flight == 0


def test_without_held_out_samples_everything_is_evaluated():
    admission = Admission(settings(num_held_out=0))
    assert all(admission.is_evaluated(step) for step in range(4))
