"""The way from one process to another is cut for good, and everything else goes on as before: the run ends all the same.

Partitions of the random schedules heal; what waits for that would never be found by them.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from tests.simulation.storms import CALM
from zswarm.simulation.faults import Fault
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.trace import Trace

CUT_AT_S = 3.0
SCHEDULE = replace(
    CALM, num_microbatches=12, faults=frozenset({Fault.PARTITION}), checkpoint_every=0, calm_from_s=CUT_AT_S + 60.0
)
"""Two stages with two brokers and two workers each, and the trainer."""
NAMES = ("trainer", *(f"{role}-{index}" for role in ("broker", "worker") for index in range(4)))


def cut(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Run it to its end; returns who was given up after the cut, and why."""
    swarm = Swarm(SCHEDULE, Trace())
    numbers = {node.name: node.number for node in swarm.nodes}
    assert set(numbers) == set(NAMES)
    before: list[int] = []

    def strike() -> None:
        before.append(len(swarm.disk.records))
        for one, other in pairs:
            swarm.network.blocked[numbers[one], numbers[other]] = inf

    swarm._later(CUT_AT_S, strike)
    swarm.run()
    leaves = [record for record in swarm.disk.records[before[0] :] if record["event"] == "leave"]
    return [(record["node"], record["reason"]) for record in leaves]


@pytest.mark.parametrize("one", NAMES)
def test_one_that_does_not_reach_one_other_stops_nothing(one: str) -> None:
    """The trainer hears of it from one of them, and parts them, if they have anything to say to each other."""
    given_up = [reason for other in NAMES if other != one for _, reason in cut({(one, other)})]
    assert any(reason.startswith(("cut off: ", "silent for ")) for reason in given_up)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("way", ["there", "back", "both"])
def test_one_that_is_cut_off_from_everybody_is_given_up(name: str, way: str) -> None:
    others = set(NAMES) - {name}
    pairs = {(name, other) for other in others} if way != "back" else set()
    pairs |= {(other, name) for other in others} if way != "there" else set()
    assert {node for node, _ in cut(pairs)} == {name}


def test_who_does_not_hear_the_trainer_is_told_from_who_is_silent() -> None:
    assert cut({("trainer", "broker-1")})[0] == ("broker-1", "cut off: it does not hear the trainer")
    assert cut({("broker-1", "trainer")})[0][1].startswith("silent for 3.")
