from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stages.tasks import (
    Applied,
    Apply,
    Assembled,
    Build,
    Emitted,
    Export,
    Exported,
    Failed,
    Run,
    Snapshot,
    Snapshotted,
    Summed,
)
from tests.letters import (
    OTHER_RUN,
    SIZE_BYTES,
    ack,
    broker_at,
    commit,
    credit,
    job,
    key,
    load,
    nack,
    of_type,
    one_of_each,
    parcel,
    prepare,
    pull,
    reject,
    stop,
    view,
    welcome,
    worker_at,
)
from tests.stages.one_worker import (
    AFTER,
    BEFORE,
    EVALUATE,
    FUSED,
    ME,
    MEMBERS,
    OTHER,
    OWN,
    ROUTE,
    TRAINER_AT,
    B,
    F,
    Fixture,
    new_machine,
)
from zswarm import ledger
from zswarm.ids import Direction, JobStatus, Link, NackCode, Purpose, StatePart
from zswarm.limits import MAX_TEXT_CHARS, OUTBOX_LENGTH, PREFETCH
from zswarm.machine import Exit, Received, Tick
from zswarm.messages import (
    Attach,
    Backward,
    Chunk,
    Evaluated,
    Failure,
    Forward,
    Prepared,
    Ready,
    Register,
    Restore,
    Result,
    State,
    Stop,
    WorkerHeartbeat,
)
from zswarm.wire import decode_untrusted, encode


@pytest.fixture
def worker():
    return Fixture()


# -- taking part -------------------------------------------------------------------------------------


def test_it_registers_until_it_is_welcome_then_builds():
    machine = new_machine()
    assert machine.next_deadline_s() == float("-inf")
    for now in (0.0, 1.0):
        (message,) = of_type(machine.handle(Tick(), now), Register)
        assert (message.node, message.boot_nonce, machine.next_deadline_s()) == ("worker-0", 1, now + 1.0)
    message = welcome(ME, stage=1)
    event = Received(peer=TRAINER_AT, message=message, frames=(b'{"a"', b": 1}"))
    assert machine.handle(event, 1.5) == [Build(stage=1, num_stages=3, configuration=b'{"a": 1}')]
    assert machine.handle(event, 1.6) == [], "it is welcome already"


def test_before_it_is_built_it_takes_no_jobs_and_greets_no_brokers():
    worker = Fixture(built=False)
    assert worker.get_job(1, F, 0) == []
    (heartbeat,) = worker.tick(1.0)
    assert (type(heartbeat.message), heartbeat.message.ready) == (WorkerHeartbeat, False)


def test_once_built_it_says_so_to_everybody_concerned():
    worker = Fixture(built=False)
    commands = worker.build()
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert (heartbeat.ready, heartbeat.session, heartbeat.stage, heartbeat.parameter_digest) == (True, ME, 1, 5)
    assert [send.peer for send in commands if isinstance(send.message, Attach)] == [
        "sim://broker-41/work",
        "sim://broker-42/work",
        "sim://broker-43/work",
    ]
    assert [(s.peer, s.message.slots, s.message.step) for s in commands if isinstance(s.message, Ready)] == [
        ("sim://broker-41/control", PREFETCH, 0),
        ("sim://broker-42/control", PREFETCH, 0),
    ]


def test_the_heartbeat_says_everything_each_time(worker):
    worker.work(1, B, 3)
    (first,) = of_type(worker.tick(10.0), WorkerHeartbeat)
    (run,) = of_type(worker.get_job(2, F, 4), Run)
    (second,) = of_type(worker.tick(11.5), WorkerHeartbeat)
    worker.ran(run)
    assert (ledger.from_bytes(first.ledger), first.view, first.busy_s) == (0b1000, 1, 0.0)
    assert (second.busy_s, second.ledger, second.report) == (1.5, first.ledger, first.report + 1)
    assert worker.machine.next_deadline_s() <= 12.5


def test_ready_lists_the_leases_that_are_held(worker):
    for lease, broker in ((1, OWN), (2, OWN), (1, OTHER)):
        worker.get_job(lease, F, lease, broker=broker)
    readies = {s.peer: s.message.held for s in worker.tick(5.0) if isinstance(s.message, Ready)}
    assert readies == {"sim://broker-41/control": (1, 2), "sim://broker-42/control": (1,)}


def test_stop_is_answered_before_it_ends(worker):
    answer, end = worker.get(stop())
    assert (answer.peer, type(answer.message), end.code) == (TRAINER_AT, Stop, 0)


@pytest.mark.parametrize(("header", "ends"), [({}, True), ({"run": OTHER_RUN}, False), ({"generation": 0}, False)])
def test_reject_ends_whom_it_concerns(worker, header, ends):
    assert bool(of_type(worker.get(reject(**header)), Exit)) is ends
    assert of_type(new_machine().handle(Received(peer=TRAINER_AT, message=reject(**header)), 0.0), Exit)


# -- jobs --------------------------------------------------------------------------------------------


def test_a_forward_goes_to_the_next_stage_with_its_route(worker):
    (run,) = of_type(worker.get_job(7, F, 2), Run)
    assert (run.kind, run.key, run.accumulate, run.x.frames, run.dy) == (F, key(2), False, ("FORWARD2",), None)
    commands = worker.ran(run, kept=True)
    (result,) = of_type(commands, Result)
    assert (result.lease, result.status, result.kept, result.compute_s) == (7, JobStatus.DONE, True, 0.5)
    assert worker.machine.state.ledger == 0
    (send,) = [s for s in worker.get(credit(AFTER, SIZE_BYTES, producer=ME)) if isinstance(s.message, Forward)]
    assert (send.peer, send.message.route, send.frames) == ("sim://broker-43/work", ROUTE, ("y2",))


def test_a_backward_goes_home_before_it_has_ended(worker):
    (run,) = of_type(worker.get_job(7, B, 2), Run)
    assert (run.accumulate, run.x, run.dy.frames) == (True, None, ("BACKWARD2",))
    commands = worker.do(Emitted(lease=run.lease, dx=load("dx")))
    (send,) = [command for command in commands if isinstance(command.message, Backward)]
    assert (send.peer, send.frames) == ("sim://broker-40/work", ("dx",))
    assert worker.machine.state.ledger == 0, "it is counted when it has ended"
    commands = worker.ran(run)
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert ledger.from_bytes(heartbeat.ledger) == 0b100


def test_what_is_left_of_a_backward_waits_for_the_next_job(worker):
    """At stage 1 two jobs may be unfinished; each makes room for one more, and is counted when it has ended."""
    first, *_ = of_type([c for lease in range(1, 5) for c in worker.get_job(lease, B, lease)], Run)
    state = worker.machine.state
    commands = worker.do(Emitted(lease=first.lease, dx=load("dx1")))
    (second,) = of_type(commands, Run)
    assert (second.key, second.accumulate) == (key(2), True)
    assert {ready.slots for ready in of_type(commands, Ready)} == {PREFETCH + 1}
    assert (state.ledger, state.accumulating) == (0, 0b110)
    commands = worker.do(Emitted(lease=second.lease, dx=load("dx2")))
    assert [send.key for send in of_type(commands, Backward)] == [key(2)]
    assert of_type(commands, Run) == [], "two are unfinished"
    (third,) = of_type(worker.ran(first), Run)
    assert (third.key, state.ledger, state.accumulating) == (key(3), 0b10, 0b1100)
    assert of_type(worker.ran(second), Run) == [], "the third is at its dx"
    assert (state.ledger, state.accumulating) == (0b110, 0b1000)


def test_what_is_unfinished_makes_room_at_its_own_broker_alone(worker):
    """Each broker would send two jobs, and more for those of all the others."""
    first, *_ = of_type([c for lease in range(1, 3) for c in worker.get_job(lease, B, lease)], Run)
    commands = worker.do(Emitted(lease=first.lease, dx=load("dx1")))
    assert [(s.peer, s.message.slots) for s in commands if isinstance(getattr(s, "message", None), Ready)] == [
        ("sim://broker-41/control", PREFETCH + 1)
    ]
    (second,) = of_type(commands, Run)
    commands = worker.do(Emitted(lease=second.lease, dx=load("dx2")))
    assert [ready.slots for ready in of_type(commands, Ready)] == [PREFETCH + 2]
    assert [ready.slots for ready in of_type(worker.tick(1.0), Ready)] == [PREFETCH + 2, PREFETCH]
    assert [result.slots for result in of_type(worker.ran(first), Result)] == [PREFETCH + 1]


def test_nothing_comes_between_a_forward_and_its_output(worker):
    worker.get_job(1, F, 0)
    assert of_type(worker.get_job(2, B, 1), Run) == []


def test_no_round_begins_while_a_gradient_is_unfinished(worker):
    worker.work(1, B, 0)
    (run,) = of_type(worker.get_job(2, B, 1), Run)
    worker.do(Emitted(lease=run.lease, dx=load("dx")))
    assert of_type(worker.get(prepare(1, (ME,), counted=0b1)), Snapshot) == []
    worker.ran(run)
    assert of_type(worker.get(prepare(2, (ME,), counted=0b11)), Snapshot)


def test_a_microbatch_that_is_being_counted_is_not_counted_again(worker):
    """Whoever asks for it twice gets dx twice, and one gradient."""
    (first,) = of_type(worker.get_job(1, B, 0), Run)
    worker.get_job(2, B, 0, attempt=1)
    (again,) = of_type(worker.do(Emitted(lease=first.lease, dx=load("dx"))), Run)
    assert (first.accumulate, again.accumulate) == (True, False)


def test_a_backward_with_its_input_brings_both_payloads(worker):
    message = replace(job(OWN, 1, B, 2, route=ROUTE), x=parcel())
    (run,) = of_type(worker.get(message, frames=("x", "dy")), Run)
    assert (run.x.frames, run.dy.frames) == (("x",), ("dy",))


def test_the_first_stage_sends_nothing_back():
    worker = Fixture(stage=0, members=(worker_at(ME, 0), broker_at(OWN, 0)))
    (run,) = of_type(worker.get_job(1, B, 0, route=(OWN,)), Run)
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward) == []


def test_a_gradient_waits_for_the_view_that_names_its_home():
    later = 50
    worker = Fixture(members=(worker_at(ME, 1), broker_at(OWN, 1)))
    (run,) = of_type(worker.get_job(1, B, 0, route=(later, OWN)), Run)
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward) == []
    (message,) = of_type(worker.get(view(2), frames=(*MEMBERS, broker_at(later, 0))), Backward)
    assert message.key == key(0)


def test_the_last_stage_reports_its_losses():
    worker = Fixture(stage=2, members=(worker_at(ME, 2), broker_at(OWN, 2), broker_at(BEFORE, 1)))
    (run,) = of_type(worker.get_job(1, FUSED, 0, route=(9, BEFORE, OWN)), Run)
    assert run.accumulate
    worker.ran(run, loss_sum=2.5)
    assert (worker.machine.state.loss_sum, worker.machine.state.num_targets) == (2.5, 1)
    (run,) = of_type(worker.get_job(2, EVALUATE, 0, purpose=Purpose.EVALUATE, route=(9, BEFORE, OWN)), Run)
    assert not run.accumulate
    (send,) = [s for s in worker.ran(run, loss_sum=4.0) if isinstance(s.message, Evaluated)]
    assert (send.peer, send.message.loss_sum) == (TRAINER_AT, 4.0)
    assert worker.machine.state.loss_sum == 2.5
    assert of_type(worker.tick(1.0), Evaluated)
    worker.get(ack(0, 0, Direction.LOSS, purpose=Purpose.EVALUATE))
    assert not of_type(worker.tick(2.0), Evaluated)


def test_a_held_out_loss_that_is_not_finite_can_be_told():
    """Evaluated could not be encoded: the worker died of a model that diverged."""
    worker = Fixture(stage=2, members=(worker_at(ME, 2), broker_at(OWN, 2), broker_at(BEFORE, 1)))
    (run,) = of_type(worker.get_job(1, EVALUATE, 0, purpose=Purpose.EVALUATE, route=(9, BEFORE, OWN)), Run)
    (send,) = [s for s in worker.ran(run, loss_sum=float("nan")) if isinstance(s.message, Evaluated)]
    assert send.message.loss_sum is None


def test_one_job_at_a_time_backward_first(worker):
    (first,) = of_type(worker.get_job(1, F, 1), Run)
    for lease, kind in ((2, F), (3, B)):
        assert of_type(worker.get_job(lease, kind, lease), Run) == []
    (second,) = of_type(worker.ran(first), Run)
    (third,) = of_type(worker.ran(second), Run)
    assert [run.key[3] for run in (first, second, third)] == [1, 3, 2]


def test_a_microbatch_is_accumulated_once(worker):
    """Its gradient is still computed again: somebody asks for it."""
    worker.work(1, B, 0)
    (run,) = of_type(worker.get_job(2, B, 0), Run)
    assert not run.accumulate
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward)
    worker.ran(run)
    assert worker.machine.state.ledger == 1


def test_what_its_job_does_not_want_counted_is_not_counted(worker):
    message = replace(job(OWN, 1, B, 0, route=ROUTE), accumulate=False)
    (run,) = of_type(worker.get(message, frames=("dy",)), Run)
    worker.ran(run)
    assert (run.accumulate, worker.machine.state.ledger) == (False, 0)


def test_a_job_that_was_not_done_is_not_counted(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    (result,) = of_type(worker.ran(run, status=JobStatus.NEEDS_INPUT), Result)
    assert (result.status, worker.machine.state.ledger, worker.machine.state.accumulating) == (
        JobStatus.NEEDS_INPUT,
        0,
        False,
    )


def test_a_job_that_comes_again_runs_once_and_brings_its_result_again(worker):
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    assert worker.get_job(1, F, 0) == []
    (first,) = of_type(worker.ran(run), Result)
    assert of_type(worker.get_job(1, F, 0), Result) == [first]
    assert of_type(worker.get_job(1, F, 0), Run) == []


def test_outcomes_of_nothing_are_ignored(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    assert worker.do(Emitted(lease=run.lease + 1, dx=load("?"))) == []
    assert worker.ran(replace(run, lease=run.lease + 1)) == []
    worker.ran(run)
    assert worker.ran(run) == []


# -- steps -------------------------------------------------------------------------------------------


def test_jobs_of_an_older_step_are_refused_with_the_own_step(worker):
    worker.step()
    for _ in range(2):
        (send,) = worker.get_job(1, F, 0)
        assert (send.message.status, send.message.step) == (JobStatus.WRONG_STEP, 1)


def test_jobs_of_the_next_step_wait_for_its_parameters(worker):
    assert worker.get_job(1, F, 0, step=1) == []
    commands = worker.step()
    (run,) = of_type(commands, Run)
    assert run.key == key(0, step=1)


def test_nothing_is_computed_while_the_step_is_applied(worker):
    worker.work(1, B, 0)
    worker.get(prepare(1, (ME,), counted=1))
    worker.do(Snapshotted(round=1, shards=((load("g"),),)))
    worker.do(Summed(round=1, shard=0, chunks=(load("g"),)))
    worker.do(Assembled(round=1, digest=1, finite=True, square_norm=1.0))
    assert of_type(worker.tick(5.0), Prepared), "until the commit comes"
    assert of_type(worker.get(commit(1)), Apply)
    assert of_type(worker.get_job(2, F, 1), Run) == []
    (ready,) = {m.step for m in of_type(worker.tick(10.0), Ready)}
    assert ready == 0
    commands = worker.do(Applied(step=0, parameter_digest=6))
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    assert (heartbeat.step, heartbeat.ledger, heartbeat.parameter_digest) == (1, b"", 6)
    assert {message.step for message in of_type(commands, Ready)} == {1}
    assert of_type(commands, Run) == [], "the job of the old step is forgotten"


def test_a_job_that_runs_when_the_commit_comes_ends_before_it(worker):
    (run,) = of_type(worker.get_job(1, F, 0), Run)
    worker.get(prepare(1, (ME,)))
    worker.do(Snapshotted(round=1, shards=((load("g"),),)))
    worker.do(Summed(round=1, shard=0, chunks=(load("g"),)))
    worker.do(Assembled(round=1, digest=1, finite=True, square_norm=1.0))
    worker.get(commit(1))
    assert of_type(worker.ran(run), Result)
    worker.do(Applied(step=0, parameter_digest=6))
    assert worker.machine.jobs.results == {}
    assert list(worker.machine.outbox.pending()) == []


def test_the_round_waits_for_the_gradient_that_is_being_added(worker):
    (run,) = of_type(worker.get_job(1, B, 0), Run)
    assert of_type(worker.get(prepare(1, (ME,))), Snapshot) == []
    worker.ran(run)
    assert of_type(worker.get(prepare(1, (ME,))), Snapshot) == []
    assert of_type(worker.get(prepare(2, (ME,), counted=1)), Snapshot)


def test_chunks_go_to_peers_that_the_view_names_and_are_repeated(worker):
    worker.get(prepare(1, (ME, 22)))
    assert of_type(worker.do(Snapshotted(round=1, shards=((load("g0"),), (load("g1"),)))), Chunk) == []
    (send,) = [s for s in worker.get(view(2), frames=(*MEMBERS, worker_at(22, 1))) if isinstance(s.message, Chunk)]
    assert (send.peer, send.frames) == ("sim://worker-22", ("g1",))
    assert worker.machine.next_deadline_s() == 1.0
    assert of_type(worker.tick(1.0), Chunk) == [send.message]


# -- backpressure ------------------------------------------------------------------------------------


def test_outputs_without_credit_close_the_slots_and_credit_opens_them(worker):
    for lease in range(OUTBOX_LENGTH):
        (result,) = of_type(worker.work(lease + 1, F, lease), Result)
        assert result.slots == (PREFETCH if lease < OUTBOX_LENGTH - 1 else 0)
    assert {ready.slots for ready in of_type(worker.tick(1.0), Ready)} == {0}
    commands = worker.get(credit(AFTER, SIZE_BYTES, producer=ME))
    assert len(of_type(commands, Forward)) == 1
    assert [ready.slots for ready in of_type(commands, Ready)] == [PREFETCH, PREFETCH]
    assert of_type(worker.get(credit(AFTER, 2 * SIZE_BYTES, producer=ME)), Ready) == [], "they are open"


def test_a_result_that_is_sent_again_tells_todays_slots(worker):
    worker.work(1, F, 0)
    for lease in range(2, OUTBOX_LENGTH + 1):
        worker.work(lease, F, lease)
    (again,) = of_type(worker.get_job(1, F, 0), Result)
    assert again.slots == 0


def test_an_output_that_a_busy_broker_refuses_stays_with_it(worker):
    """It went to another one, while a late copy of it could still be taken by the first."""
    worker.get(view(2), frames=(*MEMBERS, broker_at(44, 2)))
    worker.get(credit(AFTER, SIZE_BYTES, producer=ME))
    (message,) = of_type(worker.work(1, F, 0), Forward)
    assert message.route == ROUTE
    worker.get(nack(AFTER, 0, NackCode.BUSY))
    assert of_type(worker.get(credit(44, SIZE_BYTES, producer=ME)), Forward) == []
    assert of_type(worker.tick(1.0), Forward) == [message]
    worker.get(view(3), frames=(*MEMBERS[:-1], broker_at(44, 2)))
    assert of_type(worker.get(credit(44, 2 * SIZE_BYTES, producer=ME)), Forward) == [], (
        "the coordinator has it done anew"
    )
    assert list(worker.machine.outbox.pending()) == []


# -- state and failure -------------------------------------------------------------------------------


def test_a_pull_is_answered_by_the_range_it_asks_for(worker):
    link = Link(b"asker")
    (task,) = worker.get(pull(5, offset_bytes=7), peer=link)
    assert task == Export(part=StatePart.PARAMETERS, layer=5, offset_bytes=7, from_snapshot=False)
    assert worker.get(pull(5, offset_bytes=7), peer=link) == [], "it is on its way"
    outcome = Exported(part=StatePart.PARAMETERS, layer=5, offset_bytes=7, total_bytes=20, load=load("file"))
    (send,) = worker.do(outcome)
    assert (send.peer, type(send.message), send.frames) == (link, State, ("file",))
    assert (send.message.layer, send.message.offset_bytes, send.message.total_bytes) == (5, 7, 20)
    assert len(worker.get(pull(5, offset_bytes=7), peer=link)) == 1


@pytest.mark.parametrize(("layer", "step"), [(3, 0), (6, 0), (4, 1)])
def test_a_pull_for_what_it_does_not_hold_is_ignored(worker, layer, step):
    """A layer of another stage once raised in the compute thread, which ended the run."""
    assert worker.get(pull(layer, step=step)) == []


def test_a_failure_is_repeated_in_place_of_the_heartbeat(worker):
    """It was once sent a single time: lost, it left the run waiting for ever."""
    worker.get_job(1, F, 0)
    (send,) = worker.do(Failed(layer="layer 4 (Linear)", text="x" * 10_000))
    assert (send.peer, send.message.layer, len(send.message.text)) == (TRAINER_AT, "layer 4 (Linear)", MAX_TEXT_CHARS)
    for now_s in (10.0, 11.0):
        assert [type(s.message) for s in worker.tick(now_s)] == [Failure]
    assert of_type(worker.get(stop()), Exit)


@pytest.mark.parametrize("text", ["no file \udcff.pt", "\N{FIRE}" * 5000], ids=["no character", "long"])
def test_whatever_a_layer_raises_can_be_told(worker, text):
    """A name with an undecodable byte could not be encoded: the worker died, and nobody was told why."""
    (send,) = of_type(worker.do(Failed(layer=text, text=text)), Failure)
    assert decode_untrusted(encode(send)).message == send
    assert send.text


# -- any message in any state ------------------------------------------------------------------------

EVERYTHING = [*one_of_each(OWN, step=0), *one_of_each(AFTER, step=3), *one_of_each(999, step=0, round_=9)]


def identity(message: Any) -> str:
    return f"{type(message).__name__} of {message.session}"


@pytest.mark.parametrize("message", EVERYTHING, ids=identity)
def test_before_its_welcome_it_only_registers(message):
    machine = new_machine()
    commands = machine.handle(Received(peer=TRAINER_AT, message=message, frames=("x",)), 0.0)
    assert {type(c.message) for c in commands} == {Register}


HARMLESS = [message for message in EVERYTHING if not isinstance(message, Restore) or message.step == 0]


@pytest.mark.parametrize("state", ["building", "idle", "busy"])
@pytest.mark.parametrize("message", HARMLESS, ids=identity)
def test_any_message_is_harmless(message, state):
    """Twice, from both kinds of peer: nothing is counted, nothing raised, and jobs are done afterwards."""
    worker = Fixture(built=state != "building")
    running = of_type(worker.get_job(50, F, 50), Run) if state == "busy" else []
    for peer in (TRAINER_AT, Link(b"somebody")):
        for _ in range(2):
            commands = worker.get(message, frames=MEMBERS if type(message).__name__ == "View" else ("x",), peer=peer)
            assert of_type(commands, Exit) == []
            running += of_type(commands, Run)
    assert worker.machine.state.ledger == 0
    if state == "building":
        running += of_type(worker.build(), Run)
    while running:
        running = of_type(worker.ran(running[0]), Run)
    (run,) = of_type(worker.get_job(60, F, 60, broker=OTHER, route=ROUTE[:2]), Run)
    assert run.key == key(60)


@pytest.mark.parametrize("header", [{"run": OTHER_RUN}, {"generation": 0}], ids=["other run", "passed generation"])
def test_foreign_messages_are_dropped(worker, header):
    for message in (prepare(1, (ME,), **header), commit(1, **header), stop(**header), view(9, **header)):
        assert worker.get(message) == []
    assert worker.machine.membership.members == MEMBERS
