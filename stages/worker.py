"""The worker's machine: jobs of its stage, its ledger, and its part in the commit.

Theory of operation.

    REGISTERING --Welcome--> BUILDING --Built--> ACTIVE --Stop--> out
                                                   |  ^
                                  Commit(t): Apply |  | Applied: parameters of t + 1, empty ledger
                                                   v  |
                                                 APPLYING

The compute thread gets one job at a time, so that the order of jobs stays this machine's decision.
Rules (docs/protocol.md): a microbatch is accumulated only if its job says so, the parameters are those
of its step, and it is not in the ledger yet (R1); the snapshot of a round is a copy and its ledger is
the one of Prepare (R5); Commit is applied only to a result that is held (R7); jobs of another step are
refused (R8). While APPLYING nothing else is computed.

Repeated until true: Register; the heartbeat with the whole ledger, or Failure in its place; Ready to the
own brokers; Attach to the own and the next stage's brokers; Prepared until Commit or Abort; outputs until
acknowledged.

Ignored on purpose: Prepare, Abort and Commit of another step than the own; results of rounds that have
been replaced; jobs while the stage is not built.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stages.jobs import HeldJob, Jobs
from stages.participant import Participant, StepState
from stages.tasks import (
    Applied,
    Assembled,
    Build,
    Built,
    Emitted,
    Export,
    Exported,
    Failed,
    Outcome,
    Ran,
    Run,
    Snapshotted,
    Summed,
    Task,
)
from zswarm import ledger, limits
from zswarm.ids import (
    Address,
    JobKind,
    JobStatus,
    Lease,
    NodeId,
    Peer,
    Role,
    Session,
)
from zswarm.machine import REFUSED, Exit, Received, Send, Tick
from zswarm.membership import Membership
from zswarm.messages import (
    Abort,
    Ack,
    Attach,
    Backward,
    Chunk,
    ChunkAck,
    Commit,
    Credit,
    Evaluated,
    Failure,
    Forward,
    Job,
    Load,
    Nack,
    Prepare,
    Pull,
    Ready,
    Reject,
    Result,
    State,
    Stop,
    View,
    Welcome,
    WorkerHeartbeat,
    key_fields,
)
from zswarm.outbox import Outbox
from zswarm.wiring import Random, make_wiring

Event = Received | Tick | Outcome
Command = Send | Task | Exit


class WorkerMachine:
    """See the module."""

    def __init__(
        self,
        *,
        node: NodeId,
        boot_nonce: int,
        addresses: tuple[Address, ...],
        coordinator: Address,
        random: Random,
    ) -> None:
        self.membership = Membership(
            node=node, boot_nonce=boot_nonce, role=Role.WORKER, addresses=addresses, coordinator=coordinator
        )
        self._random = random
        self.jobs = Jobs()
        self.outbox: Outbox | None = None
        self.state = StepState()
        self.participant = Participant(self.membership, self.state, self._report_now)
        self._told_slots = 0
        self._num_jobs = 0
        self._report = 0
        self._parameter_digest = 0
        self._layers = range(0)
        self.is_built = False
        self._running: HeldJob | None = None
        self._running_since_s = 0.0
        self._run_counter = 0
        self._failure: Failure | None = None
        self._pulls: list[tuple[Peer, Pull]] = []
        self._heartbeat_at_s = float("-inf")
        self._own_brokers: dict[Session, tuple[Address, ...]] = {}

    # -- the machine's interface ---------------------------------------------------------------------

    def next_deadline_s(self) -> float:
        """Return when something is to be repeated."""
        parts = (self.outbox, self.participant)
        times = [part.next_deadline_s() for part in parts if part is not None]
        return min(self._heartbeat_at_s, *(at_s for at_s in times if at_s is not None), float("inf"))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        commands: list[Command] = []
        if isinstance(event, Received):
            commands += self._received(event, now)
        elif not isinstance(event, Tick):
            commands += self._outcome(event, now)
        if self.outbox is not None:
            commands += self.outbox.resend_due(now)
        commands += self.participant.repeat(now)
        if now >= self._heartbeat_at_s:
            commands += self._heartbeat(now)
        return commands + self._begin(now)

    # -- messages ------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Command]:
        message = event.message
        if isinstance(message, Welcome):
            return self._welcome(message, event)
        if isinstance(message, Reject):
            return [Exit(code=REFUSED, text=message.text)] if self.membership.is_refused(message) else []
        if self.outbox is None or self.membership.is_foreign(message):
            return []
        match message:
            case View():
                return self._see(message, event, now)
            case Job():
                return self._job(message, event)
            case Ack():
                return [*self.outbox.acknowledge(message, now), *self._ready_if_unblocked()]
            case Nack():
                return [*self.outbox.refuse(message, now)]
            case Credit():
                return [*self.outbox.update_room(message.session, message.room, now), *self._ready_if_unblocked()]
            case Prepare():
                return self.participant.prepare(message, now)
            case Abort():
                return self.participant.abort(message)
            case Commit():
                return self.participant.commit(message)
            case Chunk():
                load = Load(parcel=message.parcel, frames=event.frames)
                return self.participant.chunk(message, load, event.peer, now)
            case ChunkAck():
                return self.participant.acknowledged(message, now)
            case Pull():
                return self._pull(message, event.peer)
            case Stop():
                me = self.membership
                return [Send(peer=me.coordinator, message=Stop(**me.header())), Exit(code=0, text="the run is over")]
            case _:
                return []

    def _welcome(self, message: Welcome, event: Received) -> list[Command]:
        me = self.membership
        if not me.welcome(message):
            return []
        self.state.branch, self.state.step = me.branch, me.step
        wiring = make_wiring(me.wiring, self._random)
        self.outbox = Outbox(wiring=wiring, resend_s=limits.RESEND_HEARTBEATS * me.heartbeat_s)
        configuration = b"".join(bytes(frame) for frame in event.frames)
        return [Build(stage=me.stage, num_stages=me.num_stages, configuration=configuration)]

    def _see(self, message: View, event: Received, now: float) -> list[Command]:
        me = self.membership
        if not me.see(message, event.frames):
            return []
        assert self.outbox is not None
        self._own_brokers = me.brokers(me.stage)
        following = me.brokers(me.stage + 1)
        self.outbox.set_brokers({session: addresses[1] for session, addresses in following.items()})
        homes = {session: addresses[1] for session, addresses in me.brokers(me.stage - 1).items()}
        return [
            *self.outbox.introduce(homes, now),
            *self.outbox.flush(now),
            *self._greet_brokers(),
            *self.participant.view_changed(now),
        ]

    def _job(self, message: Job, event: Received) -> list[Command]:
        if not self.is_built:
            return []
        num_x = message.x.num_frames if message.x else 0
        x = Load(parcel=message.x, frames=event.frames[:num_x]) if message.x else None
        dy = Load(parcel=message.dy, frames=event.frames[num_x:]) if message.dy else None
        if (message.branch, message.step) < self.state.version:
            return self._answer(message, JobStatus.WRONG_STEP)
        known = self.jobs.take(HeldJob(job=message, x=x, dy=dy))
        if known is None:
            return []
        return self._send_control(message.session, replace(known, slots=self._tell_slots()))

    # -- computing -----------------------------------------------------------------------------------

    def _begin(self, now: float) -> list[Command]:
        """Give the compute thread its next job, if it is free to take one."""
        if self._running is not None or self.participant.is_applying or not self.is_built:
            return []
        held = self.jobs.next(self.state.version)
        if held is None:
            return []
        held.begun = True
        job = held.job
        self._running, self._running_since_s = held, now
        self._run_counter += 1
        trains = job.kind in (JobKind.BACKWARD, JobKind.FUSED)
        self.state.accumulating = trains and job.accumulate and not self.state.ledger >> job.microbatch & 1
        return [
            Run(
                lease=Lease(self._run_counter),
                kind=job.kind,
                key=job.key,
                accumulate=self.state.accumulating,
                x=held.x,
                dy=held.dy,
            )
        ]

    def _outcome(self, outcome: Outcome, now: float) -> list[Command]:
        match outcome:
            case Built():
                self.is_built = True
                self._parameter_digest = outcome.parameter_digest
                self._layers = range(outcome.first_layer, outcome.first_layer + outcome.num_layers)
                return [*self._report_now(), *self._greet_brokers()]
            case Emitted() if outcome.lease == self._run_counter and self._running is not None:
                return self._emit_backward(self._running.job, outcome.dx, now)
            case Ran() if outcome.lease == self._run_counter and self._running is not None:
                return self._ran(self._running, outcome, now)
            case Snapshotted() | Summed() | Assembled():
                return self.participant.outcome(outcome, now)
            case Applied():
                return self._applied(outcome)
            case Exported():
                return self._exported(outcome)
            case Failed():
                me = self.membership
                layer, text = _sendable(outcome.layer), _sendable(outcome.text)
                self._failure = Failure(**me.header(), stage=me.stage, layer=layer, text=text)
                return [Send(peer=me.coordinator, message=self._failure)]
            case _:
                return []

    def _ran(self, held: HeldJob, outcome: Ran, now: float) -> list[Command]:
        self._running = None
        accumulated, self.state.accumulating = self.state.accumulating, False
        job = held.job
        commands: list[Command] = []
        if outcome.status is JobStatus.DONE:
            self._num_jobs += 1
            if accumulated:
                self.state.add(job.microbatch, outcome.loss_sum, outcome.num_targets)
                commands += self._report_now()
            if job.kind is JobKind.FORWARD and outcome.y is not None:
                commands += self._emit_forward(job, outcome.y, now)
            if job.kind is JobKind.EVALUATE:
                commands += self._emit_loss(job, outcome, now)
        result = Result(
            **self.membership.header(),
            branch=job.branch,
            step=job.step,
            lease=job.lease,
            status=outcome.status,
            kept=outcome.kept,
            compute_s=outcome.compute_s,
            slots=self._tell_slots(),
        )
        self.jobs.finish(held, result)
        return commands + self._send_control(job.session, result)

    def _emit_forward(self, job: Job, y: Load, now: float) -> list[Command]:
        assert self.outbox is not None
        message = Forward(**self.membership.header(), **key_fields(job.key), route=job.route, parcel=y.parcel)
        return [*self.outbox.put_forward(message, y.frames, now)]

    def _emit_backward(self, job: Job, dx: Load, now: float) -> list[Command]:
        me = self.membership
        assert self.outbox is not None
        if me.stage == 0:
            return []
        home = job.route[me.stage - 1]
        addresses = me.brokers(me.stage - 1).get(home)
        peer = addresses[1] if addresses is not None else None
        message = Backward(**me.header(), **key_fields(job.key), route=job.route, parcel=dx.parcel)
        return [*self.outbox.put_to(peer, message, broker=home, frames=dx.frames, now=now)]

    def _emit_loss(self, job: Job, outcome: Ran, now: float) -> list[Command]:
        me = self.membership
        assert self.outbox is not None
        message = Evaluated(
            **me.header(),
            **key_fields(job.key),
            loss_sum=outcome.loss_sum if math.isfinite(outcome.loss_sum) else None,
            num_targets=outcome.num_targets,
        )
        return [*self.outbox.put_to(me.coordinator, message, broker=Session(0), now=now)]

    def _applied(self, outcome: Applied) -> list[Command]:
        assert self.outbox is not None
        self.participant.applied()
        self._parameter_digest = outcome.parameter_digest
        self.jobs.drop_before(self.state.version)
        self.outbox.drop_before(*self.state.version)
        return [*self._report_now(), *self._ready()]

    # -- state transfer ------------------------------------------------------------------------------

    def _pull(self, message: Pull, peer: Peer) -> list[Command]:
        """Answer with a range of a layer's state, if it is the state that was asked for."""
        if (message.branch, message.step) != self.state.version or self.participant.is_applying:
            return []
        if message.layer not in self._layers or (peer, message) in self._pulls:
            return []
        if len(self._pulls) >= limits.MAX_PULLS:
            return []
        self._pulls.append((peer, message))
        return [Export(part=message.part, layer=message.layer, offset_bytes=message.offset_bytes)]

    def _exported(self, outcome: Exported) -> list[Command]:
        peer, pull = self._pulls.pop(0)
        message = State(
            **self.membership.header(),
            branch=pull.branch,
            step=pull.step,
            part=outcome.part,
            layer=outcome.layer,
            offset_bytes=outcome.offset_bytes,
            total_bytes=outcome.total_bytes,
            parcel=outcome.load.parcel,
        )
        return [Send(peer=peer, message=message, frames=outcome.load.frames)]

    # -- what is repeated ----------------------------------------------------------------------------

    def _heartbeat(self, now: float) -> list[Command]:
        me = self.membership
        self._heartbeat_at_s = now + me.heartbeat_s
        if not me.is_welcome:
            return [me.register()]
        if self._failure is not None:
            return [Send(peer=me.coordinator, message=self._failure)]
        busy_s = now - self._running_since_s if self._running is not None else 0.0
        return [*self._report_now(busy_s), *self._greet_brokers(), *self.participant.send_prepared()]

    def _report_now(self, busy_s: float = 0.0) -> list[Command]:
        """Tell the coordinator everything that it decides from."""
        me = self.membership
        self._report += 1
        message = WorkerHeartbeat(
            **me.header(),
            branch=self.state.branch,
            step=self.state.step,
            stage=me.stage,
            view=me.view,
            report=self._report,
            ready=self.is_built,
            ledger=ledger.to_bytes(self.state.ledger),
            prepared=self.participant.prepared_round,
            busy_s=busy_s,
            num_jobs=self._num_jobs,
            parameter_digest=self._parameter_digest,
        )
        return [Send(peer=me.coordinator, message=message)]

    def _greet_brokers(self) -> list[Command]:
        """Keep the brokers of the own and of the next stage informed of who we are."""
        me = self.membership
        if not self.is_built:
            return []
        attach = Attach(**me.header())
        works = [a[1] for a in self._own_brokers.values()] + [a[1] for a in me.brokers(me.stage + 1).values()]
        return [*(Send(peer=work, message=attach) for work in works), *self._ready()]

    def _slots(self) -> int:
        """Leases that each broker may have out here; none while outputs pile up."""
        assert self.outbox is not None
        return limits.PREFETCH if self.outbox.num_waiting < limits.OUTBOX_LENGTH else 0

    def _tell_slots(self) -> int:
        self._told_slots = self._slots()
        return self._told_slots

    def _ready(self) -> list[Command]:
        slots = self._tell_slots()
        return [
            Send(
                peer=addresses[0],
                message=Ready(
                    **self.membership.header(),
                    branch=self.state.branch,
                    step=self.state.step,
                    slots=slots,
                    held=self.jobs.of(broker)[: limits.MAX_LEASES_PER_WORKER],
                ),
            )
            for broker, addresses in self._own_brokers.items()
        ]

    def _ready_if_unblocked(self) -> list[Command]:
        """Say so when the outbox has room again."""
        return self._ready() if self._slots() > self._told_slots else []

    def _answer(self, job: Job, status: JobStatus) -> list[Command]:
        """Refuse a job without having touched it."""
        result = Result(
            **self.membership.header(),
            branch=self.state.branch,
            step=self.state.step,
            lease=job.lease,
            status=status,
            kept=False,
            compute_s=0.0,
            slots=self._tell_slots(),
        )
        return self._send_control(job.session, result)

    def _send_control(self, broker: Session, result: Result) -> list[Command]:
        addresses = self._own_brokers.get(broker)
        return [Send(peer=addresses[0], message=result)] if addresses is not None else []


def _sendable(text: str) -> str:
    """Return what of a text fits a header that has two of them; a path may hold what is no character."""
    return text.encode(errors="replace")[: limits.MAX_TEXT_CHARS].decode(errors="ignore")
