"""A worker takes over what another one has counted that leaves: when that is here, and when it is its own."""

from __future__ import annotations

from typing import Any

import pytest

from stages.tasks import Export, Exported, Import, Imported, Run, ShareTaken, TakeShare
from tests.letters import fence, inherit, load, of_type, prepare, pull, state, view, void, worker_at
from tests.stages.one_worker import FUSED, ME, MEMBERS, B, Fixture
from zswarm import ledger, limits
from zswarm.ids import TRAINER, StatePart
from zswarm.machine import Leave, Send
from zswarm.messages import Prepared, Pull, State, WorkerHeartbeat

LEAVER = 22
WITH_LEAVER = (*MEMBERS, worker_at(LEAVER, 1))
SHARE = 0b0110
SHARE_OF = {"part": StatePart.SHARE, "counted": SHARE, "loss_sum": 2.5, "num_targets": 8}
FIRST_LAYER = 4


@pytest.fixture
def worker() -> Fixture:
    """One of two workers of its stage, which is told to take over microbatches 1 and 2 of the other one."""
    worker = Fixture(members=WITH_LEAVER)
    worker.order = inherit(LEAVER, SHARE)
    return worker


def fetch(worker: Fixture, size_bytes: int = 10) -> list[Any]:
    """Let all of the share come in one range; returns what follows."""
    worker.get(worker.order)
    commands = worker.get(state(LEAVER, FIRST_LAYER, 0, size_bytes, size_bytes, **SHARE_OF), frames=("s",))
    return commands + worker.do(Imported(part=StatePart.SHARE))


def becomes_heir(worker: Fixture) -> list[Any]:
    return worker.get(view(2, heirs={LEAVER: (ME, SHARE)}), frames=MEMBERS)


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
    assert worker.machine.work.heir.held.owner == TRAINER, "the compute thread has not taken it yet"
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
    assert worker.machine.work.heir.held.owner == TRAINER
    worker.do(Imported(part=StatePart.SHARE))
    assert worker.machine.work.heir.held.owner == LEAVER


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
    commands = worker.get(view(2, heirs={LEAVER: (23, SHARE)}), frames=(*MEMBERS, worker_at(23, 1)))
    assert not any(isinstance(command, TakeShare) for command in commands)
    assert worker.machine.work.heir.held.owner == TRAINER


def test_who_dies_leaves_nothing(worker):
    """Its microbatches are done again by whoever gets them."""
    fetch(worker)
    assert not any(isinstance(c, TakeShare) for c in worker.get(view(2), frames=MEMBERS))
    assert worker.machine.work.heir.held.owner == TRAINER


def test_half_a_share_is_none(worker):
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    assert not any(isinstance(command, TakeShare) for command in becomes_heir(worker))


@pytest.mark.parametrize(("voided", "holds"), [(0b0100, TRAINER), (0b1001, LEAVER)])
def test_a_void_makes_it_worthless_before_the_view_comes(worker, voided, holds):
    """Whether it was counted in time would depend on which of the two came first."""
    fetch(worker)
    assert told(worker.get(void(1, voided))).voided == 1
    assert worker.machine.work.heir.held.owner == holds
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
    assert worker.machine.work.heir.held.owner == TRAINER


def test_a_range_that_does_not_come_is_asked_for_again(worker):
    worker.get(worker.order)
    assert of_type(worker.tick(0.9 * limits.RESEND_HEARTBEATS), Pull) == []
    assert of_type(worker.tick(limits.RESEND_HEARTBEATS), Pull)


# -- the other end -----------------------------------------------------------------------------------


def exported(offset_bytes: int = 0) -> Exported:
    return Exported(
        part=StatePart.SHARE, layer=FIRST_LAYER, offset_bytes=offset_bytes, total_bytes=20, load=load("s", 10)
    )


def ask(worker: Fixture, offset_bytes: int = 0) -> list[Any]:
    asked = pull(FIRST_LAYER, session=LEAVER, part=StatePart.SHARE, offset_bytes=offset_bytes)
    return of_type_of(worker.get(asked, peer="sim://heir"), Export)


def test_it_gives_what_it_has_counted_and_says_what_that_is(worker):
    worker.work(1, B, 1)
    (export,) = ask(worker)
    assert (export.part, export.offset_bytes, export.step) == (StatePart.SHARE, 0, None)
    (message,) = of_type(worker.do(exported()), State)
    assert (message.part, message.step, message.total_bytes) == (StatePart.SHARE, 0, 20)
    assert ledger.from_bytes(message.ledger) == 0b0010


def test_all_ranges_of_a_copy_say_the_same(worker):
    """What is counted meanwhile is in the next copy."""
    worker.work(1, B, 1)
    ask(worker)
    worker.do(exported())
    worker.work(2, B, 2)
    ask(worker, 10)
    (rest,) = of_type(worker.do(exported(10)), State)
    assert ledger.from_bytes(rest.ledger) == 0b0010
    ask(worker)
    (anew,) = of_type(worker.do(exported()), State)
    assert ledger.from_bytes(anew.ledger) == 0b0110 == counted(worker)


def test_what_is_counted_while_the_copy_is_being_made_is_not_in_it(worker):
    """Outcomes come in the order of their tasks: the job behind the copy ends after it."""
    worker.work(1, B, 1)
    (run,) = of_type_of(worker.get_job(2, B, 2), Run)
    ask(worker)
    worker.ran(run)
    (message,) = of_type(worker.do(exported()), State)
    assert ledger.from_bytes(message.ledger) == 0b0110


def test_a_range_of_no_copy_is_not_given(worker):
    worker.work(1, B, 1)
    assert ask(worker, 10) == []


def test_what_is_void_meanwhile_is_not_given(worker):
    """The copy that was asked for is of a life that has ended."""
    worker.work(1, B, 1)
    ask(worker)
    worker.get(fence(ME))
    assert of_type(worker.do(exported()), State) == []


def test_a_range_of_another_copy_begins_anew(worker):
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    more = SHARE_OF | {"counted": SHARE | 0b1000}
    commands = worker.get(state(LEAVER, FIRST_LAYER, 100, 150, 50, **more), frames=("b",))
    assert of_type_of(commands, Import) == []
    assert [pull_.offset_bytes for pull_ in of_type(commands, Pull)] == [0]
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **more), frames=("a",))
    worker.get(state(LEAVER, FIRST_LAYER, 100, 150, 50, **more), frames=("b",))
    for _ in range(3):
        worker.do(Imported(part=StatePart.SHARE))
    assert worker.machine.work.heir.held.ledger == SHARE | 0b1000


def test_the_older_copy_is_held_while_a_newer_one_comes(worker):
    fetch(worker)
    newer = SHARE | 0b1000
    assert of_type(worker.get(inherit(LEAVER, newer)), Pull)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **(SHARE_OF | {"counted": newer})), frames=("a",))
    assert worker.machine.work.heir.held.ledger == SHARE
    (take,) = of_type_of(becomes_heir(worker), TakeShare)
    assert take.ledger == SHARE


def test_a_view_that_leaves_something_else_leaves_nothing(worker):
    """The coordinator knew of another copy than this: what would be counted is not what the view says."""
    fetch(worker)
    commands = worker.get(view(2, heirs={LEAVER: (ME, SHARE | 0b1000)}), frames=MEMBERS)
    assert of_type_of(commands, TakeShare) == []


def test_what_is_here_is_not_fetched_again(worker):
    fetch(worker)
    assert of_type(worker.get(inherit(LEAVER, 0b0010)), Pull) == []


def test_a_newer_copy_that_is_given_up_at_its_last_range_does_not_take_the_older_one_with_it(worker):
    """Found by the simulator: a Void and another order came before the thread had said that it had all."""
    fetch(worker)
    newer = SHARE_OF | {"counted": SHARE | 0b1000}
    worker.get(inherit(LEAVER, SHARE | 0b1000))
    worker.get(state(LEAVER, FIRST_LAYER, 0, 10, 10, **newer), frames=("s",))
    worker.get(void(1, 0b1000))
    worker.get(inherit(LEAVER, SHARE | 0b1000, attempt=1))
    worker.do(Imported(part=StatePart.SHARE))
    (task,) = of_type_of(worker.get(state(LEAVER, FIRST_LAYER, 0, 20, 10, **newer), frames=("s",)), Import)
    assert (task.kept, worker.machine.work.heir.held.ledger) == (SHARE, SHARE)


def test_the_older_copy_is_counted_if_the_view_leaves_that(worker):
    """The coordinator had not heard of the newer one when it took the owner out."""
    fetch(worker)
    worker.get(inherit(LEAVER, SHARE | 0b1000))
    worker.get(state(LEAVER, FIRST_LAYER, 0, 10, 10, **(SHARE_OF | {"counted": SHARE | 0b1000})), frames=("s",))
    worker.do(Imported(part=StatePart.SHARE))
    assert worker.machine.work.heir.held.ledger == SHARE | 0b1000
    (take,) = of_type_of(becomes_heir(worker), TakeShare)
    assert take.ledger == SHARE


def test_a_copy_that_comes_is_not_begun_anew_by_an_order_of_the_same_share(worker):
    worker.get(worker.order)
    worker.get(state(LEAVER, FIRST_LAYER, 0, 150, 100, **SHARE_OF), frames=("a",))
    assert of_type(worker.get(inherit(LEAVER, SHARE | 0b1000, attempt=3)), Pull) == []
