"""Processes are asked to leave, in the simulator: it costs nothing if there is time, and the run goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.simulation.test_strikes import CALM, strike, struck
from zswarm.ids import NodeId, Role, Stage
from zswarm.limits import DRAIN_S
from zswarm.machine import Exit
from zswarm.simulation.faults import Fault, Strike
from zswarm.simulation.network import Weather
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.symbolic import Pace

BUSY = replace(
    CALM, brokers_per_stage=2, num_microbatches=16, num_held_out=0, pace=Pace(forward_s=0.05), rebalancing="none"
)
"""Steps of about 1.5 s, with two of everybody; nobody is moved because somebody leaves."""


def leave(node: str, at_s: float, lasts_s: float = 4.0, salt: int = 1) -> Strike:
    fault = Fault.LEAVE_WORKER if node.startswith("worker") else Fault.LEAVE_BROKER
    return Strike(fault=fault, at_s=at_s, lasts_s=lasts_s, salt=salt, node=node)


def run_with(*strikes: Strike, schedule: Schedule = BUSY) -> tuple[dict[str, str], dict[str, int]]:
    """Return why who has left, and how often what happened."""
    swarm = struck(*strikes, schedule=schedule)
    swarm.run()
    leaves = [record for record in swarm.disk.records if record["event"] == "leave"]
    return {record["node"]: record["reason"] for record in leaves}, swarm.counters


@pytest.mark.parametrize("node", ["worker-0", "worker-3", "broker-0", "broker-2"])
@pytest.mark.parametrize("at_s", [1.5, 1.7, 2.2, 3.1, 3.6])
def test_whoever_drains_costs_nothing(node: str, at_s: float) -> None:
    """L2 looks at it as well; here it is certain that somebody has left in the middle of a step."""
    reasons, counters = run_with(leave(node, at_s))
    assert reasons == {node: "drained"}
    lossless = ("voids", "jobs done again for a count that was lost", "microbatches admitted again", "abort records")
    assert {name: counters[name] for name in lossless} == dict.fromkeys(lossless, 0)


@pytest.mark.parametrize("at_s", [2.0, 3.0, 4.0])
def test_the_last_worker_of_a_stage_gives_its_state_to_one_of_another_first(at_s: float) -> None:
    """There is no checkpoint: were the state lost, the run would begin anew."""
    one_left = replace(BUSY, checkpoint_every=0, workers_per_stage=1, late_workers=1)
    swarm = struck(leave("worker-0", at_s + 6.0), schedule=replace(one_left, steps=8))
    swarm.run()
    reasons = {r["node"]: r["reason"] for r in swarm.disk.records if r["event"] == "leave"}
    assert reasons["worker-0"] == "drained"
    assert swarm.counters["rollback records"] == 0


MACHINE = replace(
    BUSY,
    workers_per_stage=3,
    num_microbatches=8,
    steps=5,
    checkpoint_every=0,
    weather=Weather(latency_high_s=0.15, payload_factor=5.0),
    calm_from_s=40.0,
)
"""It takes four to six seconds to get a stage's state, and there is no checkpoint."""


@pytest.mark.parametrize("seed", range(12))
def test_a_machine_with_all_workers_of_a_stage_leaves_in_peace(seed: int) -> None:
    """One of the other stage leaves with them, and hears of it last: it was sent to take over, and waited for."""
    nobody = replace(strike(Fault.MOVE), node="nobody")
    swarm = struck(nobody, schedule=replace(MACHINE, seed=seed))
    asked: dict[NodeId, float] = {}

    def leave_all() -> None:
        roster = swarm.coordinator.roster
        if swarm.coordinator.committer.step < 2:
            swarm._later(swarm.now_s + 0.1, leave_all)
            return
        others, mine = (roster.of(Role.WORKER, Stage(stage)) for stage in range(2))
        delays_s = {record.node: 0.02 * place for place, record in enumerate(mine)} | {others[-1].node: 0.2}
        for node in swarm.nodes:
            if (name := NodeId(node.name)) in delays_s:
                asked[name] = swarm.now_s + delays_s[name]
                swarm._later(asked[name], partial(swarm.lives.ask_to_leave, node, node.life))

    swarm._later(1.0, leave_all)
    swarm.run()
    assert swarm.counters["rollback records"] == 0
    left_at_s = {
        NodeId(happening.node): happening.time_s
        for happening in swarm.trace.last
        if isinstance(happening.what, Exit) and happening.node in asked
    }
    assert max(left_at_s[name] - asked[name] for name in asked) < DRAIN_S


def test_whoever_cannot_end_in_time_goes_all_the_same_and_is_redone() -> None:
    """Nobody else can do the stage's jobs and nobody can be moved, so that the step does not end."""
    alone = replace(
        BUSY, workers_per_stage=1, num_microbatches=8, pace=Pace(forward_s=4.0), steps=1, checkpoint_every=0
    )
    leaves = replace(leave("worker-0", 20.0), lasts_s=12.0)  # before it is started again its last word has come
    reasons, counters = run_with(leaves, schedule=replace(alone, calm_from_s=40.0))
    assert reasons["worker-0"].startswith("asked to leave, ")
    assert counters["commit records"] == 1


def test_leaves_and_losses_at_once() -> None:
    """Weather and a frozen trainer while half of the swarm leaves."""
    bad = replace(BUSY, weather=Weather(loss=0.1, duplication=0.2, straggling=0.05, straggle_s=1.0, fair_from_s=16.0))
    strikes = (
        leave("worker-0", 1.6),
        leave("broker-1", 1.8),
        leave("worker-2", 2.0),
        strike(Fault.FREEZE, at_s=1.9, lasts_s=2.0),
    )
    for seed in range(10):
        run_with(*strikes, schedule=replace(bad, seed=seed))
