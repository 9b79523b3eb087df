from __future__ import annotations

import math

import pytest

from tests.letters import evaluated
from tests.trainer.settings import recovered, settings
from zswarm import limits
from zswarm.ids import Attempt, Purpose
from zswarm.trainer.admission import Admission, order
from zswarm.trainer.replays import Replay
from zswarm.trainer.settings import EvaluationDone

TRAIN, EVALUATE = Purpose.TRAIN, Purpose.EVALUATE
FIRST = Attempt(7)
"""The attempt of what is admitted for the first time."""
FULL = 0b1111


def admissions(**changes) -> Admission:
    return Admission(settings(**changes), first_attempt=FIRST)


def admitted(samples) -> list[tuple[int, int]]:
    return [(sample.step, sample.microbatch) for sample in samples]


def replay(step, microbatch, *, mask) -> Replay:
    return Replay(step=step, microbatch=microbatch, attempt=8, mask=mask)


def test_the_order_of_a_run():
    run = settings(steps=2, num_microbatches=2, num_held_out=1)
    assert list(order(run, 0)) == [
        (EVALUATE, 0, 0),
        (TRAIN, 0, 0),
        (TRAIN, 0, 1),
        (TRAIN, 1, 0),
        (TRAIN, 1, 1),
        (EVALUATE, 2, 0),
    ]


def test_the_order_of_the_rest_of_a_run():
    run = settings(steps=3, num_microbatches=1, num_held_out=1)
    assert list(order(run, 1)) == [(TRAIN, 1, 0), (TRAIN, 2, 0), (EVALUATE, 3, 0)]
    assert list(order(run, 3)) == [(EVALUATE, 3, 0)]


def test_the_order_of_a_run_that_is_taken_up():
    """What the step in work and the one after it lack is found out by other means."""
    run = settings(steps=3, num_microbatches=1, num_held_out=1)
    assert list(order(run, 0, is_taken_up=True)) == [(EVALUATE, 0, 0), (TRAIN, 2, 0), (EVALUATE, 3, 0)]
    assert list(order(run, 1, is_taken_up=True)) == [(EVALUATE, 3, 0)]
    assert list(order(run, 2, is_taken_up=True)) == [(EVALUATE, 3, 0)]


def test_the_window_bounds_what_is_in_flight():
    admission = admissions()
    assert admitted(admission.admit(step=0, window=3, now=0.0)) == [(0, 0), (0, 1), (0, 2)]
    assert admission.admit(step=0, window=3, now=0.0) == []
    admission.counted(0, 0b101)
    assert admission.num_in_flight == 1
    assert admitted(admission.admit(step=0, window=3, now=0.0)) == [(0, 3), (1, 0)]


def test_evaluations_know_no_window_but_wait_for_their_parameters():
    """Their step waits for them, and the next one may have filled the window; too early they would be in the way."""
    admission = admissions(steps=1, num_held_out=5)
    first = admission.admit(step=0, window=2, now=0.0)
    assert [sample.purpose for sample in first] == [EVALUATE] * 5
    for index in range(5):
        admission.evaluated(evaluated(9, index), 0.0)
    assert admitted(admission.admit(step=0, window=100, now=0.0)) == [(0, index) for index in range(4)]
    assert [(sample.purpose, sample.step) for sample in admission.admit(step=1, window=2, now=0.0)] == [
        (EVALUATE, 1)
    ] * 5


def test_nothing_beyond_the_next_step_is_admitted():
    admission = admissions()
    assert len(admission.admit(step=0, window=100, now=0.0)) == 8
    assert admission.admit(step=0, window=100, now=0.0) == []
    assert admitted(admission.admit(step=1, window=100, now=0.0)) == [(2, index) for index in range(4)]
    assert admission.admit(step=3, window=100, now=0.0) == []


def test_where_this_step_lacks_room_nothing_of_the_next_one_is_admitted():
    admission = admissions()
    assert {sample.step for sample in admission.admit(step=0, window=100, now=0.0, is_ahead=False)} == {0}
    assert {sample.step for sample in admission.admit(step=0, window=100, now=0.0)} == {1}


def test_counting_twice_or_what_is_not_in_flight_changes_nothing():
    admission = admissions()
    admission.admit(step=0, window=2, now=0.0)
    for _ in range(2):
        admission.counted(0, 0b1001)
        admission.counted(1, FULL)
    assert list(admission.in_flight) == [(TRAIN, 0, 1)]


def test_what_was_ever_admitted_of_a_step_is_known_until_it_is_committed():
    admission = admissions()
    admission.admit(step=0, window=5, now=0.0)
    admission.counted(0, FULL)
    assert (admission.admitted(0), admission.admitted(1), admission.admitted(2)) == (FULL, 0b0001, 0)
    admission.committed(0)
    assert (admission.admitted(0), admission.admitted(1)) == (0, 0b0001)


def test_a_commit_leaves_nothing_of_the_step_in_flight():
    """Stage 0 may have counted the last ones in the report that came with the round's end."""
    admission = admissions()
    admission.admit(step=0, window=5, now=0.0)
    admission.committed(0)
    assert list(admission.in_flight) == [(TRAIN, 1, 0)]


def test_samples_are_wanted_of_what_is_admitted_and_not_over():
    admission = admissions(num_held_out=1)
    admission.admit(step=0, window=3, now=0.0)
    wanted = [(EVALUATE, 0, 0), (TRAIN, 0, 0), (TRAIN, 0, 1)]
    assert all(map(admission.expects, wanted))
    assert not any(map(admission.expects, [(EVALUATE, 3, 0), (TRAIN, 0, 2), (TRAIN, 1, 0)]))
    admission.evaluated(evaluated(9, 0), 0.0)
    admission.committed(0)
    assert not any(map(admission.expects, wanted))


# -- once more ---------------------------------------------------------------------------------------


def test_what_goes_in_for_the_first_time_is_for_all_stages():
    assert admissions().attempt((TRAIN, 0, 1)) == (FIRST, 0b11)


def test_what_goes_in_again_is_for_the_stages_that_lack_it():
    """In flight is what stage 0 is still to count: the rest is no matter of the window."""
    admission = admissions()
    admission.admit(step=0, window=4, now=0.0)
    admission.counted(0, 0b0011)
    replays = [replay(0, 0, mask=0b11), replay(0, 1, mask=0b10)]
    assert admitted(admission.readmit(replays)) == [(0, 0), (0, 1)]
    assert {ticket[2] for ticket in admission.in_flight} == {0, 2, 3}
    assert [admission.attempt((TRAIN, 0, index)) for index in range(3)] == [(8, 0b11), (8, 0b10), (FIRST, 0b11)]
    assert admission.expects((TRAIN, 0, 1)), "though it is not in flight"


def test_attempts_of_a_step_that_is_over_are_forgotten():
    admission = admissions()
    admission.admit(step=0, window=8, now=0.0)
    admission.readmit([replay(0, 0, mask=0b11)])
    admission.readmit([replay(1, 0, mask=0b01)])
    admission.committed(0)
    assert admission.attempt((TRAIN, 1, 0)) == (8, 0b01)
    assert admission.attempt((TRAIN, 0, 0)) == (FIRST, 0b11)


# -- taken up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "of_next"), [(1, FULL), (2, 0)], ids=["amid", "in the last step"])
def test_a_run_that_is_taken_up_takes_two_steps_for_admitted(step, of_next):
    admission = Admission(settings(recovered=recovered()), first_attempt=FIRST)
    admission.begin(step, is_taken_up=True)
    assert (admission.admitted(step), admission.admitted(step + 1)) == (FULL, of_next)
    assert admission.admit(step=step, window=100, now=0.0) == []
    assert not admission.expects((TRAIN, step - 1, 0))


def test_the_first_evaluation_is_still_to_do_in_a_run_that_is_taken_up_before_it():
    admission = Admission(settings(num_held_out=2, recovered=recovered()), first_attempt=FIRST)
    admission.begin(0, is_taken_up=True)
    assert (admission.admitted(0), admission.admitted(1)) == (FULL, FULL)
    samples = admission.admit(step=0, window=100, now=0.0)
    assert [(sample.purpose, sample.step, sample.microbatch) for sample in samples] == [
        (EVALUATE, 0, 0),
        (EVALUATE, 0, 1),
    ]


def test_the_first_evaluation_finds_room_though_two_steps_pass_for_admitted():
    """With a window of less than two steps it never got in, and step 0 waited for it for ever."""
    admission = Admission(settings(num_held_out=1, recovered=recovered()), first_attempt=FIRST)
    admission.begin(0, is_taken_up=True)
    samples = admission.admit(step=0, window=4, now=0.0)
    assert [(sample.purpose, sample.step) for sample in samples] == [(EVALUATE, 0)]


def test_a_loss_that_the_log_knows_is_not_asked_for_again():
    run = settings(num_held_out=1, recovered=recovered(held_out={0: 1.5}))
    admission = Admission(run, first_attempt=FIRST)
    admission.begin(0, is_taken_up=True)
    assert admission.is_evaluated(0)
    assert not admission.is_evaluated(3)
    assert admission.admit(step=0, window=100, now=0.0) == []


def test_after_a_rollback_everything_from_that_step_on_goes_in_again():
    admission = admissions(num_held_out=1)
    admission.admit(step=0, window=3, now=0.0)
    admission.evaluated(evaluated(9, 0), 0.0)
    for step in range(3):
        admission.admit(step=step, window=100, now=0.0)
        admission.readmit([replay(step, 0, mask=0b10)])
        admission.committed(step)
    admission.admit(step=3, window=100, now=0.0)
    admission.evaluated(evaluated(9, 0, step=3), 0.0)
    assert admission.is_evaluated(3)
    admission.forget_after(1)
    admission.begin(1)
    assert admission.is_evaluated(0)
    assert not admission.is_evaluated(3), "these are other parameters"
    assert (admission.num_in_flight, admission.admitted(1)) == (0, 0)
    assert not admission.expects((TRAIN, 1, 0))
    assert admitted(admission.admit(step=1, window=3, now=0.0)) == [(1, 0), (1, 1), (1, 2)]
    assert admission.attempt((TRAIN, 1, 0)) == (FIRST, 0b11)


def test_after_a_rollback_to_the_beginning_the_loss_of_fresh_parameters_stands():
    admission = admissions(num_held_out=1)
    admission.admit(step=0, window=100, now=0.0)
    admission.evaluated(evaluated(9, 0), 0.0)
    admission.forget_after(0)
    admission.begin(0)
    assert admission.is_evaluated(0)
    assert admitted(admission.admit(step=0, window=1, now=0.0)) == [(0, 0)]


def test_half_an_evaluation_is_begun_anew_after_a_rollback():
    """The loss of the other half would be that of the same microbatches again."""
    admission = admissions(num_held_out=2)
    admission.admit(step=0, window=100, now=0.0)
    admission.evaluated(evaluated(9, 0, loss_sum=100.0), 0.0)
    admission.begin(0)
    admission.admit(step=0, window=100, now=0.0)
    assert admission.evaluated(evaluated(9, 1, loss_sum=2.0), 0.0) is None
    assert admission.evaluated(evaluated(9, 0, loss_sum=4.0), 0.0) == EvaluationDone(step=0, loss=3.0)


# -- held-out losses ---------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_mean_over_predictions():
    admission = admissions(num_held_out=2)
    admission.admit(step=0, window=100, now=0.0)
    assert not admission.is_evaluated(0)
    assert admission.evaluated(evaluated(9, 1, loss_sum=6.0, num_targets=3), 0.0) is None
    assert admission.evaluated(evaluated(9, 1, loss_sum=9.0, num_targets=1), 0.0) is None, "it came again"
    done = admission.evaluated(evaluated(9, 0, loss_sum=2.0, num_targets=1), 0.0)
    assert done == EvaluationDone(step=0, loss=2.0)
    assert admission.is_evaluated(0)
    assert admission.evaluated(evaluated(9, 0), 0.0) is None


def test_a_held_out_loss_that_is_not_finite_is_a_result():
    """The message for it could not be encoded: the worker died of a model that diverged."""
    admission = admissions(num_held_out=2)
    admission.admit(step=0, window=100, now=0.0)
    admission.evaluated(evaluated(9, 1, loss_sum=None), 0.0)
    done = admission.evaluated(evaluated(9, 0), 0.0)
    assert done is not None
    assert math.isnan(done.loss)
    assert admission.is_evaluated(0)


@pytest.mark.parametrize("message", [evaluated(9, 0, step=1), evaluated(9, 7)])
def test_losses_that_nobody_asked_for_are_ignored(message):
    admission = admissions(num_held_out=1)
    admission.admit(step=0, window=1, now=0.0)
    assert admission.evaluated(message, 0.0) is None
    assert admission.num_in_flight == 1


def test_the_last_parameters_are_evaluated_too():
    admission = admissions(steps=1, num_microbatches=1, num_held_out=1)
    admission.admit(step=0, window=9, now=0.0)
    admission.evaluated(evaluated(9, 0), 0.0)
    admission.counted(0, 1)
    admission.admit(step=1, window=9, now=0.0)
    assert not admission.is_evaluated(1)
    admission.evaluated(evaluated(9, 0, step=1), 0.0)
    assert admission.is_evaluated(1)
    assert admission.num_in_flight == 0


def test_without_held_out_samples_everything_is_evaluated():
    admission = admissions(num_held_out=0)
    assert all(admission.is_evaluated(step) for step in range(4))


def test_an_evaluation_without_losses_is_begun_again_with_growing_patience():
    """The losses of the first pass may be on their way: another one at once would only be in their way."""
    admission = admissions(num_held_out=2)
    admission.admit(step=0, window=2, now=10.0)
    times = [now for now in range(10, 200) if admission.reevaluate(now=float(now), heartbeat_s=2.0)]
    first = int(limits.EVALUATION_HEARTBEATS * 2)
    assert times == [10 + first, 10 + 3 * first, 10 + 7 * first, 10 + 15 * first]
    assert admission.attempt((EVALUATE, 0, 1)) == (FIRST + 4, 0b11)


def test_only_what_has_brought_no_loss_is_evaluated_again():
    admission = admissions(num_held_out=2)
    admission.admit(step=0, window=3, now=0.0)
    admission.reevaluate(now=5.0, heartbeat_s=1.0)
    admission.evaluated(evaluated(9, 1), 7.0)
    assert admission.reevaluate(now=11.9, heartbeat_s=1.0) == [], "the loss that has come shows that it goes on"
    (sample,) = admission.reevaluate(now=12.0, heartbeat_s=1.0)
    assert (sample.purpose, sample.step, sample.microbatch) == (EVALUATE, 0, 0)
    admission.evaluated(evaluated(9, 0), 13.0)
    assert admission.reevaluate(now=1000.0, heartbeat_s=1.0) == []


def test_an_own_stall_is_no_reason_to_evaluate_again():
    admission = admissions(num_held_out=1)
    admission.admit(step=0, window=2, now=0.0)
    admission.excuse(100.0)
    assert admission.reevaluate(now=104.9, heartbeat_s=1.0) == []
    assert len(admission.reevaluate(now=105.0, heartbeat_s=1.0)) == 1
