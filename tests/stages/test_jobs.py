from __future__ import annotations

from stages.jobs import HeldJob, Jobs
from tests.letters import job, parcel, result
from zswarm.ids import JobKind
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
        assert jobs.take(held(lease, kind)) is None
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
    assert jobs.take(held(1)) is None
    jobs.next(NOW).begun = True
    assert jobs.take(held(1)) is None
    assert jobs.next(NOW) is None
    assert jobs.held == {first.id: first}


def test_a_finished_job_that_comes_again_brings_its_result():
    jobs = Jobs()
    jobs.take(held(1))
    done = jobs.next(NOW)
    answer = result(21, 1)
    jobs.finish(done, answer)
    assert jobs.take(held(1)) == answer
    assert jobs.held == {}
    assert jobs.next(NOW) is None


def test_leases_of_two_brokers_are_two_jobs():
    jobs = Jobs()
    jobs.take(held(1))
    jobs.take(held(1, broker=OTHER))
    assert (jobs.of(BROKER), jobs.of(OTHER), jobs.of(43)) == ((1,), (1,), ())
    jobs.finish(jobs.next(NOW), result(21, 1))
    assert (jobs.of(BROKER), jobs.of(OTHER)) == ((), (1,))
    assert jobs.take(held(1, broker=OTHER)) is None


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
