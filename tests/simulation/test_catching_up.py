"""Who comes late catches up while steps go on, whatever his donors are at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.worker import WorkerMachine
from tests.simulation.storms import AIMED, CALM
from zswarm.simulation import states
from zswarm.simulation.faults import Fault, Strike
from zswarm.simulation.nodes import Node
from zswarm.simulation.schedule import Schedule
from zswarm.simulation.simulate import run
from zswarm.simulation.swarm import Swarm
from zswarm.simulation.symbolic import Pace
from zswarm.simulation.trace import Trace

LATE, DONOR = "worker-0", "worker-1"


def schedule(back_at_s: float, **of: object) -> Schedule:
    """Two workers of a stage, one of which is killed and started again at once."""
    strike = Strike(fault=Fault.KILL_WORKER, at_s=back_at_s - 0.2, lasts_s=0.2, salt=1, node=LATE)
    base = replace(CALM, workers_per_stage=2, brokers_per_stage=1, rebalancing="none", checkpoint_every=0)
    return replace(base, faults=frozenset({Fault.KILL_WORKER}), strikes=(strike,), calm_from_s=12.0, **of)


class Watched(Swarm):
    """Notes when the late worker is ready again."""

    ready_at_s: float | None = None

    def _handle(self, node: Node, event: object, local_s: float) -> None:
        super()._handle(node, event, local_s)
        machine = node.machine
        is_back = node.name == LATE and self.now_s > self.schedule.strikes[0].at_s + 0.3
        if is_back and self.ready_at_s is None and isinstance(machine, WorkerMachine) and machine.parameters.is_ready:
            self.ready_at_s = self.now_s


@pytest.mark.parametrize(
    ("stages", "layers", "microbatches", "forward_s"),
    [(1, 8, 4, 0.1), (1, 12, 2, 0.3), (2, 24, 8, 0.1), (2, 24, 4, 0.3)],
)
def test_a_donor_that_is_always_at_work_gives_many_layers_between_two_jobs(
    monkeypatch, stages, layers, microbatches, forward_s
):
    """One range per job was no more than the steps of the layers that were there already: it went on for ever."""
    monkeypatch.setattr(states, "STATE_RANGE_BYTES", states.STATE_BYTES)
    drawn = schedule(
        8.2,
        num_stages=stages,
        layers_per_stage=(layers,) * stages,
        num_microbatches=microbatches,
        steps=60,
        pace=Pace(forward_s=forward_s),
    )
    swarm = Watched(drawn, Trace())
    swarm.run()
    assert swarm.ready_at_s is not None
    assert swarm.ready_at_s < 8.2 + 20.0


class LeftAlone(Swarm):
    """The late worker is frozen while it lacks a step; when the checkpoint of the step after it is there its donor dies."""

    is_frozen = has_died = False

    def _handle(self, node: Node, event: object, local_s: float) -> None:
        super()._handle(node, event, local_s)
        late = next(each for each in self.nodes if each.name == LATE)
        if self.has_died or not isinstance(late.machine, WorkerMachine):
            return
        version, loader = self.coordinator.committer.version, late.machine.parameters._loader
        if not self.is_frozen and loader is not None and not loader.is_adopting:
            if any(held is not None and held < version for held in loader._layers.values()):
                self.is_frozen = True
                self.lives.freeze(late)
        elif self.is_frozen and self.coordinator.archive.newest == version:
            self.has_died = True
            donor = next(each for each in self.nodes if each.name == DONOR)
            self._later(self.now_s, lambda: (self.lives.kill(donor), self.lives.thaw(late, late.life)))


def test_whoever_has_half_of_an_earlier_step_gets_the_whole_of_the_checkpoint():
    """The trainer gives layers, and no steps: it was asked for those, and the run stood still for ever."""
    num_alone = 0
    slow = replace(CALM.weather, transmit_s=0.1)  # or all of it would come within a step
    for back_at_s in (5.5, 8.6, 8.7, 8.8, 9.0):
        drawn = schedule(
            back_at_s,
            num_stages=1,
            layers_per_stage=(2,),
            num_microbatches=16,
            steps=20,
            pace=Pace(forward_s=0.04),
            weather=slow,
        )
        swarm = LeftAlone(replace(drawn, checkpoint_every=1), Trace())
        swarm.run()
        assert swarm.counters["commit records"] >= drawn.steps
        num_alone += swarm.has_died
    assert num_alone > 0, "or this would prove nothing"


def test_whoever_comes_late_takes_the_steps_that_it_lacks():
    for seed in range(3):
        report = run(AIMED["one-step-is-all"](seed))
        assert report.violation is None
        assert report.counters["steps given to who came late"] > 0
