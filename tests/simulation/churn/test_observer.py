from __future__ import annotations

from random import Random
from statistics import mean, stdev

import pytest

from zswarm import limits
from zswarm.ids import Session, Stage
from zswarm.simulation.churn.observer import Observer
from zswarm.simulation.churn.setting import Setting

A = Session(1)
SETTING = Setting(costs=(1.0, 2.0), heartbeat_s=1.0, job_deviation=0.2)


@pytest.fixture
def observer():
    return Observer(SETTING, Random(0))


def seen(observer, now):
    """What the coordinator knows of the one worker, with new reports."""
    observer.measure(now, [0.5, 1.0])
    (worker,) = observer.view(now, waiting=[3, 4]).workers
    return worker


def test_a_worker_is_known_at_once_and_to_be_ready_with_the_next_heartbeat(observer):
    observer.join(A, Stage(1), 3.0, 10.0)
    assert (seen(observer, 10.0).stage, seen(observer, 10.0).is_ready, seen(observer, 10.0).job_s) == (1, False, 0.0)
    observer.ready(A, 20.0)
    assert not seen(observer, 20.9).is_ready
    assert seen(observer, 21.0).is_ready


def test_its_speed_is_known_when_it_has_done_a_job(observer):
    observer.join(A, Stage(1), 3.0, 10.0)
    observer.ready(A, 20.0)
    assert seen(observer, 23.9).job_s == 0.0
    assert seen(observer, 24.0).job_s == pytest.approx(3.0, rel=0.3)


def test_without_a_new_report_nothing_is_known_anew(observer):
    observer.join(A, Stage(1), 3.0, 10.0)
    observer.ready(A, 20.0)
    first = seen(observer, 30.0)
    assert observer.view(31.0, waiting=[0, 0]).workers == (first,)


def test_measurements_are_averages_of_random_jobs(observer):
    observer.join(A, Stage(0), 3.0, 0.0)
    observer.ready(A, 0.0)
    found = [seen(observer, float(now)).job_s for now in range(10, 2010)]
    assert mean(found) == pytest.approx(3.0, rel=0.01)
    assert stdev(found) / 3.0 == pytest.approx(0.2 * (0.1 / 1.9) ** 0.5, rel=0.1)


def test_busy_workers_hold_what_they_may_and_others_less(observer):
    observer.join(A, Stage(1), 3.0, 0.0)
    observer.join(Session(2), Stage(0), 3.0, 0.0)
    observer.ready(A, 0.0)
    observer.ready(Session(2), 0.0)
    held = []
    for now in range(10, 1010):
        observer.measure(float(now), [0.25, 1.0])
        held.append([worker.num_pending for worker in observer.view(float(now), waiting=[0, 0]).workers])
    assert {full for full, _ in held} == {limits.PREFETCH}
    assert mean(half for _, half in held) == pytest.approx(0.25 * limits.PREFETCH, rel=0.1)


def test_who_moves_is_known_by_what_it_did_before_until_it_has_done_a_job_there(observer):
    observer.join(A, Stage(0), 3.0, 0.0)
    observer.ready(A, 0.0)
    before = seen(observer, 10.0)
    observer.move(A, Stage(1), 6.0, 10.0)
    on_its_way = seen(observer, 11.0)
    assert (on_its_way.stage, on_its_way.is_ready) == (1, False)
    assert (on_its_way.job_s, on_its_way.measured_in) == (before.job_s, 0)
    observer.ready(A, 20.0)
    arrived = seen(observer, 27.0)
    assert (arrived.is_ready, arrived.measured_in) == (True, None)
    assert arrived.job_s == pytest.approx(6.0, rel=0.3)


def test_who_is_gone_is_there_until_it_has_been_silent(observer):
    observer.join(A, Stage(0), 3.0, 0.0)
    observer.leave(A, 100.0)
    assert len(observer.view(102.9, waiting=[0, 0]).workers) == 1
    view = observer.view(103.0, waiting=[5, 6])
    assert view.workers == ()
    assert [stage.num_queued for stage in view.stages] == [5, 6]
    assert view.residence_s < observer.view(1000.0, waiting=[0, 0]).residence_s + 1e-9
