"""What ends a life of a worker, what survives it, and how it speaks under another generation of the trainer."""

from __future__ import annotations

import pytest

from stages.tasks import (
    Adopt,
    Applied,
    Apply,
    Assembled,
    Broken,
    Build,
    Discard,
    Emitted,
    Export,
    Exported,
    Failed,
    Ran,
    Reset,
    Run,
    Snapshot,
    Snapshotted,
    Summed,
    WasReset,
)
from tests.letters import (
    OTHER_RUN,
    SIZE_BYTES,
    commit,
    credit,
    fence,
    load,
    of_type,
    prepare,
    pull,
    restore,
    stop,
    view,
    welcome,
    worker_at,
)
from tests.stages.one_worker import (
    CONFIGURATION,
    ME,
    MEMBERS,
    OTHER,
    OWN,
    TRAINER_AT,
    B,
    F,
    Fixture,
    new_machine,
)
from zswarm import ledger
from zswarm.errors import BROKEN, HANGS
from zswarm.ids import JobStatus, Link, Purpose, StatePart
from zswarm.limits import (
    PREFETCH,
    STUCK_ENDS,
    STUCK_ENDS_SPARE,
    STUCK_FIRST_S,
    STUCK_HEARTBEATS,
    STUCK_TIMES,
)
from zswarm.machine import Exit, Health, Received, Send
from zswarm.messages import (
    Attach,
    Failure,
    Forward,
    Prepared,
    Ready,
    Register,
    Result,
    State,
    WorkerHeartbeat,
)

REBORN = 61
NEW_MEMBERS = (worker_at(REBORN, 1), *MEMBERS[1:])


P = StatePart.PARAMETERS


@pytest.fixture
def worker():
    return Fixture()


def be_reborn(worker: Fixture, *, stage: int = 1, step: int = 0, nonce: int = 2, configuration=CONFIGURATION):
    """Let a worker that registers again be welcomed, with a view; returns what follows from both."""
    commands = worker.get(welcome(REBORN, stage=stage, step=step, nonce=nonce), frames=configuration)
    return commands + worker.get(view(2, step=step), frames=NEW_MEMBERS)


# -- the fence ---------------------------------------------------------------------------------------


def test_a_fenced_session_drops_what_it_has_counted_and_registers_as_soon_as_it_is_reset(worker):
    worker.work(1, B, 0)
    worker.work(2, F, 1)
    worker.get_job(3, F, 2)
    commands = worker.get(fence(ME))
    assert (of_type(commands, Reset), of_type(commands, Register)) == ([Reset()], [])
    machine = worker.machine
    assert (machine.state.ledger, machine.jobs.held, machine.outbox) == (0, {}, None)
    assert machine.is_built
    (register,) = of_type(worker.do(WasReset()), Register)
    assert (register.boot_nonce, register.session, register.stage) == (2, ME, 1)


def test_a_life_does_not_begin_while_a_job_of_the_one_before_is_in_work(worker):
    """It was given a place that a job which never ended kept it from taking."""
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get(fence(ME))
    for now_s in (1.0, 2.0, 3.0):
        assert worker.tick(now_s) == []
    assert worker.ran(run) == []
    assert len(of_type(worker.do(WasReset()), Register)) == 1
    for now_s in (4.0, 5.0):
        assert len(of_type(worker.tick(now_s), Register)) == 1, "until it is welcome"


def test_a_reset_that_lasts_from_before_the_fence_is_waited_for(worker):
    """That of a Restore; it is not asked for twice."""
    worker.get_job(1, B, 0)
    assert of_type(worker.get(restore(22, step=3)), Reset)
    assert worker.get(fence(ME)) == []
    assert len(of_type(worker.do(WasReset()), Register)) == 1


@pytest.mark.parametrize(
    ("fenced", "header"), [(ME + 1, {}), (ME, {"run": OTHER_RUN}), (ME, {"generation": 0})], ids=str
)
def test_a_fence_of_somebody_else_is_none(worker, fenced, header):
    worker.work(1, B, 0)
    assert worker.get(fence(fenced, **header)) == []
    assert worker.machine.state.ledger == 1


def test_a_fence_that_comes_again_does_not_end_the_next_life(worker):
    worker.get(fence(ME))
    worker.do(WasReset())
    assert worker.get(fence(ME)) == []
    be_reborn(worker)
    assert worker.get(fence(ME)) == []
    assert worker.machine.membership.session == REBORN


def test_the_next_life_goes_on_with_the_parameters_it_has(worker):
    worker.step()
    worker.get(fence(ME))
    worker.do(WasReset())
    commands = be_reborn(worker, step=1)
    assert of_type(commands, Build) == []
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert (heartbeat.session, heartbeat.step, heartbeat.ready, heartbeat.ledger) == (REBORN, 1, True, b"")
    assert {ready.slots for ready in of_type(commands, Ready)} == {PREFETCH}
    (run,) = of_type(worker.get_job(1, F, 0, step=1, worker=REBORN), Run)
    (result,) = of_type(worker.ran(run), Result)
    assert result.session == REBORN


def test_another_stage_is_built_anew(worker):
    worker.step(snapshot=True)
    worker.get(fence(ME))
    worker.do(WasReset())
    commands = be_reborn(worker, stage=2, step=1)
    assert [build.stage for build in of_type(commands, Build)] == [2]
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert (heartbeat.stage, heartbeat.ready, heartbeat.step) == (2, False, 0)
    worker.build()
    assert of_type(worker.get(pull(4, step=1), peer=Link(b"x")), State) == []
    assert not worker.machine.parameters.is_ready, "fresh parameters are of no use at step 1"


def test_with_another_configuration_a_stage_is_built_anew(worker):
    """Its layers may be others, and what it sends may be encoded otherwise."""
    worker.step()
    worker.get(fence(ME))
    worker.do(WasReset())
    (build,) = of_type(be_reborn(worker, step=1, configuration=(b'{"split": [3, 1]}',)), Build)
    assert build.configuration == b'{"split": [3, 1]}'
    worker.build()
    assert not worker.machine.parameters.is_ready


def test_a_build_in_work_ends_before_the_life_does():
    building = Fixture(built=False)
    building.get(fence(ME))
    assert building.build() == []
    assert of_type(building.do(WasReset()), Register)
    assert [build.stage for build in of_type(be_reborn(building, stage=2), Build)] == [2]
    assert not building.machine.is_built
    building.build()
    assert building.machine.parameters.is_ready


def test_a_job_in_work_ends_unheard_and_counts_nothing_in_the_next_life(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get(fence(ME))
    assert worker.do(Emitted(lease=run.lease, dx=load("dx"))) == []
    assert worker.ran(run) == []
    worker.do(WasReset())
    commands = be_reborn(worker)
    assert {ready.slots for ready in of_type(commands, Ready)} == {PREFETCH}
    assert of_type(commands, Attach)
    assert worker.machine.state.ledger == 0
    (run,) = of_type(worker.get_job(2, B, 0, worker=REBORN), Run)
    assert run.accumulate


def test_a_job_of_the_earlier_session_is_not_taken(worker):
    worker.get(fence(ME))
    worker.do(WasReset())
    be_reborn(worker)
    assert worker.get_job(1, B, 0, worker=ME) == []
    assert worker.machine.jobs.held == {}


def test_a_round_ends_with_the_session(worker):
    worker.work(1, B, 0)
    assert of_type(worker.reduce(1), Prepared)
    worker.get(fence(ME))
    worker.do(WasReset())
    be_reborn(worker)
    assert of_type(worker.get(prepare(1, (ME,), counted=1)), Snapshot) == []
    assert of_type(worker.get(commit(1)), Apply) == []
    assert of_type(worker.tick(1.0), Prepared) == []
    assert of_type(worker.get(prepare(2, (REBORN,))), Snapshot), "the accumulator is empty, and so is the ledger"


def test_no_commit_is_in_work_when_another_stage_is_built(worker):
    """The Register waits for the Reset, which the compute thread comes to when it has applied the commit."""
    worker.reduce(1)
    assert of_type(worker.get(commit(1)), Apply)
    worker.get(fence(ME))
    assert worker.tick(1.0) == []
    worker.applied(0)
    assert of_type(worker.do(WasReset()), Register)
    assert [build.stage for build in of_type(be_reborn(worker, stage=2), Build)] == [2]
    worker.build()
    assert worker.machine.parameters.is_ready
    assert of_type(worker.get_job(1, F, 0, worker=REBORN), Run), "nothing is being applied"


def test_a_commit_in_work_ends_before_the_life_does(worker):
    """It was committed: the parameters become those of the next step."""
    worker.work(1, B, 0)
    worker.reduce(1)
    worker.get(commit(1, snapshot=True))
    commands = worker.get(fence(ME))
    assert (of_type(commands, Discard), of_type(commands, Reset)) == ([], [Reset()])
    assert worker.applied(0) == []
    worker.do(WasReset())
    (heartbeat,) = of_type(be_reborn(worker, step=1), WorkerHeartbeat)
    assert (heartbeat.step, heartbeat.ready, heartbeat.parameter_digest) == (1, True, 6)
    assert heartbeat.ledger == b""
    (run,) = of_type(worker.get_job(1, F, 0, step=1, worker=REBORN), Run)
    assert run.key[1] == 1


# -- a job that fails --------------------------------------------------------------------------------


def test_a_job_that_fails_is_told_to_both_and_ends_the_life(worker):
    worker.work(1, B, 0)
    (run,) = of_type(worker.get_job(2, B, 5), Run)
    commands = worker.do(Failed(layer="layer 4", text="no", lease=run.lease))
    (result,) = of_type(commands, Result)
    assert (result.session, result.lease, result.status) == (ME, 2, JobStatus.FAILED)
    (failure,) = of_type(commands, Failure)
    assert (failure.session, failure.layer, failure.microbatch) == (ME, "layer 4", 5)
    assert (of_type(commands, Reset), of_type(commands, Register)) == ([Reset()], [])
    assert worker.machine.state.ledger == 0
    assert [register.boot_nonce for register in of_type(worker.do(WasReset()), Register)] == [2]
    be_reborn(worker)
    assert of_type(worker.tick(1.0), Failure) == [], "once"
    assert of_type(worker.get_job(3, F, 6, worker=REBORN), Run)


def test_a_job_of_an_earlier_life_fails_unheard(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get(fence(ME))
    assert worker.do(Failed(layer="layer 4", text="no", lease=run.lease)) == []
    worker.do(WasReset())
    assert of_type(be_reborn(worker), Failure) == []


def test_after_a_failure_that_is_no_jobs_nothing_begins(worker):
    worker.do(Failed(layer="all", text="no"))
    assert of_type(worker.get_job(1, F, 0), Run) == []


# -- how long the device has been at it ---------------------------------------------------------------


def test_whichever_task_is_in_work_the_report_says_for_how_long(worker):
    """Only jobs counted: a stage whose all-reduce or optimizer step hung was never found out."""
    link = Link(b"asker")
    tasks = [
        lambda: worker.get(prepare(1, (ME,))),
        lambda: worker.do(Snapshotted(round=1, shards=((load("g"),),))),
        lambda: worker.do(Summed(round=1, shard=0, chunks=(load("g"),))),
        lambda: worker.do(Assembled(round=1, digest=1, finite=True, square_norm=1.0)) and worker.get(commit(1)),
        lambda: worker.applied(0) and worker.get(pull(5, step=1), peer=link),
        lambda: worker.do(Exported(part=P, layer=5, offset_bytes=0, total_bytes=9, load=load("file"))),
    ]
    busy_s = []
    for task in tasks:
        task()
        (heartbeat,) = of_type(worker.tick(worker.now_s + 1.0), WorkerHeartbeat)
        busy_s.append(heartbeat.busy_s)
    assert busy_s == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0], "each since the one before it was answered"


def test_the_time_of_a_task_begins_with_the_last_answer(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.tick(1.0)
    assert of_type(worker.get(pull(5), peer=Link(b"asker")), Export)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    (heartbeat,) = of_type(worker.tick(2.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 1.0, "it has emitted since, and is still in work"
    worker.ran(run)
    (heartbeat,) = of_type(worker.tick(4.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 2.0, "the export is in work"


def test_a_reset_ends_what_was_unfinished(worker):
    """Nobody hears of those jobs any more, and the device is idle."""
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    worker.get(fence(ME))
    worker.do(WasReset())
    assert worker.machine.work.device.busy_s(1000.0) == 0.0


def test_tasks_that_are_not_answered_take_no_time(worker):
    """What of a round that was replaced is let go: nothing says when."""
    worker.reduce(1)
    commands = worker.get(prepare(2, (ME,)))
    assert of_type(commands, Discard)
    worker.do(Snapshotted(round=2, shards=((load("g"),),)))
    worker.do(Summed(round=2, shard=0, chunks=(load("g"),)))
    worker.do(Assembled(round=2, digest=1, finite=True, square_norm=1.0))
    (heartbeat,) = of_type(worker.tick(1.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 0.0


# -- a device that hangs -----------------------------------------------------------------------------


def rehearsed(**took):
    """Return a worker that has done nothing yet but to rehearse, and what that took."""
    worker = Fixture(built=False)
    worker.build(**took)
    return worker


@pytest.mark.parametrize("job_s", [0.0, 0.9])
def test_a_reset_that_does_not_end_ends_the_process(job_s):
    worker = rehearsed(job_s=job_s)
    limit_s = STUCK_ENDS * STUCK_TIMES * job_s or STUCK_FIRST_S
    worker.get_job(9, B, 9)
    worker.get(fence(ME))
    at_s = 0.0
    while at_s < limit_s - 1.0:
        at_s += 1.0
        assert of_type(worker.tick(at_s), Exit) == []
    assert worker.machine.next_deadline_s() == limit_s
    (end,) = of_type(worker.tick(limit_s), Exit)
    assert (end.code, HANGS) == (71, 71)


@pytest.mark.parametrize("job_s", [0.0, 0.5])
def test_a_worker_reports_at_once_and_once_that_its_device_is_at_one_task_for_too_long(job_s):
    """Not with its next heartbeat: whoever gives it up for that has four heartbeats in all."""
    worker = rehearsed(job_s=job_s)
    limit_s = max(STUCK_HEARTBEATS, STUCK_TIMES * job_s) if job_s else STUCK_FIRST_S
    worker.get_job(9, B, 9)
    be_patient(worker, limit_s - 1.0 - limit_s % 1.0)
    worker.tick(limit_s - 0.25)
    assert worker.machine.next_deadline_s() == limit_s
    (heartbeat,) = of_type(worker.tick(limit_s), WorkerHeartbeat)
    assert heartbeat.busy_s == limit_s
    assert worker.machine.next_deadline_s() > limit_s
    assert of_type(worker.tick(limit_s + 0.1), WorkerHeartbeat) == []


def test_a_process_whose_state_is_others_too_ends_soon_if_it_has_done_such_a_task_before():
    """It waited six times as long as it was given, and its machine was missing for that long."""
    worker = rehearsed(job_s=0.5)
    worker.work(1, B, 0)
    worker.get_job(9, B, 9)
    worker.get(fence(ME, is_spare=True))
    limit_s = STUCK_ENDS_SPARE * STUCK_HEARTBEATS
    be_patient(worker, limit_s - 1.0)
    assert worker.machine.next_deadline_s() == limit_s
    assert [end.code for end in of_type(worker.tick(limit_s), Exit)] == [HANGS]


def test_a_process_whose_state_is_others_too_learns_how_long_the_first_of_a_sort_takes():
    """Its next life would be no wiser."""
    worker = rehearsed(job_s=0.9)
    worker.get_job(9, B, 9)
    worker.get(fence(ME, is_spare=True))
    be_patient(worker, STUCK_ENDS * STUCK_TIMES * 0.9 - 1.0)


def test_a_process_that_was_frozen_gives_its_device_time(worker):
    worker.work(1, F, 0)
    worker.get_job(2, B, 1)
    worker.get(fence(ME))
    assert of_type(worker.tick(100.0), Exit) == []
    assert of_type(worker.do(WasReset()), Exit) == []


def test_the_report_says_how_long_a_reset_waits(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get(restore(22, step=3))
    (heartbeat,) = of_type(worker.tick(1.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 1.0
    worker.ran(run)
    (heartbeat,) = of_type(worker.tick(2.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 1.0, "the reset itself is in work since the job has ended"
    worker.do(WasReset())
    (heartbeat,) = of_type(worker.tick(3.0), WorkerHeartbeat)
    assert heartbeat.busy_s == 0.0


def test_a_device_hangs_only_if_one_task_takes_too_long(worker):
    """The time was that of the reset, which waits for all tasks before it: a busy device was taken for one that hangs."""
    worker.work(1, F, 0)
    (first,) = of_type(worker.get(pull(4), peer=Link(b"asker")), Export)
    (second,) = of_type(worker.get(pull(5), peer=Link(b"asker")), Export)
    worker.get(restore(22, step=3))
    limit_s = STUCK_ENDS * STUCK_HEARTBEATS
    for task in (first, second):
        be_patient(worker, limit_s - 1.0)
        worker.do(Exported(part=task.part, layer=task.layer, offset_bytes=0, total_bytes=9, load=load("file")))
    be_patient(worker, limit_s - 1.0)
    assert worker.machine.next_deadline_s() == worker.now_s + 1.0
    assert [end.code for end in of_type(worker.tick(worker.now_s + 1.0), Exit)] == [HANGS]


def test_a_task_has_as_long_as_the_longest_of_its_sort_several_times(worker):
    """An optimizer's step that hung was given as long as if it were the first: ten heartbeats, where four are promised."""
    device = worker.machine.work.device
    worker.work(1, F, 0)
    plain, copying = (
        Apply(step=0, round=1, scale=1.0, lr=0.1, apply=True, snapshot=snapshot) for snapshot in (False, True)
    )
    now, found = 100.0, []
    for task, taken_s in ((plain, 2.0), (plain, 1.0), (copying, 9.0), (copying, 0.1), (plain, 0.01)):
        device.submitted(task, now)
        found.append(device.overdue_at_s(1.0) - now)
        now += taken_s
        device.answered(Applied(step=0, parameter_digest=1), now)
    assert found == pytest.approx([STUCK_HEARTBEATS, 10.0, STUCK_HEARTBEATS, 45.0, 5 * 1.9])
    for _ in range(40):
        device.submitted(plain, now)
        device.answered(Applied(step=0, parameter_digest=1), now + 0.01)
        now += 0.01
    device.submitted(plain, now)
    assert device.overdue_at_s(1.0) - now == STUCK_HEARTBEATS, "one long one is forgotten in the end"


def test_a_file_has_as_long_as_the_longest_of_them_and_as_the_rehearsal():
    """One range is there already, the next one is the first of a large layer: a healthy donor was given up for it."""
    worker = rehearsed(round_s=2.0)
    for layer, before_s, taken_s in ((4, 2.0, 1.0), (5, 2.0, 9.0), (4, 9.0, 1.0), (5, 8.2, 1.0)):
        (task,) = of_type(worker.get(pull(layer), peer=Link(b"asker")), Export)
        assert worker.machine.work.device.overdue_at_s(1.0) == pytest.approx(worker.now_s + STUCK_TIMES * before_s)
        be_patient(worker, taken_s)
        worker.do(Exported(part=task.part, layer=task.layer, offset_bytes=0, total_bytes=9, load=load("file")))


def test_the_first_tasks_have_as_long_as_the_rehearsal_several_times():
    """A device that hung in its first job was given five minutes: nobody knew how long a job takes."""
    worker = rehearsed(job_s=3.0, round_s=2.0)
    device = worker.machine.work.device
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    assert (device.usual_s, device.overdue_at_s(1.0)) == (3.0, 15.0)
    worker.ran(run)
    worker.get_job(2, F, 1)
    assert (device.usual_s, device.overdue_at_s(1.0)) == (0.5, STUCK_HEARTBEATS), "a job is known, and is quicker"
    device.submitted(Snapshot(round=1, num_shards=1), 0.0)
    assert device.overdue_at_s(1.0) == 10.0


def test_of_layers_that_refuse_the_rehearsal_nobody_knows_how_long_the_first_job_takes():
    """A file that was quick says nothing of it; and whatever is no job is known from the round."""
    worker = rehearsed(job_s=0.0, round_s=1.0)
    device = worker.machine.work.device
    (task,) = of_type(worker.get(pull(4), peer=Link(b"asker")), Export)
    assert device.overdue_at_s(1.0) == 5.0
    worker.do(Exported(part=task.part, layer=task.layer, offset_bytes=0, total_bytes=9, load=load("file")))
    worker.get_job(1, F, 0)
    assert device.overdue_at_s(1.0) == STUCK_FIRST_S
    device.submitted(Snapshot(round=1, num_shards=1), 0.0)
    assert (device.usual_s, device.overdue_at_s(1.0)) == (0.0, STUCK_FIRST_S)


def test_the_first_evaluation_has_as_long_as_the_rehearsal_however_quick_training_is():
    """It was given up again and again while its kernels were compiled: it had several times as long as jobs of training."""
    for job_s, given_s in ((4.0, 20.0), (0.0, STUCK_FIRST_S)):
        worker = rehearsed(job_s=job_s)
        device = worker.machine.work.device
        worker.work(1, F, 0)
        (run,) = of_type(worker.get_job(2, F, 0, purpose=Purpose.EVALUATE), Run)
        assert device.overdue_at_s(1.0) == worker.now_s + given_s
        worker.ran(run)
        worker.get_job(3, F, 1, purpose=Purpose.EVALUATE)
        assert device.overdue_at_s(1.0) == worker.now_s + STUCK_HEARTBEATS, "one is known"


def test_an_evaluation_is_known_by_its_own_end():
    """A backward whose rest waits ends after it."""
    worker = rehearsed(job_s=4.0)
    device = worker.machine.work.device
    train, evaluate = (
        Run(lease=lease, kind=F, key=(0, 0, purpose, 0, 0), accumulate=False, emit=False, x=None, dy=None)
        for lease, purpose in ((1, Purpose.TRAIN), (2, Purpose.EVALUATE))
    )
    for task in (train, evaluate):
        device.submitted(task, 0.0)
    ended = {"status": JobStatus.DONE, "y": None, "kept": False, "loss_sum": 0.0, "num_targets": 1, "compute_s": 0.5}
    device.answered(Ran(lease=evaluate.lease, **ended), 1.0)
    assert device.usual_s == 4.0, "that of training is in work"
    device.submitted(evaluate, 1.0)
    device.answered(Ran(lease=train.lease, **ended), 2.0)
    assert device.usual_s == 0.5


def test_other_layers_are_as_slow_the_first_time():
    """A stage that is built anew, because the swarm goes back to its beginning, has done nothing yet."""
    worker = rehearsed(job_s=4.0)
    device = worker.machine.work.device
    worker.work(1, F, 0)
    worker.build(job_s=4.0)
    worker.get_job(2, F, 1)
    assert device.usual_s == 4.0


def test_a_rehearsal_in_which_something_was_compiled_gives_nobody_more_time_than_nothing():
    worker = rehearsed(job_s=200.0, round_s=100.0)
    worker.get_job(1, F, 0)
    assert worker.machine.work.device.overdue_at_s(1.0) == STUCK_FIRST_S


def test_nobody_knows_how_long_it_takes_to_build_and_to_adopt():
    worker = Fixture(built=False)
    device = worker.machine.work.device
    assert device.overdue_at_s(1.0) == 2.0 * STUCK_FIRST_S, "as long as for the parameters and for a first job"
    worker.build(job_s=1.0)
    assert device.overdue_at_s(1.0) is None
    device.submitted(Adopt(), 5.0)
    assert (device.usual_s, device.overdue_at_s(1.0)) == (0.0, 5.0 + STUCK_FIRST_S)


def test_a_reset_leaves_a_task_the_time_that_it_is_known_to_take(worker):
    device = worker.machine.work.device
    worker.work(1, F, 0)
    task = Apply(step=0, round=1, scale=1.0, lr=0.1, apply=True, snapshot=False)
    device.submitted(task, 100.0)
    device.answered(Applied(step=0, parameter_digest=1), 108.0)
    device.submitted(task, 200.0)
    for reset in device.reset():
        device.submitted(reset, 201.0)
    assert device.overdue_at_s(1.0) == 240.0
    assert device.stuck_at_s(1.0) == 200.0 + STUCK_ENDS * 40.0


def test_a_device_that_is_broken_ends_the_process_and_not_the_run(worker):
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    assert run.lease
    commands = worker.do(Broken(text="CUDA error: an illegal memory access was encountered"))
    assert of_type(commands, Send) == []
    (end,) = of_type(commands, Exit)
    assert (end.code, BROKEN) == (70, 70)
    assert "illegal memory access" in end.text


def be_patient(worker: Fixture, for_s: float) -> None:
    """Let so many seconds pass in which the process does not end."""
    end_s = worker.now_s + for_s
    while worker.now_s < end_s:
        assert of_type(worker.tick(worker.now_s + 1.0), Exit) == []


# -- generations -------------------------------------------------------------------------------------


def test_the_trainer_that_has_started_again_is_served_with_the_same_session(worker):
    """What was made under the older generation is sent again under the newer one, or nobody would take it."""
    worker.get(credit(43, SIZE_BYTES, producer=ME))
    worker.work(1, F, 0)
    worker.work(2, B, 1)
    assert of_type(worker.reduce(1), Prepared)
    worker.get(view(1, generation=2), frames=MEMBERS)
    commands = worker.tick(1.0)
    assert {command.message.generation for command in commands if isinstance(command, Send)} == {2}
    (forward,), (heartbeat,) = of_type(commands, Forward), of_type(commands, WorkerHeartbeat)
    assert (forward.session, heartbeat.session, ledger.from_bytes(heartbeat.ledger)) == (ME, ME, 0b10)
    assert of_type(worker.get(commit(1, generation=1)), Apply) == []
    assert of_type(worker.get(prepare(2, (ME,), counted=0b10, generation=1)), Snapshot) == []
    assert of_type(worker.get(prepare(3, (ME,), counted=0b10, generation=2)), Snapshot)
    assert of_type(worker.get(fence(ME, generation=1)), Reset) == []


def test_a_newer_generation_is_obeyed_before_its_view(worker):
    assert of_type(worker.get(prepare(1, (ME,), generation=2)), Snapshot)
    assert of_type(worker.get(fence(ME, generation=2)), Reset)


# -- leaving -----------------------------------------------------------------------------------------


def test_a_worker_without_a_session_hears_that_the_run_is_over(worker):
    worker.get(fence(ME))
    assert of_type(worker.get(stop()), Exit)
    assert of_type(new_machine().handle(Received(peer=TRAINER_AT, message=stop()), 0.0), Exit) == []


def test_results_go_to_brokers_of_the_view_only(worker):
    (run,) = of_type(worker.get_job(1, F, 0, broker=OTHER), Run)
    worker.get(view(2), frames=(*MEMBERS[:2], *MEMBERS[3:]))
    assert of_type(worker.ran(run), Result) == []
    assert of_type(worker.work(1, F, 1, broker=OWN), Result)


# -- what it says of itself --------------------------------------------------------------------------


def test_a_worker_says_where_it_is(worker):
    assert new_machine().health(0.0).text == "waiting for a place in the run of sim://trainer, without parameters yet"
    assert worker.machine.health(0.0) == Health(text="stage 1 of 3, step 0")


@pytest.mark.parametrize("job_s", [0.0, 0.5])
def test_a_device_that_does_not_answer_is_not_well(job_s):
    """Though nobody has fenced this worker: a trainer that is gone does not."""
    worker = rehearsed(job_s=job_s)
    limit_s = max(STUCK_HEARTBEATS, STUCK_TIMES * job_s) if job_s else STUCK_FIRST_S
    (run,) = of_type(worker.get_job(9, B, 9), Run)
    assert worker.machine.health(limit_s - 0.1).is_well
    assert worker.machine.health(limit_s) == Health(
        text=f"the device has been at one task for {limit_s:.0f} s", is_well=False
    )
    worker.now_s = limit_s
    worker.ran(run)
    assert worker.machine.health(limit_s + 1000.0).is_well


def test_a_device_that_makes_its_parameters_has_time(worker):
    """A worker that is given another stage compiles anew, however short the jobs of the stage before were."""
    worker.work(1, F, 0)
    worker.get(fence(ME))
    worker.do(WasReset())
    worker.get(welcome(22, nonce=2, stage=2), frames=CONFIGURATION)
    assert not worker.machine.is_built
    assert worker.machine.health(2.0 * STUCK_FIRST_S - 1.0).is_well
    assert not worker.machine.health(2.0 * STUCK_FIRST_S).is_well
