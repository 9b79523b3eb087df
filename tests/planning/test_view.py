from __future__ import annotations

from tests.letters import broker_heartbeat, heartbeat, register
from zswarm.ids import Address, Role
from zswarm.planning.placement import place
from zswarm.planning.priced import PricedPlanner
from zswarm.planning.view import Move, StageView, SwarmView, WorkerView
from zswarm.trainer.roster import Roster

AT = Address("sim://link")


def test_a_roster_says_all_that_a_view_of_workers_and_queues_has():
    """Stage 0 has three workers, two of which report, and stage 1 a slow one and 5 jobs that wait."""
    roster = Roster(num_stages=2, first_session=1)
    for number, (stage, job_s) in enumerate([(0, 0.5), (1, 2.0), (0, None), (0, 1.5)], start=1):
        record, _ = roster.register(register(f"w{number}", nonce=number, role=Role.WORKER, stage=stage), AT, 0.0)
        if job_s is not None:
            record.note(heartbeat(number, 1, job_s=job_s, pending=0b11), 1.0)
    broker, _ = roster.register(register("b1", nonce=1, role=Role.BROKER, stage=1), AT, 0.0)
    broker.note(broker_heartbeat(broker.session, active=0b11111), 1.0)
    view = SwarmView(
        workers=tuple(
            WorkerView(
                session=r.session,
                stage=r.stage,
                is_ready=r.is_ready,
                job_s=r.job_s,
                num_pending=r.pending.bit_count(),
            )
            for r in roster.workers()
        ),
        stages=tuple(
            StageView(
                cost=1.0,
                state_bytes=1000,
                num_queued=sum(b.pending.bit_count() for b in roster.of(Role.BROKER, stage)),
            )
            for stage in range(2)
        ),
        bandwidth_bytes_per_s=1e6,
        residence_s=3600.0,
    )
    assert [worker.job_s for worker in view.workers] == [0.5, 2.0, 0.0, 1.5]
    assert [worker.is_ready for worker in view.workers] == [True, True, False, True]
    assert [worker.num_pending for worker in view.workers] == [2, 2, 0, 2]
    assert [stage.num_queued for stage in view.stages] == [0, 5]
    assert place(view) == 1
    assert PricedPlanner().plan(view, 0.0) == [Move(session=1, source=0, target=1)]
