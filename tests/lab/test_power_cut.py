"""A run on machines of a laboratory outlives one of them."""

from __future__ import annotations

import pytest

from tests.lab.ground import why_not
from tests.lab.swarm import TRAINER, RunShape, site
from zswarm.audit import audit

OBSTACLE = why_not()
pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    pytest.mark.xdist_group("lab"),
]
DEADLINE_S = 90.0
"""Far more than anything here takes; it only turns a hang into a failure."""
SMALL = RunShape(stages=1, global_batch=8, microbatch=2, seed=5, d_model=32, num_layers=2)


def test_a_run_goes_on_after_a_power_cut(site_of_three):
    """Nobody is told of it: the machine just falls silent. What it had counted of the step is done by others."""
    site, machines = site_of_three
    run = site.train(site.lab.machine(TRAINER), "run", SMALL, workers=len(machines))
    joined = [site.join(machine) for machine in machines]
    run.wait_for_steps(2, within_s=DEADLINE_S)
    victim = machines[-1]
    (session,) = run.sessions_of(victim)
    victim.cut()
    victim.kill()

    def has_left():
        return any(seen.record["session"] == session for seen in run.history.of("leave"))

    run.wait(has_left, what="the machine is given up", within_s=DEADLINE_S)
    run.wait_for_steps(2, within_s=DEADLINE_S)
    last = run.commits()[-1]
    assert last.sessions
    assert session not in last.sessions
    run.end()
    assert all(check.is_passed for check in audit(run.out))
    assert [command.interrupt() for command in joined[:-1]] == [130, 130]


@pytest.fixture
def site_of_three():
    with site() as made:
        yield made, [made.lab.machine(f"lab{index}", rate_mbit=200.0) for index in range(3)]
