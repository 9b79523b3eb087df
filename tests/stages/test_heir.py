"""A worker takes over what another one has counted that leaves: when that is here, and when it is its own."""

from __future__ import annotations

from typing import Any

import pytest

from stages.tasks import Export, Exported, Import, Imported, Run, ShareTaken, TakeShare
from tests.letters import drained, inherit, load, of_type, prepare, pull, state, view, void, worker_at
from tests.stages.one_worker import FUSED, ME, MEMBERS, OTHER, OWN, B, Fixture
from zswarm import ledger, limits
from zswarm.ids import TRAINER, StatePart
from zswarm.machine import Leave, Send
from zswarm.messages import Prepared, Pull, State, WorkerHeartbeat

LEAVER = 22
WITH_LEAVER = (*MEMBERS, worker_at(LEAVER, 1))
SHARE = 0b0110
SHARE_OF = {"part": StatePart.SHARE}
FIRST_LAYER = 4


@pytest.fixture
def worker() -> Fixture:
    """One of two workers of its stage, which is told to take over microbatches 1 and 2 of the other one."""
    worker = Fixture(members=WITH_LEAVER)
    worker.order = inherit(LEAVER, SHARE, loss_sum=2.5, num_targets=8)
    return worker


def fetch(worker: Fixture, size_bytes: int = 10) -> list[Any]:
    """Let all of the share come in one range; returns what follows."""
    worker.get(worker.order)
    commands = worker.get(state(LEAVER, FIRST_LAYER, 0, size_bytes, size_bytes, **SHARE_OF), frames=("s",))
    return commands + worker.do(Imported(part=StatePart.SHARE))


def becomes_heir(worker: Fixture) -> list[Any]:
    return worker.get(view(2, heirs={LEAVER: ME}), frames=MEMBERS)


def told(commands: list[Any]) -> WorkerHeartbeat:
    return of_type(commands, WorkerHeartbeat)[-1]


def counted(worker: Fixture) -> int:
    return worker.machine.state.ledger


def test_the_share_is_asked_for_range_by_range_and_held_aside(worker):
    (send,) = [command for command in worker.get(worker.order) if isinstance(command, Send)]
    assert send.peer == f"sim://worker-{LEAVER}"
    assert (send.message.part, send.message.layer, send.message.offset_bytes) == (StatePart.SHARE, FIRST_LAYER, 0)
    assert of_type(worker.get(worker.order), Pull) == [], "the order is repeated"
    commands = worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    (task,) = [command for command in commands if isinstance(command, Import)]
    assert (task.part, task.offset_bytes, task.total_bytes) == (StatePart.SHARE, 0, 150)
    (more,) = of_type(commands, Pull)
    assert more.offset_bytes == 100
    assert of_type(worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",)), Pull) == []
    assert of_type(worker.do(Imported(part=StatePart.SHARE)), Pull) == []
    worker.get(state(LEAVER, FIRST_LAYER, 100, 150, 50, **SHARE_OF), frames=("b",))
    assert worker.machine.work.heir.holds == TRAINER, "the compute thread has not taken it yet"
    assert told(worker.do(Imported(part=StatePart.SHARE))).inherits == LEAVER
    assert counted(worker) == 0


def test_no_more_is_asked_for_than_the_compute_thread_takes(worker):
    """It was, and the thread's queue ended the worker, at a gigabyte of a share."""
    worker.get(worker.order)
    total = 100 * (limits.MAX_IMPORTING + 3)
    asked = []
    for index in range(limits.MAX_IMPORTING):
        asked = of_type(
            worker.get(state(LEAVER, FIRST_LAYER, 100 * index, total, 100, **SHARE_OF), frames=("a",)), Pull
        )
    assert asked == []
    assert worker.tick(500.0) is not None
    (pull_,) = of_type(worker.do(Imported(part=StatePart.SHARE)), Pull)
    assert pull_.offset_bytes == 100 * limits.MAX_IMPORTING


def test_ranges_of_a_share_that_was_given_up_do_not_complete_the_next_one(worker):
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    worker.get(void(1, 0b0100))
    worker.get(inherit(LEAVER, SHARE, attempt=1))
    worker.get(state(LEAVER, FIRST_LAYER, 0, 100, 100, **SHARE_OF), frames=("b",))
    worker.do(Imported(part=StatePart.SHARE))
    assert worker.machine.work.heir.holds == TRAINER
    worker.do(Imported(part=StatePart.SHARE))
    assert worker.machine.work.heir.holds == LEAVER


def test_a_device_that_hangs_has_no_longer_because_of_a_share(worker):
    """An untimed task behind the job gave it 300 s."""
    worker.get_job(1, FUSED, 0)
    before = worker.machine.work.device.overdue_at_s(1.0)
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 10, 10, **SHARE_OF), frames=("s",))
    assert worker.machine.work.device.overdue_at_s(1.0) == before


def test_it_is_counted_when_the_view_says_whose_it_is(worker):
    assert told(fetch(worker)).inherits == LEAVER
    commands = becomes_heir(worker)
    assert [type(command) for command in commands if isinstance(command, TakeShare)] == [TakeShare]
    assert (told(commands).inherits, told(commands).ledger) == (TRAINER, b"")
    assert ledger.from_bytes(told(commands).pending) == SHARE, "it is not lost meanwhile"
    assert ledger.from_bytes(told(worker.do(ShareTaken())).ledger) == SHARE == counted(worker)
    assert (worker.machine.state.loss_sum, worker.machine.state.num_targets) == (2.5, 8)


def test_no_round_begins_while_it_is_being_added(worker):
    fetch(worker)
    becomes_heir(worker)
    assert worker.get(prepare(1, (ME,))) == []
    worker.do(ShareTaken())
    worker.reduce(1)
    assert worker.machine.participant.prepared_round == 1
    (prepared,) = of_type(worker.get(prepare(1, (ME,), counted=SHARE)), Prepared)
    assert (ledger.from_bytes(prepared.ledger), prepared.loss_sum, prepared.num_targets) == (SHARE, 2.5, 8)


def test_what_is_another_ones_is_given_up(worker):
    fetch(worker)
    commands = worker.get(view(2, heirs={LEAVER: 23}), frames=(*MEMBERS, worker_at(23, 1)))
    assert not any(isinstance(command, TakeShare) for command in commands)
    assert worker.machine.work.heir.holds == TRAINER


def test_who_dies_leaves_nothing(worker):
    """Its microbatches are done again by whoever gets them."""
    fetch(worker)
    assert not any(isinstance(c, TakeShare) for c in worker.get(view(2), frames=MEMBERS))
    assert worker.machine.work.heir.holds == TRAINER


def test_half_a_share_is_none(worker):
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    assert not any(isinstance(command, TakeShare) for command in becomes_heir(worker))


@pytest.mark.parametrize(("voided", "holds"), [(0b0100, TRAINER), (0b1001, LEAVER)])
def test_a_void_makes_it_worthless_before_the_view_comes(worker, voided, holds):
    """Whether it was counted in time would depend on which of the two came first."""
    fetch(worker)
    assert told(worker.get(void(1, voided))).voided == 1
    assert worker.machine.work.heir.holds == holds
    assert any(isinstance(c, TakeShare) for c in becomes_heir(worker)) == (holds == LEAVER)


def test_a_void_is_answered_when_what_is_being_added_is_in_the_ledger(worker):
    fetch(worker)
    becomes_heir(worker)
    assert of_type(worker.get(void(1, 0b0100)), WorkerHeartbeat) == []
    report = told(worker.do(ShareTaken()))
    assert (report.voided, ledger.from_bytes(report.ledger)) == (1, SHARE)


def test_what_was_voided_may_be_inherited_again_but_not_by_a_late_order(worker):
    """It would bring back what another worker has counted since."""
    fetch(worker)
    worker.get(void(1, 0b0100))
    assert of_type(worker.get(worker.order), Pull) == []
    assert of_type(worker.get(inherit(LEAVER, SHARE, attempt=1)), Pull)


def test_a_microbatch_is_counted_once_though_it_comes_as_a_job_too(worker):
    fetch(worker)
    becomes_heir(worker)
    (run,) = of_type_of(worker.get_job(1, FUSED, 2), Run)
    assert not run.accumulate


def of_type_of(commands: list[Any], kind: type) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


def test_what_is_counted_here_already_is_not_inherited(worker):
    worker.work(1, B, 1)
    assert counted(worker) == 0b0010
    assert of_type(worker.get(worker.order), Pull) == []


def test_whoever_leaves_inherits_nothing(worker):
    worker.do(Leave())
    assert of_type(worker.get(worker.order), Pull) == []


def test_of_another_step_nothing_is_inherited(worker):
    assert of_type(worker.get(inherit(LEAVER, SHARE, step=1)), Pull) == []


def test_a_commit_ends_it(worker):
    """The leaver took part in the round: what it had counted is in the result."""
    fetch(worker)
    worker.step()
    assert worker.machine.work.heir.holds == TRAINER


def test_a_range_that_does_not_come_is_asked_for_again(worker):
    worker.get(worker.order)
    assert of_type(worker.tick(0.9 * limits.RESEND_HEARTBEATS), Pull) == []
    assert of_type(worker.tick(limits.RESEND_HEARTBEATS), Pull)


# -- the other end -----------------------------------------------------------------------------------


def test_who_leaves_gives_what_it_has_counted_once_nothing_is_in_hand(worker):
    asked = pull(FIRST_LAYER, session=LEAVER, **SHARE_OF)
    worker.work(1, B, 1)
    assert of_type_of(worker.get(asked, peer="sim://heir"), Export) == [], "it stays"
    worker.do(Leave())
    assert of_type_of(worker.get(asked, peer="sim://heir"), Export) == [], "a broker may have a job for it"
    for broker in (OWN, OTHER):
        worker.get(drained(broker, worker=ME))
    (export,) = of_type_of(worker.get(asked, peer="sim://heir"), Export)
    assert (export.part, export.offset_bytes, export.step) == (StatePart.SHARE, 0, None)
    said = Exported(part=StatePart.SHARE, layer=FIRST_LAYER, offset_bytes=0, total_bytes=10, load=load("s", 10))
    (message,) = of_type(worker.do(said), State)
    assert (message.part, message.step, message.total_bytes) == (StatePart.SHARE, 0, 10)
