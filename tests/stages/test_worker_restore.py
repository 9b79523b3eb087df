"""How a worker comes by parameters that it does not hold, and gives away those that it holds."""

from __future__ import annotations

from typing import Any

import pytest

from stages.tasks import (
    Adopt,
    Adopted,
    Apply,
    Build,
    Emitted,
    Export,
    Exported,
    Failed,
    Import,
    Reset,
    Run,
    Snapshot,
    WasReset,
)
from tests.letters import SIZE_BYTES, commit, credit, fence, load, of_type, prepare, pull, restore, state, view, welcome
from tests.stages.one_worker import AFTER, CONFIGURATION, ME, MEMBERS, B, F, Fixture
from zswarm import limits
from zswarm.ids import TRAINER, JobStatus, Link, StatePart
from zswarm.messages import Backward, Failure, Forward, Prepared, Pull, Ready, Result, State, WorkerHeartbeat

DONOR, OTHER_DONOR = 22, 23
P, O, U = StatePart.PARAMETERS, StatePart.OPTIMIZER, StatePart.GRADIENT  # noqa: E741 - the two parts of a layer's state, and what a step does to it
FILES = [(4, P), (4, O), (5, P), (5, O)]
"""Of the fixture's two layers, in the order in which they are asked for."""
TOTAL_BYTES = 150
"""Of each file: a full range and a half one."""


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """Ask for one layer after the other, so that the order is certain."""
    monkeypatch.setattr(limits, "PULLS_OF_ONE", 1)


@pytest.fixture
def worker():
    return Fixture()


def asked(commands: list[Any]) -> list[tuple[int, StatePart, int]]:
    return [(message.layer, message.part, message.offset_bytes) for message in of_type(commands, Pull)]


def give(worker: Fixture, layer: int, part: StatePart, offset_bytes: int, *, donor: int = DONOR, **of: Any):
    """Answer a Pull; returns what follows."""
    size_bytes = min(SIZE_BYTES, TOTAL_BYTES - offset_bytes)
    message = state(donor, layer, offset_bytes, TOTAL_BYTES, size_bytes, part=part, **of)
    return worker.get(message, frames=((layer, part, offset_bytes),))


def give_all(worker: Fixture, **of: Any) -> list[Any]:
    """Answer every Pull; returns all that followed."""
    commands = []
    for layer, part in FILES:
        for offset_bytes in range(0, TOTAL_BYTES, SIZE_BYTES):
            commands += give(worker, layer, part, offset_bytes, **of)
    return commands


def adopted(worker: Fixture) -> list[Any]:
    return worker.do(Adopted(parameter_digest=9))


def reported(commands: list[Any]) -> WorkerHeartbeat:
    (heartbeat,) = of_type(commands, WorkerHeartbeat)
    return heartbeat


# -- Restore -----------------------------------------------------------------------------------------


def test_the_way_to_another_version(worker):
    commands = worker.get(restore(DONOR, branch=1, step=3))
    assert of_type(commands, Reset)
    assert [(send.peer, send.message.step) for send in commands if type(getattr(send, "message", 0)) is Pull] == [
        ("sim://worker-22", 3)
    ]
    heartbeat = reported(commands)
    assert (heartbeat.ready, heartbeat.step) == (False, 0)
    worker.do(WasReset())
    commands = give_all(worker, branch=1, step=3)
    imports = of_type(commands, Import)
    ranges = [(layer, part, offset) for layer, part in FILES for offset in (0, SIZE_BYTES)]
    assert [(task.layer, task.part, task.offset_bytes) for task in imports] == ranges
    assert [task.load.frames for task in imports] == [((layer, part, offset),) for layer, part, offset in ranges]
    assert {task.total_bytes for task in imports} == {TOTAL_BYTES}
    assert asked(commands) == ranges[1:]
    assert [task for task in commands if isinstance(task, Import | Adopt)] == [*imports, Adopt()]
    commands = adopted(worker)
    heartbeat = reported(commands)
    assert (heartbeat.ready, heartbeat.step, heartbeat.parameter_digest) == (True, 3, 9)
    assert {ready.step for ready in of_type(commands, Ready)} == {3}
    assert of_type(worker.get_job(1, F, 0, branch=1, step=3), Run)


def test_what_was_counted_held_and_sent_is_void(worker):
    worker.work(1, B, 0)
    worker.work(2, F, 1)
    (run,) = of_type(worker.get_job(3, B, 2), Run)
    worker.get_job(4, F, 3)
    commands = worker.get(restore(DONOR, branch=1, step=3))
    assert [(r.lease, r.status, r.slots) for r in of_type(commands, Result)] == [
        (3, JobStatus.WRONG_STEP, 0),
        (4, JobStatus.WRONG_STEP, 0),
    ]
    assert worker.machine.state.ledger == 0
    assert of_type(worker.get(credit(AFTER, SIZE_BYTES, producer=ME)), Forward) == []
    assert of_type(worker.do(Emitted(lease=run.lease, dx=load("dx"))), Backward) == []
    worker.ran(run)
    assert worker.machine.state.ledger == 0


def test_meanwhile_it_takes_no_jobs_and_no_rounds_and_gives_nothing(worker):
    worker.reduce(1)
    worker.get(restore(DONOR, branch=1, step=3))
    worker.do(WasReset())
    for step in (0, 3):
        (result,) = of_type(worker.get_job(1, F, 0, branch=1, step=step), Result)
        assert (result.status, result.slots) == (JobStatus.WRONG_STEP, 0)
        assert of_type(worker.get(prepare(2, (ME,), step=step)), Snapshot) == []
        assert of_type(worker.get(pull(4, step=step), peer=Link(b"x")), Export) == []
    assert of_type(worker.get(commit(1)), Apply) == []
    commands = worker.tick(1.0)
    assert of_type(commands, Prepared) == []
    assert {ready.slots for ready in of_type(commands, Ready)} == {0}


def test_nothing_begins_before_the_reset_has_ended(worker):
    worker.get_job(1, B, 0)
    worker.get(restore(DONOR, branch=1, step=3))
    give_all(worker, branch=1, step=3)
    adopted(worker)
    (refused,) = of_type(worker.get_job(2, F, 0, branch=1, step=3), Result)
    worker.do(WasReset())
    assert of_type(worker.get_job(3, F, 0, branch=1, step=3), Run)
    (again,) = of_type(worker.get_job(2, F, 0, branch=1, step=3), Result)
    assert (refused.status, again.status) == (JobStatus.WRONG_STEP, JobStatus.WRONG_STEP)


def test_a_late_copy_of_what_was_held_before_the_restore_is_refused_again(worker):
    """Of a step that is to come: by then another worker may have it."""
    assert of_type(worker.get_job(1, B, 0, branch=1, step=3), Run) == []
    (first,) = of_type(worker.get(restore(DONOR, branch=1, step=3)), Result)
    worker.do(WasReset())
    give_all(worker, branch=1, step=3)
    adopted(worker)
    (again,) = of_type(worker.get_job(1, B, 0, branch=1, step=3), Result)
    assert (first.status, again.status) == (JobStatus.WRONG_STEP, JobStatus.WRONG_STEP)
    assert worker.machine.jobs.held == {}


def test_it_is_a_level_not_an_edge(worker):
    """The same one again asks for nothing again; it would never end."""
    worker.get(restore(DONOR, branch=1, step=3))
    give(worker, 4, P, 0, branch=1, step=3)
    assert worker.get(restore(DONOR, branch=1, step=3)) == []
    assert asked(give(worker, 4, P, SIZE_BYTES, branch=1, step=3)) == [(4, O, 0)]


@pytest.mark.parametrize(
    ("donor", "step", "address"),
    [(OTHER_DONOR, 3, "sim://worker-23"), (OTHER_DONOR, 4, "sim://worker-23"), (TRAINER, 4, "sim://trainer")],
)
def test_another_donor_begins_a_layer_anew(worker, donor, step, address):
    """The trainer is where it has always been, whatever the message says."""
    worker.get(restore(DONOR, branch=1, step=3))
    give(worker, 4, P, 0, branch=1, step=3)
    commands = worker.get(restore(donor, branch=1, step=step))
    (send,) = [command for command in commands if type(getattr(command, "message", 0)) is Pull]
    assert (send.peer, send.message.step, send.message.offset_bytes) == (address, step, 0)
    assert give(worker, 4, P, SIZE_BYTES, branch=1, step=3) == [], "of the donor before"
    assert len(of_type(give_all(worker, donor=donor, branch=1, step=step), Adopt)) == 1
    assert reported(adopted(worker)).step == step


@pytest.mark.parametrize("step", [1, 2])
def test_an_older_version_is_not_begun(worker, step):
    worker.get(restore(DONOR, branch=1, step=3))
    assert worker.get(restore(OTHER_DONOR, branch=1, step=step)) == []
    assert len(of_type(give_all(worker, branch=1, step=3), Adopt)) == 1


def test_whoever_is_ready_there_says_so(worker):
    worker.step()
    worker.get_job(1, F, 0, step=1)
    assert (reported(worker.get(restore(DONOR, step=1))).ready, len(worker.machine.jobs.held)) == (True, 1)
    assert worker.get(restore(DONOR)) == [], "an older one is late"


def test_the_older_branch_is_left_for_an_earlier_step(worker):
    for _ in range(3):
        worker.step()
    worker.get(restore(TRAINER, step=2, branch=1))
    worker.do(WasReset())
    give_all(worker, donor=TRAINER, step=2, branch=1)
    heartbeat = reported(adopted(worker))
    assert (heartbeat.branch, heartbeat.step, heartbeat.ready) == (1, 2, True)


def test_step_0_is_built_again(worker):
    worker.step(snapshot=True)
    commands = worker.get(restore(TRAINER, step=0, branch=1))
    assert of_type(commands, Build) == [Build(stage=1, num_stages=3, configuration=b"".join(CONFIGURATION))]
    assert of_type(commands, Pull) == []
    worker.do(WasReset())
    assert worker.get(restore(TRAINER, step=0, branch=1)) == [], "it is being built"
    heartbeat = reported(worker.build())
    assert (heartbeat.branch, heartbeat.step, heartbeat.ready) == (1, 0, True)
    assert of_type(worker.get(pull(4, step=1), peer=Link(b"x")), Export) == [], "the copy went with the old layers"


def test_a_newcomer_is_not_ready_before_it_has_the_swarms_state():
    worker = Fixture(built=False, step=5)
    assert of_type(worker.build(), Ready)[0].slots == 0
    heartbeat = reported(worker.tick(1.0))
    assert (heartbeat.ready, heartbeat.step) == (False, 0)
    worker.get(restore(DONOR, step=6))
    worker.do(WasReset())
    give_all(worker, step=6)
    assert (reported(adopted(worker)).ready, worker.machine.state.step) == (True, 6)


def imports(commands: list[Any]) -> list[type]:
    return [type(task) for task in commands if isinstance(task, Import | Adopt)]


def test_a_newcomer_gets_the_swarms_state_while_its_layers_are_built():
    worker = Fixture(built=False, step=5)
    assert asked(worker.get(restore(DONOR, step=5))) == [(4, P, 0)]
    assert imports(give_all(worker, step=5)) == [Import] * 8, "the compute thread does them after Build"
    overdue_at_s = worker.machine.work.device.overdue_at_s(1.0)
    assert overdue_at_s == Fixture(built=False).machine.work.device.overdue_at_s(1.0), "they do not make Build late"
    commands = worker.build()
    assert imports(commands) == [Adopt]
    assert of_type(commands, Ready)[0].slots == 0
    worker.do(WasReset())
    assert reported(worker.tick(1.0)).ready is False
    heartbeat = reported(adopted(worker))
    assert (heartbeat.ready, heartbeat.step) == (True, 5)


def test_what_is_here_before_its_layers_takes_the_steps_of_the_swarm():
    worker = Fixture(built=False, step=5)
    worker.get(restore(DONOR, step=5))
    give_all(worker, step=5)
    assert asked(worker.get(restore(DONOR, step=6))) == [(4, U, 0)]
    assert imports(worker.build()) == [], "a step is missing"
    worker.do(WasReset())
    commands = [*give(worker, 4, U, 0, step=5), *give(worker, 4, U, SIZE_BYTES, step=5)]
    commands += [*give(worker, 5, U, 0, step=5), *give(worker, 5, U, SIZE_BYTES, step=5)]
    assert imports(commands) == [Import] * 4 + [Adopt]
    assert reported(adopted(worker)).step == 6


def test_where_the_swarm_goes_back_while_layers_are_built_that_is_what_is_asked_for():
    worker = Fixture(built=False, step=5)
    worker.get(restore(DONOR, step=5))
    give(worker, 4, P, 0, step=5)
    assert asked(worker.get(restore(TRAINER, branch=1, step=3))) == [(4, P, 0)]
    assert imports(give_all(worker, step=5)) == []
    assert imports(give_all(worker, donor=TRAINER, branch=1, step=3)) == [Import] * 8
    assert worker.get(restore(TRAINER, branch=2, step=0)) == [], "it is repeated"
    assert imports(worker.build()) == [Adopt]
    worker.do(WasReset())
    assert reported(adopted(worker)).branch == 1
    assert of_type(worker.get(restore(TRAINER, branch=2, step=0)), Build)


def move_to_stage_0(worker: Fixture) -> list[Any]:
    """Let it begin another life there, in a swarm that is at step 5; returns what follows from the order to get the state."""
    worker.get(welcome(61, stage=0, layers=range(2), step=5, nonce=2), frames=CONFIGURATION)
    worker.get(view(2, step=5), frames=MEMBERS)
    return worker.get(restore(DONOR, step=5))


def test_one_that_becomes_of_another_stage_while_it_loads_gets_that_ones_state():
    worker = Fixture(built=False, step=5)
    worker.get(restore(DONOR, step=5))
    give(worker, 4, P, 0, step=5)
    worker.get(fence(ME))
    worker.build()
    worker.do(WasReset())
    assert asked(move_to_stage_0(worker)) == [(0, P, 0)]
    assert give(worker, 4, P, SIZE_BYTES, step=5) == []
    assert asked(give(worker, 0, P, 0, step=5)) == [(0, P, SIZE_BYTES)]
    assert of_type(worker.build(), Ready)[0].slots == 0


def test_what_was_adopted_of_the_stage_before_makes_nobody_ready_in_another():
    worker = Fixture(step=5, built=False)
    worker.build()
    worker.get(restore(DONOR, step=5))
    assert imports(give_all(worker, step=5))[-1] is Adopt
    worker.get(fence(ME))
    worker.do(WasReset())
    move_to_stage_0(worker)
    files = [(layer, part, offset) for layer in (0, 1) for part in (P, O) for offset in (0, SIZE_BYTES)]
    for layer, part, offset_bytes in files:
        assert imports(give(worker, layer, part, offset_bytes, step=5)) == [Import]
    adopted(worker)
    assert not worker.machine.parameters.is_ready
    assert imports(worker.build()) == [Adopt]
    worker.do(WasReset())
    assert reported(adopted(worker)).ready is True


def test_who_is_ready_when_its_layers_are_built_asks_only_then():
    worker = Fixture(built=False)
    assert worker.get(restore(DONOR, step=1)) == []
    worker.build()
    assert asked(worker.get(restore(DONOR, step=1))) == [(4, U, 0)]


def test_what_is_asked_for_is_asked_again(worker):
    worker.get(restore(DONOR, branch=1, step=3))
    assert asked(worker.tick(1.0)) == [(4, P, 0)]
    assert asked(worker.tick(2.0)) == []
    assert asked(worker.tick(3.0)) == [(4, P, 0)]
    assert asked(give(worker, 4, P, 0, branch=1, step=3)) == [(4, P, SIZE_BYTES)]
    assert asked(worker.tick(4.0)) == [(4, P, SIZE_BYTES)]
    give_all(worker, branch=1, step=3)
    for now_s in (5.0, 6.0, 30.0):
        assert asked(worker.tick(now_s)) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"donor": OTHER_DONOR},
        {"step": 2},
        {"branch": 2},
        {"layer": 5},
        {"part": O},
        {"offset_bytes": SIZE_BYTES},
    ],
    ids=str,
)
def test_what_was_not_asked_for_is_not_taken(worker, answer):
    worker.get(restore(DONOR, branch=1, step=3))
    asked_for: dict[str, Any] = {"layer": 4, "part": P, "offset_bytes": 0, "donor": DONOR, "step": 3, "branch": 1}
    assert give(worker, **(asked_for | answer)) == []
    assert len(give(worker, **asked_for)) == 2


def test_while_a_commit_is_applied_a_restore_is_ignored(worker):
    worker.reduce(1)
    worker.get(commit(1))
    assert worker.get(restore(DONOR, branch=1, step=3)) == []
    worker.applied(0)
    assert asked(worker.get(restore(DONOR, branch=1, step=3))) == [(4, P, 0)]


def test_while_adopting_a_restore_is_ignored(worker):
    worker.get(restore(DONOR, branch=1, step=3))
    give_all(worker, branch=1, step=3)
    assert worker.get(restore(DONOR, branch=1, step=4)) == []
    assert reported(adopted(worker)).step == 3


def test_a_fence_stops_a_load_but_not_an_adoption(worker):
    worker.get(restore(DONOR, branch=1, step=3))
    give(worker, 4, P, 0, branch=1, step=3)
    worker.get(fence(ME))
    worker.do(WasReset())
    worker.get(welcome(61, stage=1, step=3, branch=1, nonce=2), frames=CONFIGURATION)
    assert reported(worker.get(view(2, step=3, branch=1), frames=MEMBERS)).ready is False
    assert give(worker, 4, P, SIZE_BYTES, branch=1, step=3) == []
    assert asked(worker.get(restore(DONOR, branch=1, step=3))) == [(4, P, 0)]
    worker.do(WasReset())
    give_all(worker, branch=1, step=3)
    worker.get(fence(61))
    adopted(worker)
    worker.do(WasReset())
    worker.get(welcome(62, stage=1, step=3, branch=1, nonce=3), frames=CONFIGURATION)
    heartbeat = reported(worker.get(view(3, step=3, branch=1), frames=MEMBERS))
    assert (heartbeat.ready, heartbeat.step) == (True, 3)


def test_a_state_that_does_not_fit_ends_the_run(worker):
    worker.get(restore(DONOR, branch=1, step=3))
    give_all(worker, branch=1, step=3)
    (failure,) = of_type(worker.do(Failed(layer="layer 4", text="no such tensor")), Failure)
    assert failure.microbatch is None
    assert of_type(worker.tick(1.0), Failure)


def test_an_adoption_of_nothing_is_ignored(worker):
    assert adopted(worker) == []
    assert worker.machine.state.version == (0, 0)


def test_a_later_step_of_the_same_branch_begins_nothing_anew(worker):
    """The steps may be shorter than the way of a layer: what has come of it stays."""
    worker.get(restore(DONOR, branch=1, step=3))
    worker.do(WasReset())
    for step in (4, 5):
        assert worker.get(restore(DONOR, branch=1, step=step)) == []
    commands = []
    for layer in (4, 5):
        first = 3 if layer == 4 else 5
        for part in (P, O):
            for offset_bytes in range(0, TOTAL_BYTES, SIZE_BYTES):
                commands += give(worker, layer, part, offset_bytes, branch=1, step=first)
        for step in range(first, 5):
            commands += give(worker, layer, U, 0, branch=1, step=step)
            commands += give(worker, layer, U, SIZE_BYTES, branch=1, step=step)
    assert [type(task) for task in commands if isinstance(task, Import | Adopt)][-1] is Adopt
    heartbeat = reported(adopted(worker))
    assert (heartbeat.branch, heartbeat.step, heartbeat.ready) == (1, 5, True)


def test_who_is_ready_at_an_earlier_step_takes_the_steps_that_he_lacks(worker):
    worker.step()
    (send,) = [c for c in worker.get(restore(DONOR, step=2)) if type(getattr(c, "message", 0)) is Pull]
    assert (send.message.part, send.message.layer, send.message.step) == (U, 4, 1)
    worker.do(WasReset())
    commands = [
        command
        for layer in (4, 5)
        for offset_bytes in (0, SIZE_BYTES)
        for command in give(worker, layer, U, offset_bytes, step=1)
    ]
    assert [task.part for task in of_type(commands, Import)] == [U] * 4
    assert len(of_type(commands, Adopt)) == 1
    assert reported(adopted(worker)).step == 2


# -- giving ------------------------------------------------------------------------------------------


def exported(worker: Fixture, task: Export):
    return worker.do(
        Exported(part=task.part, layer=task.layer, offset_bytes=task.offset_bytes, total_bytes=900, load=load("file"))
    )


def test_the_copy_for_a_checkpoint_is_given_while_training_goes_on(worker):
    link = Link(b"trainer")
    worker.step(snapshot=True)
    (now,) = worker.get(pull(4, step=1, part=O), peer=link)
    assert (now.from_snapshot, now.part) == (False, O)
    worker.step()
    worker.step()
    (kept,) = worker.get(pull(5, step=1), peer=link)
    (present,) = worker.get(pull(5, step=3), peer=link)
    assert (kept.from_snapshot, present.from_snapshot) == (True, False)
    assert worker.get(pull(5, step=2), peer=link) == []
    for task, step in ((now, 1), (kept, 1), (present, 3)):
        (message,) = of_type(exported(worker, task), State)
        assert (message.step, message.part, message.layer) == (step, task.part, task.layer)


def test_a_copy_is_of_no_use_once_another_is_being_made(worker):
    """The task would come after Apply, and take a range of the new copy for one of the old."""
    link = Link(b"trainer")
    worker.step(snapshot=True)
    worker.step()
    worker.reduce(3)
    assert of_type(worker.get(commit(3, step=2, snapshot=True)), Apply)[0].snapshot
    for step in (1, 2):
        assert worker.get(pull(4, step=step), peer=link) == []
    (after,) = worker.get(pull(4, step=3), peer=link)
    assert not after.from_snapshot, "it comes after Apply, as the task that makes a range of it does"
    worker.applied(2)
    assert of_type(exported(worker, after), State)[0].step == 3
    worker.step()
    assert worker.get(pull(4, step=1), peer=link) == []
    assert [task.from_snapshot for task in worker.get(pull(4, step=3), peer=link)] == [True]


def test_the_copy_outlives_a_life_and_a_restore(worker):
    worker.step(snapshot=True)
    worker.get(fence(ME))
    worker.do(WasReset())
    worker.get(welcome(61, stage=1, step=1, nonce=2), frames=CONFIGURATION)
    worker.get(restore(DONOR, step=7))
    (task,) = worker.get(pull(4, step=1), peer=Link(b"trainer"))
    assert task.from_snapshot
    (message,) = of_type(exported(worker, task), State)
    assert message.session == 61


TAKER = 61
LINK = Link(b"taker")


def wanted(worker: Fixture, layer: int, step: int, part: StatePart = P, offset_bytes: int = 0, **of: Any) -> Export:
    (task,) = worker.get(pull(layer, step=step, part=part, offset_bytes=offset_bytes, session=TAKER, **of), peer=LINK)
    return task


def applying(worker: Fixture) -> Apply:
    state = worker.machine.state
    worker.reduce(state.step + 1)
    (apply,) = of_type(worker.get(commit(state.step + 1, step=state.step)), Apply)
    return apply


def test_a_layer_that_is_being_given_and_each_step_are_kept_over_a_commit(worker):
    exported(worker, wanted(worker, 5, 0))
    apply = applying(worker)
    assert (apply.retained, apply.gradients) == (((5, 0),), (0,))
    before = wanted(worker, 5, 0, O, SIZE_BYTES)
    assert (before.step, before.part, before.offset_bytes) == (0, O, SIZE_BYTES)
    after = wanted(worker, 4, 1)
    assert after.step is None, "the present one, by the time that Apply has ended"
    worker.applied(0)
    for task, step in ((before, 0), (after, 1)):
        assert of_type(exported(worker, task), State)[0].step == step
    update = wanted(worker, 5, 0, U)
    assert (update.step, update.part) == (0, U)
    apply = applying(worker)
    assert (apply.retained, apply.gradients) == (((4, 1), (5, 0)), (0, 1))


def test_the_trainer_has_nothing_kept_for_it(worker):
    """It collects the copy that was made for it."""
    worker.get(pull(5), peer=LINK)
    apply = applying(worker)
    assert (apply.retained, apply.gradients) == ((), ())


def test_what_nobody_has_asked_for_lately_is_kept_no_longer(worker):
    exported(worker, wanted(worker, 5, 0))
    applying(worker)
    worker.applied(0)
    worker.tick(limits.LEND_HEARTBEATS + 0.1)
    apply = applying(worker)
    assert (apply.retained, apply.gradients) == ((), ())
    worker.applied(1)
    (task,) = worker.get(pull(5, step=0, part=O, session=TAKER), peer=LINK)
    assert (task.part, task.offset_bytes, task.step) == (P, 0, None), "begin it anew"
    assert of_type(exported(worker, task), State)[0].step == 2


def test_only_so_many_steps_are_kept(worker):
    for step in range(limits.MAX_GRADIENTS + 2):
        exported(worker, wanted(worker, 5, step))
        assert applying(worker).gradients == tuple(range(max(0, step + 1 - limits.MAX_GRADIENTS), step + 1))
        worker.applied(step)
    task = wanted(worker, 5, 0, U)
    assert (task.part, task.offset_bytes) == (P, 0)


def test_who_asks_for_what_is_yet_to_come_or_of_another_branch_gets_nothing(worker):
    for of in ({"step": 1}, {"step": 0, "part": U}, {"step": 0, "branch": 1}):
        assert worker.get(pull(5, session=TAKER, **of), peer=LINK) == []


def test_what_was_kept_goes_with_the_parameters_that_it_was_of(worker):
    exported(worker, wanted(worker, 5, 0))
    applying(worker)
    worker.applied(0)
    worker.get(restore(DONOR, branch=1, step=1))
    worker.do(WasReset())
    give_all(worker, branch=1, step=1)
    adopted(worker)
    for of in ({"part": U}, {"part": O}):
        assert worker.get(pull(5, step=0, session=TAKER, **of), peer=LINK) == []


def test_who_takes_the_copy_for_a_checkpoint_needs_nothing_retained(worker):
    """Its layers were never kept one by one: the copy is there anyhow, but the steps since then are kept."""
    worker.step(snapshot=True)
    worker.step()
    assert wanted(worker, 5, 1).from_snapshot
    apply = applying(worker)
    assert (apply.retained, apply.gradients) == ((), (2,))
