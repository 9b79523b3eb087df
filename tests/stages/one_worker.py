"""A worker of the middle of three stages, for tests of its machine."""

from __future__ import annotations

from typing import Any

from stages.tasks import Applied, Apply, Assembled, Built, Ran, Run, Snapshotted, Summed
from stages.worker import WorkerMachine
from tests.letters import broker_at, commit, job, load, of_type, prepare, view, welcome, worker_at
from zswarm.ids import Address, JobKind, JobStatus, NodeId
from zswarm.machine import Received, Tick

TRAINER_AT = Address("sim://trainer")
ME = 21
OWN, OTHER, BEFORE, AFTER = 41, 42, 40, 43
ROUTE = (BEFORE, OWN, AFTER)
MEMBERS = (worker_at(ME, 1), broker_at(OWN, 1), broker_at(OTHER, 1), broker_at(BEFORE, 0), broker_at(AFTER, 2))
CONFIGURATION = (b'{"a"', b": 1}")
F, B, FUSED, EVALUATE = JobKind.FORWARD, JobKind.BACKWARD, JobKind.FUSED, JobKind.EVALUATE


class Fixture:
    """A worker of the middle stage, welcomed, with the view and its stage built."""

    def __init__(self, *, stage: int = 1, built: bool = True, members=MEMBERS, **of: Any) -> None:
        self.now_s = 0.0
        self.machine = new_machine()
        self.get(welcome(ME, stage=stage, **of), frames=CONFIGURATION)
        self.get(view(1), frames=members)
        if built:
            self.build()

    def do(self, event: Any) -> list[Any]:
        return self.machine.handle(event, self.now_s)

    def get(self, message, frames=(), peer=TRAINER_AT):
        return self.do(Received(peer=peer, message=message, frames=frames))

    def build(self, *, job_s: float = 0.5, round_s: float = 0.1):
        return self.do(Built(num_parameters=1, parameter_digest=5, job_s=job_s, round_s=round_s))

    def tick(self, now_s: float):
        self.now_s = now_s
        return self.do(Tick())

    def get_job(self, lease: int, kind: JobKind, microbatch: int, *, broker: int = OWN, **of):
        message = job(broker, lease, kind, microbatch, route=of.pop("route", ROUTE[:2]), **of)
        return self.get(message, frames=(f"{kind.name}{microbatch}",))

    def ran(self, run: Run, *, status: JobStatus = JobStatus.DONE, kept: bool = False, loss_sum: float = 0.0):
        y = load(f"y{run.key[3]}") if run.kind is F else None
        return self.do(
            Ran(lease=run.lease, status=status, y=y, kept=kept, loss_sum=loss_sum, num_targets=1, compute_s=0.5)
        )

    def work(self, lease: int, kind: JobKind, microbatch: int, **of) -> list[Any]:
        """Do one job; returns what follows from its end."""
        (run,) = of_type(self.get_job(lease, kind, microbatch, **of), Run)
        return self.ran(run)

    def step(self, **of: Any) -> list[Any]:
        """Take the optimizer step, with the ledger that there is."""
        state = self.machine.state
        self.reduce(state.step + 1)
        (apply,) = of_type(self.get(commit(state.step + 1, step=state.step, **of)), Apply)
        return self.applied(apply.step)

    def reduce(self, round_: int) -> list[Any]:
        """Go through a round alone."""
        state, session = self.machine.state, self.machine.membership.session
        self.get(prepare(round_, (session,), counted=state.ledger, step=state.step, branch=state.branch))
        self.do(Snapshotted(round=round_, shards=((load("g"),),)))
        self.do(Summed(round=round_, shard=0, chunks=(load("g"),)))
        return self.do(Assembled(round=round_, digest=1, finite=True, square_norm=1.0))

    def applied(self, step: int) -> list[Any]:
        return self.do(Applied(step=step, parameter_digest=6))


def new_machine() -> WorkerMachine:
    return WorkerMachine(
        node=NodeId("worker-0"),
        boot_nonce=1,
        addresses=(Address("sim://worker-0"),),
        coordinator=TRAINER_AT,
        random=lambda: 0.0,
    )
