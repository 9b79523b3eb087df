"""Processes die, are started again, freeze, hang and are cut off; and the swarm goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest

from brokers.machine import BrokerMachine
from stages.worker import WorkerMachine
from zswarm.machine import Received
from zswarm.messages import Prepare, Stop
from zswarm.simulation.faults import AFTER_RECORD, AMID_SENDS, BEFORE_RECORD, HOOKS, Fault, Strike
from zswarm.simulation.nodes import NOBODY
from zswarm.simulation.poison import Poison
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.symbolic import Pace
from zswarm.simulation.trace import Happening, Trace
from zswarm.simulation.violation import Violation
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import Append, Unreachable

CALM = Schedule(
    seed=2,
    num_stages=2,
    brokers_per_stage=1,
    workers_per_stage=2,
    num_microbatches=4,
    steps=3,
    num_held_out=1,
    pace=Pace(forward_s=0.1),
    layers_per_stage=(1, 2),
    checkpoint_every=1,
    calm_from_s=16.0,
)


def strike(fault: Fault, *, at_s: float = 2.0, lasts_s: float = 1.0, salt: int = 1, hook: str = "") -> Strike:
    return Strike(fault=fault, at_s=at_s, lasts_s=lasts_s, salt=salt, hook=hook)


def struck(*strikes: Strike, schedule: Schedule = CALM) -> Swarm:
    faults = frozenset(each.fault for each in strikes) | schedule.faults
    return Swarm(replace(schedule, strikes=strikes, faults=faults), Trace(length=100_000))


def run(*strikes: Strike, schedule: Schedule = CALM) -> Counter[str]:
    swarm = struck(*strikes, schedule=schedule)
    swarm.run()
    return swarm.counters


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault in HOOKS or "kill" in fault or "wipe" in fault])
@pytest.mark.parametrize("at_s", [0.5, 1.6, 2.3])
def test_a_run_goes_on_whoever_is_killed_or_frozen(fault: Fault, at_s: float) -> None:
    """While the swarm gathers, while it trains, and later: all steps are done, and those of a run without faults."""
    counters = run(strike(fault, at_s=at_s))
    assert counters[fault.value] > 0
    assert counters["commit records"] >= CALM.steps


HOOKED = sorted({(fault, hook) for fault, hooks in HOOKS.items() for hook in hooks if fault is not Fault.FREEZE})
BEFORE = {
    "on Void": strike(Fault.KILL_BROKER, at_s=2.1, lasts_s=3.0),
    "after Void": strike(Fault.KILL_BROKER, at_s=2.1, lasts_s=3.0),
    "after Abort": strike(Fault.KILL_WORKER, at_s=2.2, lasts_s=2.0),
    "after Revoke": strike(Fault.KILL_WORKER, at_s=2.2, lasts_s=2.0),
    "on State": strike(Fault.KILL_WORKER, at_s=2.2, lasts_s=2.0),
    "on Inherit": strike(Fault.LEAVE_WORKER, at_s=2.1, lasts_s=2.0),
    "after Inherit": strike(Fault.LEAVE_WORKER, at_s=2.1, lasts_s=2.0),
    "on Fence": replace(strike(Fault.FREEZE, at_s=2.0, lasts_s=4.0), node="worker-0"),
}
"""What must have happened for a run to come to some moments; without one it comes to all others."""


@pytest.mark.parametrize(("fault", "hook"), HOOKED, ids=str)
def test_a_run_goes_on_wherever_somebody_is_killed(fault: Fault, hook: str) -> None:
    """Between any two lines of a program that matter."""
    first = BEFORE.get(hook, strike(Fault.WIPE_STAGE, at_s=1.7, lasts_s=0.5))
    counters = run(first, strike(fault, at_s=1.0, hook=hook), strike(fault, at_s=2.0, hook=hook))
    assert counters[f"{fault.value} at a hook"] > 0
    assert counters["commit records"] >= CALM.steps


def test_a_process_that_is_started_again_knows_nothing() -> None:
    swarm = struck(strike(Fault.BLACKOUT, lasts_s=2.0))
    before: dict[str, object] = {}
    swarm._later(1.9, lambda: before.update({node.name: node.machine for node in swarm.nodes}))
    down: dict[str, bool] = {}
    swarm._later(2.0, lambda: down.update({node.name: node.machine is NOBODY for node in swarm.nodes}))
    swarm.run()
    assert all(down.values())
    for node in swarm.nodes:
        assert node.life == 3
        assert type(node.machine) is type(before[node.name])
        assert node.machine is not before[node.name]
        if isinstance(node.machine, (WorkerMachine, BrokerMachine)):
            assert node.machine.membership.session > len(swarm.nodes) - 1


@pytest.mark.parametrize(
    ("fault", "hook"), [(Fault.KILL_WORKER, ""), (Fault.KILL_WORKER, "on Job"), (Fault.FREEZE, "")]
)
@pytest.mark.parametrize("name", ["worker-0", "worker-3"])
def test_a_strike_may_name_whom_it_hits(fault: Fault, hook: str, name: str) -> None:
    swarm = struck(replace(strike(fault, hook=hook, lasts_s=4.0), node=name))
    swarm.run()
    left = [record["node"] for record in swarm.disk.records if record["event"] == "leave"]
    assert left == [name]


def test_a_strike_hits_nobody_where_whom_it_names_is_not_of_its_kind() -> None:
    assert run(replace(strike(Fault.KILL_WORKER), node="broker-0"))["kill worker"] == 0


def test_whoever_is_frozen_is_given_up_after_three_heartbeats_of_whatever_length() -> None:
    """Half as long ones halve the time; a schedule that was written down keeps its own."""
    silent_s = []
    for heartbeat_s in (0.5, 1.0):
        frozen = replace(strike(Fault.FREEZE, lasts_s=5.0), node="worker-0")
        calm = Schedule.from_json(replace(CALM, heartbeat_s=heartbeat_s).as_json())
        swarm = struck(frozen, schedule=calm)
        swarm.run()
        silent_s += [record["silent_s"] for record in swarm.disk.records if record["event"] == "leave"]
    assert [round(each / unit, 0) for each, unit in zip(silent_s, (0.5, 1.0), strict=True)] == [3, 3]


def happenings(swarm: Swarm, node: str) -> list[Happening]:
    return [happening for happening in swarm.trace.last if happening.node == node]


@pytest.mark.parametrize(("hook", "is_written"), [(BEFORE_RECORD, False), (AFTER_RECORD, True)])
def test_a_trainer_dies_right_before_or_right_after_a_durable_record(hook: str, *, is_written: bool) -> None:
    """Nobody is told what the record says."""
    swarm = struck(strike(Fault.KILL_TRAINER, at_s=1.5, lasts_s=1.0, hook=hook))
    swarm.run()
    trainer = happenings(swarm, "trainer")
    begins = [h.what.record for h in trainer if isinstance(h.what, Append) and h.what.record["event"] == "start"]
    first, second = (record["generation"] for record in begins)
    assert first == 1 < second
    place = next(i for i, h in enumerate(trainer) if getattr(h.what, "record", None) == begins[1])
    last = trainer[place - 2].what
    assert (isinstance(last, Append) and last.durable) is is_written
    restarted = trainer[place - 1]
    assert restarted.time_s > trainer[place - 2].time_s + 0.9


def test_a_broadcast_is_cut_in_the_middle() -> None:
    swarm = struck(strike(Fault.KILL_TRAINER, at_s=1.5, hook=AMID_SENDS))
    swarm.run()
    assert swarm.counters["kill trainer at a hook"] == 1


def test_a_frozen_process_does_the_rest_of_its_commands_when_it_thaws() -> None:
    """And handles what has come meanwhile, in order: nothing is lost."""
    swarm = struck(strike(Fault.FREEZE, at_s=1.5, lasts_s=2.0, hook=AMID_SENDS, salt=4))
    swarm.run()
    assert swarm.counters["freeze at a hook"] == 1
    gaps = []
    for node in swarm.nodes:
        times_s = [happening.time_s for happening in happenings(swarm, node.name)]
        gaps += [after - before for before, after in pairwise(times_s)]
    assert max(gaps) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("salt", [1, 2])
@pytest.mark.parametrize("at_s", [1.6, 1.8, 2.0, 2.3])
def test_a_worker_that_hangs_is_given_up_and_its_work_is_done_by_others(at_s: float, salt: int) -> None:
    """Whatever it hangs in: a job, a round, an optimizer step. It ends itself, and is started again."""
    swarm = struck(strike(Fault.HANG, at_s=at_s, salt=salt))
    swarm.run()
    assert swarm.counters["hang"] == 1
    assert any(reason.startswith("stuck") for reason in swarm.invariants.history.left.values())
    assert swarm.now_s < 30.0


def test_the_trainer_hears_of_links_that_are_gone() -> None:
    swarm = struck(strike(Fault.KILL_WORKER, at_s=2.0, lasts_s=3.0))
    swarm.run()
    heard = [h.time_s for h in happenings(swarm, "trainer") if isinstance(h.what, Unreachable)]
    assert 2.0 <= heard[0] <= 2.6
    assert swarm.counters["given up: gone"] > 0


def test_a_reset_connection_is_no_death() -> None:
    """The process speaks over another connection before it is given up for the loss of the old one."""
    counters = run(strike(Fault.RESET, at_s=2.0), strike(Fault.RESET, at_s=2.5, salt=7))
    assert counters["reset"] == 2
    assert counters["leave records"] == 0


def test_an_unsynced_record_may_be_lost_with_a_trainer_and_nothing_depends_on_it() -> None:
    lost = 0
    for seed in range(6):
        schedule = replace(CALM, seed=seed, faults=frozenset({Fault.DISK}))
        blows = strike(Fault.KILL_WORKER, at_s=1.8), strike(Fault.KILL_TRAINER, at_s=2.2)
        lost += run(*blows, schedule=schedule)["unsynced records lost"]
    assert lost > 0


def test_who_has_failed_at_a_microbatch_is_not_given_it_again() -> None:
    """One worker fails, begins a new life, and the other does it."""
    schedule = replace(CALM, poisons=(Poison(step=1, microbatch=2, stage=1, num_workers=1),))
    counters = run(schedule=schedule)
    assert counters["jobs that failed"] > 0
    assert counters["commit records"] == CALM.steps


def test_a_run_ends_where_a_microbatch_fails_everywhere_and_says_where() -> None:
    schedule = replace(CALM, poisons=(Poison(step=1, microbatch=2, stage=1, num_workers=99),))
    swarm = struck(schedule=schedule)
    swarm.run()
    end = swarm.disk.records[-1]
    assert (end["event"], end["code"], end["steps"]) == ("finish", 1, 1)
    assert "stage 1" in end["reason"]
    assert "layer 1" in end["reason"]
    assert swarm.invariants.is_poisoned


def test_a_failure_that_others_could_mend_must_not_end_the_run() -> None:
    """The opposite is a violation: what the check for incurable poison would have to let through otherwise."""
    schedule = replace(CALM, poisons=(Poison(step=1, microbatch=2, stage=1, num_workers=1),))
    swarm = struck(schedule=schedule)
    original = swarm.coordinator.handle

    def fragile(event: object, now: float) -> list[object]:
        commands = original(event, now)  # type: ignore[arg-type]
        is_failure = isinstance(event, Received) and type(event.message).__name__ == "Failure"
        end = {"event": "finish", "code": 1, "steps": 1, "reason": "it failed"}
        return [Append(record=end, durable=True)] if is_failure else [*commands]

    swarm.coordinator.handle = fragile  # type: ignore[method-assign, assignment]
    with pytest.raises(Violation, match="I8: the run failed: it failed"):
        swarm.run()


def test_all_is_over_when_the_schedule_says_that_it_is_calm() -> None:
    """Hooks that nobody has come to are taken down; whoever is down, frozen or cut off is so no longer."""
    strikes = (
        strike(Fault.KILL_WORKER, hook="on Stop", at_s=0.5),
        strike(Fault.KILL_BROKER, lasts_s=99.0, at_s=3.0),
        strike(Fault.FREEZE, lasts_s=99.0, at_s=3.0, salt=3),
        strike(Fault.PARTITION, lasts_s=99.0, at_s=3.0),
    )
    swarm = struck(*strikes, schedule=replace(CALM, calm_from_s=5.0, pace=Pace(forward_s=0.5), steps=5))
    found: list[bool] = []

    def look() -> None:
        up = all(node.is_up and node.frozen_at_s is None for node in swarm.nodes)
        found.append(up and not swarm.network.blocked and not swarm.strikes.armed)

    swarm._later(5.1, look)
    swarm.run()
    assert found == [True]


def test_a_stage_that_loses_its_parameters_makes_the_swarm_go_back_to_the_checkpoint() -> None:
    """Nobody has them but the disk: the steps since then are done again, and lead to the same parameters."""
    schedule = replace(CALM, steps=5, checkpoint_every=2)
    counters = run(strike(Fault.WIPE_STAGE, at_s=5.0, lasts_s=1.0), schedule=schedule)
    assert counters["rollback records"] == 1
    assert counters["restores from the checkpoint"] > 0
    assert counters["commit records"] > schedule.steps


def test_a_swarm_without_a_checkpoint_begins_anew() -> None:
    counters = run(strike(Fault.WIPE_STAGE, at_s=2.4, lasts_s=1.0), schedule=replace(CALM, checkpoint_every=0))
    assert counters["rollback records"] == 1
    assert counters["restores by making parameters anew"] > 0


def test_a_pair_that_does_not_reach_each_other_is_parted() -> None:
    """Both reach the trainer, who hears from one of them that the other says nothing."""
    swarm = struck(schedule=replace(CALM, steps=5, pace=Pace(forward_s=0.3)))

    def cut() -> None:
        broker, worker = 1, len(swarm.nodes) - 1
        for pair in ((broker, worker), (worker, broker)):
            swarm.network.blocked[pair] = inf

    swarm._later(2.0, cut)
    swarm.run()
    swarm.network.blocked.clear()
    assert any("do not reach each other" in reason for reason in swarm.invariants.history.left.values())


def test_what_was_meant_for_a_dead_life_does_not_come_to_the_next_one() -> None:
    """The machine of a worker that was killed while a Prepare was on its way never sees that Prepare."""
    swarm = struck(strike(Fault.KILL_WORKER, hook="on Prepare", at_s=1.0, lasts_s=0.0))
    swarm.run()
    for node in swarm.nodes[1:]:
        if node.life > 1 and isinstance(node.machine, WorkerMachine):
            mine = node.machine.membership.session
            asked = [h.what.message for h in happenings(swarm, node.name) if isinstance(h.what, Received)]
            rounds = [message for message in asked if isinstance(message, Prepare)]
            assert rounds
            born_s = next(h.time_s for h in swarm.trace.last if _is_join(h, node.name, mine))
            assert all(mine in message.participants for message in rounds if _at(swarm, message) > born_s)
            return
    pytest.fail("nobody was killed")


def _is_join(happening: Happening, node: str, session: int) -> bool:
    record = getattr(happening.what, "record", {})
    return record.get("event") == "join" and record.get("node") == node and record.get("session") == session


def _at(swarm: Swarm, message: object) -> float:
    return next(h.time_s for h in swarm.trace.last if getattr(h.what, "message", None) is message)


def test_a_trainer_that_is_killed_after_the_end_is_not_needed() -> None:
    """The log says that the run is over; workers that have not heard Stop are none of the run's business."""
    swarm = struck(strike(Fault.KILL_TRAINER, hook="on Stop", at_s=0.5))
    swarm.run()
    trainer = swarm.nodes[0]
    assert trainer.machine is NOBODY
    assert swarm.disk.is_finished
    assert any(isinstance(h.what, Received) and isinstance(h.what.message, Stop) for h in swarm.trace.last)


def test_the_trainers_machine_is_a_coordinator_of_the_next_generation() -> None:
    swarm = struck(strike(Fault.KILL_TRAINER, at_s=2.0), strike(Fault.KILL_TRAINER, at_s=3.2))
    swarm.run()
    machine = swarm.nodes[0].machine
    assert isinstance(machine, Coordinator)
    generations = [record["generation"] for record in swarm.disk.records if record["event"] == "start"]
    assert generations == sorted(set(generations))
    assert machine._settings.generation == generations[-1]
    assert len(generations) == 3
