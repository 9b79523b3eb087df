from __future__ import annotations

import pytest

from stages.jobs import HeldJob, Jobs
from tests.letters import job, parcel, result
from zswarm.ids import JobKind, JobStatus
from zswarm.messages import Load

BROKER, OTHER = 41, 42
F, B, FUSED = JobKind.FORWARD, JobKind.BACKWARD, JobKind.FUSED
NOW, NEXT = (0, 0), (0, 1)


def held(lease: int, kind: JobKind = F, microbatch: int = 0, *, broker: int = BROKER, step: int = 0) -> HeldJob:
    return HeldJob(job=job(broker, lease, kind, microbatch, step=step), x=Load(parcel=parcel(), frames=()), dy=None)


def take_all(jobs: Jobs, version=NOW) -> list[int]:
    """Begin and finish everything of a version; returns the leases in that order."""
    order = []
    while (next_job := jobs.next(version)) is not None:
        next_job.begun = True
        order.append(next_job.job.lease)
    return order


def test_backwards_begin_before_forwards_each_in_order_of_arrival():
    jobs = Jobs()
    for lease, kind in ((1, F), (2, B), (3, FUSED), (4, B), (5, F)):
        jobs.take(held(lease, kind))
    assert take_all(jobs) == [2, 4, 1, 3, 5]


def test_jobs_of_another_step_wait():
    jobs = Jobs()
    jobs.take(held(1, step=1))
    assert jobs.next(NOW) is None
    assert jobs.next(NEXT).job.lease == 1


def test_a_job_that_comes_again_is_held_once():
    jobs = Jobs()
    first = held(1)
    jobs.take(first)
    jobs.take(held(1))
    jobs.next(NOW).begun = True
    jobs.take(held(1))
    assert jobs.next(NOW) is None
    assert jobs.held == {first.id: first}


def test_a_finished_job_is_known_by_its_result():
    jobs = Jobs()
    first = held(1)
    assert (jobs.holds(first.job), jobs.result_of(first.job)) == (False, None)
    jobs.take(first)
    assert (jobs.holds(first.job), jobs.result_of(first.job)) == (True, None)
    answer = result(21, 1)
    jobs.finish(first, answer)
    assert (jobs.holds(first.job), jobs.result_of(first.job)) == (False, answer)
    assert jobs.next(NOW) is None


@pytest.mark.parametrize(
    ("of", "is_known"),
    [({}, True), ({"microbatch": 5}, True), ({"lease": 2}, False), ({"broker": OTHER}, False)],
    ids=str,
)
def test_a_refused_job_is_known_by_its_broker_and_lease(of, is_known):
    """Refusals were not remembered: a late copy was taken when another worker had the job, and both counted it."""
    jobs = Jobs()
    answer = result(21, 1, JobStatus.WRONG_STEP)
    jobs.remember(held(1).job, answer)
    assert jobs.result_of(held(**({"lease": 1} | of)).job) == (answer if is_known else None)
    assert jobs.held == {}


def test_a_refusal_is_remembered_as_long_as_its_step():
    """The step of the job, not that of the refusal, which is the worker's."""
    jobs = Jobs()
    for lease, step in ((1, 0), (2, 1)):
        jobs.remember(held(lease, step=step).job, result(21, lease, JobStatus.WRONG_STEP, step=3))
    jobs.drop_before(NEXT)
    assert set(jobs.results) == {(BROKER, 2)}


def test_leases_of_two_brokers_are_two_jobs():
    jobs = Jobs()
    jobs.take(held(1))
    jobs.take(held(1, broker=OTHER))
    assert (jobs.of(BROKER), jobs.of(OTHER), jobs.of(43)) == ((1,), (1,), ())
    jobs.finish(jobs.next(NOW), result(21, 1))
    assert (jobs.of(BROKER), jobs.of(OTHER)) == ((), (1,))
    assert jobs.result_of(held(1, broker=OTHER).job) is None


def test_older_steps_are_dropped_but_not_what_is_running():
    jobs = Jobs()
    for lease, step in ((1, 0), (2, 0), (3, 1), (4, 0)):
        jobs.take(held(lease, step=step))
    jobs.finish(jobs.next(NOW), result(21, 1))
    running = jobs.next(NOW)
    running.begun = True
    jobs.drop_before(NEXT)
    assert jobs.of(BROKER) == (2, 3)
    assert jobs.results == {}
    jobs.finish(running, result(21, 2))
    assert jobs.of(BROKER) == (3,)


def test_what_nobody_wants_is_dropped_unless_it_runs():
    jobs = Jobs()
    for lease in (1, 2, 3):
        jobs.take(held(lease, microbatch=lease))
    jobs.next(NOW).begun = True
    jobs.drop(lambda job: job.microbatch < 3)
    assert jobs.of(BROKER) == (1, 3)


def test_pending_are_the_microbatches_of_a_step():
    jobs = Jobs()
    for lease, step, microbatch in ((1, 0, 2), (2, 0, 5), (3, 1, 7)):
        jobs.take(held(lease, microbatch=microbatch, step=step))
    jobs.finish(jobs.next(NOW), result(21, 1))
    assert (jobs.pending(NOW), jobs.pending(NEXT)) == (1 << 5, 1 << 7)


def test_after_clearing_no_job_is_left_but_what_was_said_stays_said():
    """It was forgotten: a late copy of a job that another worker has by now was taken and counted."""
    jobs = Jobs()
    jobs.take(held(1))
    jobs.next(NOW).begun = True
    jobs.take(held(2))
    answer = result(21, 2)
    jobs.finish(jobs.next(NOW), answer)
    jobs.clear()
    assert (jobs.held, jobs.of(BROKER), jobs.pending(NOW)) == ({}, (), 0)
    assert jobs.result_of(held(2).job) == answer
