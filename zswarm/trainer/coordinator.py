"""The coordinator: the single authority over a run, inside the trainer.

Theory of operation.

    GATHERING --enough workers and brokers--> TRAINING --last commit, last evaluation--> COLLECTING
        |                                        |                                           |
        +------- failure, interruption ----------+------------------ parameters here --------+--> CLOSING --> out

It issues sessions and views (`roster`), lets microbatches in (`admission`), derives from the workers'
reports what has been counted where and decides each optimizer step once for all stages (`commit`), and
fetches the final parameters (`collection`). It holds no parameters and is off the data path but for
token ids and losses. As the producer of stage 0 it has an outbox like any worker.

Repeated until true: Welcome to every Register, View to whoever has an older one, Prepare, Commit, Pull,
Attach, Stop. Ignored on purpose: sessions that it has not issued.
"""

from __future__ import annotations

from enum import Enum

from zswarm import ledger, limits
from zswarm.errors import RunFailed
from zswarm.ids import (
    TRAINER,
    Attempt,
    Direction,
    Purpose,
    RejectCode,
    Role,
    Stage,
)
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.membership import Header
from zswarm.messages import (
    Ack,
    Attach,
    BrokerHeartbeat,
    Credit,
    Evaluated,
    Failure,
    Forward,
    HeartbeatAck,
    Load,
    Message,
    Nack,
    Prepared,
    Register,
    Reject,
    State,
    Stop,
    View,
    Welcome,
    WorkerHeartbeat,
    key_fields,
)
from zswarm.outbox import Outbox
from zswarm.trainer.admission import Admission
from zswarm.trainer.collection import Collection
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import (
    Append,
    CoordinatorSettings,
    EvaluationDone,
    Interrupted,
    Sample,
    Sampled,
    StepDone,
    Store,
)
from zswarm.wiring import Random, make_wiring

Event = Received | Tick | Sampled | Interrupted
Command = Send | Sample | Append | Store | StepDone | EvaluationDone | Exit

STOP_HEARTBEATS = 0.25
"""Between two repetitions of Stop while the run is closing."""
CLOSING_HEARTBEATS = 1.0
"""How long the end waits for processes to say that they have stopped."""


class Phase(Enum):
    """See the picture."""

    GATHERING = "gathering"
    TRAINING = "training"
    COLLECTING = "collecting"
    CLOSING = "closing"


class Coordinator:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, *, random: Random) -> None:
        self._settings = settings
        self._header: Header = {"run": settings.run, "generation": settings.generation, "session": TRAINER}
        self.phase = Phase.GATHERING
        self.roster = Roster(num_stages=settings.num_stages, first_session=settings.first_session)
        self.committer = Committer(settings, self.roster, self._header)
        self.admission = Admission(settings)
        self.outbox = Outbox(
            wiring=make_wiring(settings.wiring, random), resend_s=limits.RESEND_HEARTBEATS * settings.heartbeat_s
        )
        self._collection: Collection | None = None
        self._beat_at_s = float("-inf")
        self._exit: Exit | None = None
        self._close_at_s = float("inf")

    # -- the machine's interface ---------------------------------------------------------------------

    def next_deadline_s(self) -> float:
        """Return when something is to be repeated."""
        resend_at_s = self.outbox.next_deadline_s() if self._exit is None else None
        return min(self._beat_at_s, self._close_at_s, resend_at_s if resend_at_s is not None else float("inf"))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        try:
            return self._handle(event, now)
        except RunFailed as error:
            return self._close(Exit(code=1, text=str(error)), now)

    def _handle(self, event: Event, now: float) -> list[Command]:
        commands: list[Command] = []
        match event:
            case Received():
                commands += self._received(event, now)
            case Sampled():
                commands += self._sampled(event, now)
            case Interrupted():
                commands += self._close(Exit(code=130, text="interrupted"), now)
            case Tick():
                pass
        if now >= self._beat_at_s:
            commands += self._beat(now)
        if self._exit is not None:
            return commands + self._leave_if_alone(now)
        commands += self.outbox.resend_due(now)
        return commands + self._advance(now)

    def _advance(self, now: float) -> list[Command]:
        """Do whatever has become possible."""
        settings = self._settings
        commands: list[Command] = []
        if self.phase is Phase.GATHERING and self.roster.has(
            workers=settings.workers_per_stage, brokers=settings.brokers_per_stage
        ):
            self.phase = Phase.TRAINING
            commands.append(Append(record=self._start_record(), durable=True))
        if self.phase is Phase.TRAINING:
            commands += self.committer.consider()
            commands += self._commit(now)
            commands += self.admission.admit(step=self.committer.step, window=self._window())
            if self.committer.step == settings.steps and self.admission.is_evaluated(self.committer.step):
                commands += self._collect()
        if self._collection is not None and self._collection.is_complete:
            commands += self._close(Exit(code=0, text="all steps are done"), now)
        return commands

    def _window(self) -> int:
        return self._settings.window or limits.PREFETCH * sum(1 for _ in self.roster.workers())

    def _start_record(self) -> dict[str, object]:
        settings = self._settings
        return {
            "event": "start",
            "run": f"{settings.run:016x}",
            "generation": settings.generation,
            "stages": settings.num_stages,
            "split": list(settings.layers_per_stage),
            "workers": [len(self.roster.of(Role.WORKER, Stage(s))) for s in range(settings.num_stages)],
            "brokers": [len(self.roster.of(Role.BROKER, Stage(s))) for s in range(settings.num_stages)],
            "steps": settings.steps,
            "num_microbatches": settings.num_microbatches,
        }

    # -- messages ------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Command]:
        message = event.message
        if isinstance(message, Register):
            return self._register(message, event, now)
        record = self.roster.records.get(message.session)
        if record is None or message.run != self._settings.run:
            return []
        record.heard_at_s = now
        if record.refusal:
            reject = Reject(**self._header, code=RejectCode.NOT_NEEDED, text=record.refusal)
            return [Send(peer=event.peer, message=reject)]
        match message:
            case WorkerHeartbeat():
                record.peer = event.peer
                return self._heartbeat(record, message)
            case BrokerHeartbeat():
                record.peer, record.sent_bytes = event.peer, max(record.sent_bytes, message.sent_bytes)
                return [*self._answer(record, message.view)]
            case Prepared() if self._exit is None:
                return [*self.committer.prepared(message)]
            case Evaluated():
                return self._evaluated(message, event)
            case Ack():
                return [*self.outbox.acknowledge(message, now)]
            case Nack():
                return [*self.outbox.refuse(message, now)]
            case Credit():
                return [*self.outbox.update_room(message.session, message.room, now)]
            case State() if self._collection is not None:
                return [*self._collection.received(message, Load(parcel=message.parcel, frames=event.frames))]
            case Failure():
                where = f"stage {message.stage}" + (f", {message.layer}" if message.layer else "")
                raise RunFailed(f"{record.node} ({where}): {message.text}")
            case Stop():
                if self._exit is None:
                    raise RunFailed(f"{record.node} (stage {record.stage}) has left; what it had counted is lost")
                record.has_left = True
                return []
            case _:
                return []

    def _register(self, message: Register, event: Received, now: float) -> list[Command]:
        settings = self._settings
        if (reason := self._refusal(message)) is not None:
            code, text = reason
            return [Send(peer=event.peer, message=Reject(**self._header, code=code, text=text))]
        record, is_new = self.roster.register(message, event.peer, now)
        welcome = Welcome(
            **self._header,
            branch=self.committer.branch,
            step=self.committer.step,
            yours=record.session,
            stage=record.stage,
            num_stages=settings.num_stages,
            heartbeat_s=settings.heartbeat_s,
            unit_bytes=settings.unit_bytes[record.stage],
            wiring=settings.wiring,
            size_bytes=len(settings.configuration),
        )
        commands: list[Command] = [Send(peer=event.peer, message=welcome, frames=(settings.configuration,))]
        if is_new:
            join = {
                "event": "join",
                "node": record.node,
                "role": record.role.value,
                "session": record.session,
                "stage": record.stage,
            }
            commands += [Append(record=join), *self._view_changed(now)]
        return commands

    def _refusal(self, message: Register) -> tuple[RejectCode, str] | None:
        if message.run not in (0, self._settings.run):
            return RejectCode.WRONG_RUN, f"this trainer runs {self._settings.run:016x}, not {message.run:016x}"
        num_addresses = 1 if message.role is Role.WORKER else 2
        if len(message.addresses) != num_addresses:
            return RejectCode.WRONG_RUN, f"a {message.role.value} has {num_addresses} addresses"
        if (before := self.roster.known(message)) is not None:
            return (RejectCode.NOT_NEEDED, before.refusal) if before.refusal else None
        if message.role is Role.WORKER and self.committer.step > 0:
            text = f"the run is at step {self.committer.step}: workers can join until the first step is committed"
            return RejectCode.NOT_NEEDED, text
        if self.phase in (Phase.COLLECTING, Phase.CLOSING):
            return RejectCode.NOT_NEEDED, "the run is over"
        if self.roster.is_full(message.role):
            text = f"the run has all the {message.role.value}s that it can have: {limits.MAX_PARTICIPANTS} per stage"
            return RejectCode.FULL, text
        return None

    def _heartbeat(self, record: Record, message: WorkerHeartbeat) -> list[Command]:
        commands: list[Command] = [*self._answer(record, message.view)]
        record.sent_bytes = max(record.sent_bytes, message.sent_bytes)
        if self._exit is None and record.note(message):
            if record.is_ready:
                self.committer.check_replica(record)
            commands += self.committer.reported(record)
            if record.stage == 0:
                self.admission.counted(record.version[1], record.ledger)
        return commands

    def _answer(self, record: Record, view: int) -> list[Send]:
        if self._exit is not None:
            return [Send(peer=record.peer, message=Stop(**self._header))]
        if view < self.roster.view:
            return [self._view(record)]
        return [Send(peer=record.peer, message=HeartbeatAck(**self._header, view=self.roster.view))]

    def _view(self, record: Record) -> Send:
        message = View(
            **self._header,
            branch=self.committer.branch,
            step=self.committer.step,
            view=self.roster.view,
            size_bytes=0,
        )
        return Send(peer=record.peer, message=message, frames=self.roster.members())

    def _view_changed(self, now: float) -> list[Command]:
        """Tell everybody; adopt the brokers of stage 0."""
        brokers = self.roster.of(Role.BROKER, Stage(0))
        self.outbox.set_brokers({b.session: b.addresses[1] for b in brokers})
        views = [self._view(record) for record in self.roster.records.values() if not record.has_left]
        return [*views, *self._attach(), *self.outbox.flush(now)]

    def _attach(self) -> list[Send]:
        brokers = self.roster.of(Role.BROKER, Stage(0))
        return [Send(peer=broker.addresses[1], message=Attach(**self._header)) for broker in brokers]

    # -- microbatches --------------------------------------------------------------------------------

    def _sampled(self, event: Sampled, now: float) -> list[Command]:
        key = (self.committer.branch, event.step, event.purpose, event.microbatch, Attempt(0))
        message = Forward(**self._header, **key_fields(key), route=(), parcel=event.load.parcel)
        return [*self.outbox.put_forward(message, event.load.frames, now)]

    def _evaluated(self, message: Evaluated, event: Received) -> list[Command]:
        ack = Ack(**self._header, **key_fields(message.key), direction=Direction.LOSS, room=None)
        commands: list[Command] = [Send(peer=event.peer, message=ack)]
        if self._exit is not None or message.purpose is not Purpose.EVALUATE:
            return commands
        done = self.admission.evaluated(message)
        if done is not None:
            commands += [Append(record={"event": "evaluation", "step": done.step, "loss": done.loss}), done]
        return commands

    def _commit(self, now: float) -> list[Command]:
        if not self.admission.is_evaluated(self.committer.step):
            return []
        decided = self.committer.decide()
        if decided is None:
            return []
        decision, commands = decided
        self.outbox.drop_before(self.committer.branch, self.committer.step)
        self.admission.counted(decision.step, ledger.full(self._settings.num_microbatches))
        done = StepDone(
            step=decision.step,
            loss=decision.loss,
            lr=decision.lr,
            grad_norm=decision.grad_norm,
            num_in_flight=self.admission.num_in_flight,
            workers=tuple(len(self.roster.of(Role.WORKER, Stage(s))) for s in range(self._settings.num_stages)),
        )
        return [*commands, done, *self._send_away_late(now)]

    def _send_away_late(self, now: float) -> list[Command]:
        """Workers that came too late for the round just committed cannot get its parameters."""
        late = [worker for worker in self.roster.workers() if worker.session not in self.committer.members]
        commands: list[Command] = []
        for worker in late:
            reason = f"step {self.committer.step - 1} was committed before this worker was ready"
            self.roster.send_away(worker.session, reason)
            reject = Reject(**self._header, code=RejectCode.NOT_NEEDED, text=reason)
            commands += [
                Append(record={"event": "leave", "node": worker.node, "session": worker.session}),
                Send(peer=worker.peer, message=reject),
            ]
        return commands + self._view_changed(now) if late else []

    # -- the end -------------------------------------------------------------------------------------

    def _collect(self) -> list[Command]:
        self.phase = Phase.COLLECTING
        self._collection = Collection(
            self.roster,
            self._header,
            version=self.committer.version,
            layers_per_stage=self._settings.layers_per_stage,
        )
        return [*self._collection.ask()]

    def _close(self, exit_: Exit, now: float) -> list[Command]:
        if self._exit is not None:
            return []
        self.phase = Phase.CLOSING
        self._collection = None
        self._exit = exit_
        self._close_at_s = now + CLOSING_HEARTBEATS * self._settings.heartbeat_s
        self._beat_at_s = now + STOP_HEARTBEATS * self._settings.heartbeat_s
        record = {"event": "finish", "steps": self.committer.step, "code": exit_.code, "reason": exit_.text}
        return [Append(record=record, durable=True), *self._stop_everybody()]

    def _stop_everybody(self) -> list[Send]:
        stop: Message = Stop(**self._header)
        return [Send(peer=r.peer, message=stop) for r in self.roster.records.values() if not r.has_left]

    def _leave_if_alone(self, now: float) -> list[Command]:
        assert self._exit is not None
        alone = all(record.has_left for record in self.roster.records.values())
        return [self._exit] if alone or now >= self._close_at_s else []

    # -- what is repeated ----------------------------------------------------------------------------

    def _beat(self, now: float) -> list[Command]:
        heartbeat_s = self._settings.heartbeat_s
        if now - self._beat_at_s > heartbeat_s:
            self._excuse_silence(now - self._beat_at_s)
        if self._exit is not None:
            self._beat_at_s = now + STOP_HEARTBEATS * heartbeat_s
            return [*self._stop_everybody()]
        self._beat_at_s = now + heartbeat_s
        self._expect_life(now)
        commands: list[Command] = [*self._attach(), *self.committer.repeat()]
        if self._collection is not None:
            commands += self._collection.ask()
        return commands

    def _excuse_silence(self, stall_s: float) -> None:
        """We ourselves were not running: nobody else is to blame for what we did not hear."""
        if stall_s != float("inf"):
            for record in self.roster.records.values():
                record.heard_at_s += stall_s

    def _expect_life(self, now: float) -> None:
        limit_s = self._settings.silence_heartbeats * self._settings.heartbeat_s
        for record in self.roster.records.values():
            silent_s = now - record.heard_at_s
            if not record.has_left and silent_s > limit_s:
                raise RunFailed(
                    f"{record.node} (stage {record.stage}) has not been heard of for {silent_s:.0f} s; "
                    f"the run ends after step {self.committer.step}"
                )
