"""The coordinator: the single authority over a run, inside the trainer.

Theory of operation.

    GATHERING --enough workers and brokers--> TRAINING --last commit, last evaluation--> COLLECTING
        |                                     ^  |  ^                                     |   |
        |            a stage is lost: go back +--+  +----- a stage is lost: go back ------+   |
        |                                        |                                            |
        +------- failure, interruption ----------+---------------- the model is safe ---------+--> CLOSING --> out

It issues sessions and views (`roster`, `reception`), gives up who is silent, gone, stuck or cut off
(`judgement`), lets microbatches in, and once more where they got lost (`supply`), derives from the workers'
reports what has been counted where and decides each optimizer step once for all stages (`commit`), tells
workers where their state is and goes back to a checkpoint where nobody has it (`restores`), and takes
checkpoints (`archive`). It holds no parameters and is off the data path but for token ids and losses.

Repeated until true: Welcome to every Register, View to whoever has an older one, Fence to whatever a session
says that is not in the roster, Void, Restore, Prepare, Commit, Pull, Attach, Stop. Whoever asks to leave is let go when
that loses nothing (`departures`), workers are moved between two steps (`moves`). What it must not forget is
in the log before anybody is told: sessions, commits, rollbacks, and that a generation has begun.
"""

from __future__ import annotations

from zswarm.errors import INTERRUPTED, RunFailed
from zswarm.ids import TRAINER, Leaving, Role, Session, Stage, Step
from zswarm.machine import Exit, Received, Send, Tick
from zswarm.membership import Header
from zswarm.messages import (
    Ack,
    BrokerHeartbeat,
    Credit,
    Evaluated,
    Failure,
    Fence,
    Load,
    Move,
    Nack,
    Prepared,
    Pull,
    Register,
    Reject,
    State,
    Stop,
    WorkerHeartbeat,
)
from zswarm.outbox import Outbox
from zswarm.trainer.admission import Admission
from zswarm.trainer.archive import Archive
from zswarm.trainer.commit import Committer
from zswarm.trainer.departures import DRAINED, Departures
from zswarm.trainer.failures import Failures
from zswarm.trainer.judgement import Judge
from zswarm.trainer.log_lines import start_record
from zswarm.trainer.moves import Moves, Relocation, move_record
from zswarm.trainer.phases import (
    ALERT_HEARTBEATS,
    CLOSING_HEARTBEATS,
    PING_HEARTBEATS,
    STOP_HEARTBEATS,
    Phase,
)
from zswarm.trainer.rebalancing import Rebalancer
from zswarm.trainer.reception import Reception, dismissal, join_record
from zswarm.trainer.restores import Restorer
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import (
    Append,
    Behind,
    CaughtUp,
    CoordinatorSettings,
    EvaluationDone,
    Forsake,
    Interrupted,
    Read,
    Sample,
    Sampled,
    Seal,
    Sealed,
    StepDone,
    Store,
    Unreachable,
    WasRead,
)
from zswarm.trainer.supply import Supply
from zswarm.wiring import Random

Event = Received | Tick | Sampled | Interrupted | Unreachable | Sealed | WasRead | Behind | CaughtUp
Command = Send | Sample | Append | Store | Seal | Forsake | Read | StepDone | EvaluationDone | Exit

SIGNS_OF_LIFE = (WorkerHeartbeat, BrokerHeartbeat, Failure, Stop)
"""What comes over the link that the trainer answers on: who is heard only as a broker of stage 0 may never hear it."""


class Coordinator:
    """See the module."""

    def __init__(self, settings: CoordinatorSettings, *, random: Random) -> None:
        self._settings = settings
        self._header: Header = {"run": settings.run, "generation": settings.generation, "session": TRAINER}
        self.phase = Phase.GATHERING
        self.roster = Roster(num_stages=settings.num_stages, first_session=settings.first_session)
        self.committer = Committer(settings, self.roster, self._header)
        self.reception = Reception(settings, self.roster, self.committer, self._header)
        self.supply = Supply(settings, self.roster, self.committer, self._header, random=random)
        self.judge = Judge(
            self.roster, self.committer, num_stages=settings.num_stages, heartbeat_s=settings.heartbeat_s
        )
        self.archive = Archive(settings, self.roster, self._header)
        self.restorer = Restorer(self.roster, self.committer, self._header, heartbeat_s=settings.heartbeat_s)
        self.departures = Departures(settings, self.roster, self.committer, self.restorer, self.archive, self._header)
        self.moves = Moves(self.roster, self.committer, self.archive, self._header, steps=settings.steps)
        self.rebalancer = Rebalancer(settings, self.roster, self.committer, self.moves)
        self._failures = Failures(self.roster, self.committer, workers_per_stage=settings.workers_per_stage)
        self._is_stirred = True
        """Something has happened that may leave a worker without its state or a microbatch without anybody."""
        self._alert_until_s = float("-inf")
        """After a loss every report is looked at, not only every heartbeat."""
        self._has_begun = False
        self._num_beats = 0
        self._beat_at_s = float("-inf")
        self._exit: Exit | None = None
        self._close_at_s = float("inf")

    @property
    def admission(self) -> Admission:
        """What is in the pipeline."""
        return self.supply.admission

    @property
    def outbox(self) -> Outbox:
        """What is on its way to stage 0."""
        return self.supply.outbox

    # -- the machine's interface ---------------------------------------------------------------------

    def next_deadline_s(self) -> float:
        """Return when something is to be repeated."""
        if self._exit is not None:
            return min(self._beat_at_s, self._close_at_s)
        deadline_s = min(self._beat_at_s, self.judge.next_deadline_s())
        resend_at_s = self.outbox.next_deadline_s()
        return deadline_s if resend_at_s is None else min(deadline_s, resend_at_s)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        try:
            return self._handle(event, now)
        except RunFailed as error:
            return self._close(Exit(code=1, text=str(error)), now)

    def _handle(self, event: Event, now: float) -> list[Command]:
        commands = self._begin(now) if not self._has_begun else []
        if now >= self._beat_at_s:
            self._excuse_own_silence(now)
        match event:
            case Received():
                commands += self._received(event, now)
            case Sampled():
                # Nothing is decided between several of them: they are of one moment.
                return [*commands, *self.supply.sampled(event, now)]
            case Interrupted():
                commands += self._close(Exit(code=INTERRUPTED, text="interrupted"), now)
            case Unreachable():
                self._unreachable(event, now)
            case Sealed() | WasRead() | Behind() | CaughtUp() if self._exit is None:
                commands += self.archive.told(event)
        if now >= self._beat_at_s:
            commands += self._beat(now)
        if self._exit is not None:
            return commands + self._leave_if_alone(now)
        commands += self._judge(now)
        commands += self.outbox.resend_due(now)
        return commands + self._advance(now)

    def _begin(self, now: float) -> list[Command]:
        """Write down that this generation has begun, before it says a word."""
        self._has_begun = True
        settings, recovered = self._settings, self._settings.recovered
        if recovered is not None:
            for member in recovered.members:
                self.roster.take_over(member, now)
            for node, place in recovered.moves.items():
                self.roster.want(node, *place)
            self.supply.take_up()
            if self.committer.version > (0, 0):
                self.phase = Phase.TRAINING
                self.rebalancer.begin(now)
            self.roster.note_loss(now)
            self._alert(now)
        records = [Append(record=start_record(settings), durable=True)]
        if (found := settings.checkpoint) is not None and (recovered is None or recovered.checkpoint != found):
            # It was complete before the log could say so.
            record = {"event": "checkpoint", "branch": found[0], "step": found[1]}
            records.append(Append(record=record, durable=True))
        # Whoever an earlier generation knew is told at once: up to a heartbeat may pass before it speaks by itself.
        views = [self.reception.view(record) for record in self.roster.records.values()]
        return [*records, *views, *self.supply.adopt_brokers(now)]

    def _advance(self, now: float) -> list[Command]:
        """Do whatever has become possible."""
        settings = self._settings
        commands: list[Command] = []
        if self.phase is Phase.GATHERING and self.roster.has(
            workers=settings.workers_per_stage, brokers=settings.brokers_per_stage
        ):
            self.phase = Phase.TRAINING
            self.rebalancer.begin(now)
        if self.phase is Phase.TRAINING:
            commands += self.committer.consider()
            commands += self._commit(now)
            if self._is_stirred or now < self._alert_until_s:
                commands += self.supply.look(now)
            commands += [*self.supply.replay(), *self.supply.admit(now)]
            if self.committer.step == settings.steps and self.admission.is_evaluated(self.committer.step):
                self.phase = Phase.COLLECTING
                commands += self.archive.begin(self.committer.version, None)
        if not self.departures.are_none:
            commands += self._let_go(now)
        if self.phase is Phase.COLLECTING and self.archive.newest == self.committer.version:
            return commands + self._close(Exit(code=0, text="all steps are done"), now)
        if self._is_stirred or now < self._alert_until_s:
            self._is_stirred = False
            if self.phase is Phase.TRAINING or (self.phase is Phase.COLLECTING and not self.archive.is_sealing):
                commands += self._keep_state(now)
        return commands

    def _alert(self, now: float) -> None:
        self._is_stirred = True
        self._alert_until_s = now + ALERT_HEARTBEATS * self._settings.heartbeat_s

    # -- messages ------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Command]:
        message = event.message
        if isinstance(message, Register):
            return self._register(message, event, now)
        if isinstance(message, Move) and message.run in (0, self._settings.run):
            refusal = "" if self.phase is Phase.TRAINING else f"the run is {self.phase.value}"
            return [self.moves.answer(message, event.peer, refusal=refusal)]
        if message.run != self._settings.run:
            return [*dismissal(message, event.peer)]
        record = self.roster.records.get(message.session)
        if record is None:
            self.departures.overhear(message)
            return [Send(peer=event.peer, message=Fence(**self._header, fenced=message.session))]
        if isinstance(message, SIGNS_OF_LIFE):
            record.heard_at_s, record.is_silent = now, False
        match message:
            case WorkerHeartbeat():
                record.peer, record.gone_at_s = event.peer, None
                return self._heartbeat(record, self.reception.of_this_generation(message), now)
            case BrokerHeartbeat():
                record.peer, record.gone_at_s = event.peer, None
                message = self.reception.of_this_generation(message)
                record.note(message, now)
                self.departures.note(record, now)
                return self._answer(record, message.view)
            case Prepared() if self._exit is None:
                return [*self.committer.prepared(message)]
            case Evaluated() if self._exit is None:
                return [*self.supply.evaluated(message, event.peer, now)]
            case Ack():
                return self._answered(self.outbox.acknowledge(message, now))
            case Nack():
                return self._answered(self.outbox.refuse(message, now))
            case Credit():
                return self._answered(self.outbox.update_room(message.session, message.room, now))
            case State():
                return [*self.archive.received(message, Load(parcel=message.parcel, frames=event.frames))]
            case Pull():
                return [*self.archive.pulled(message, event.peer, self.committer.version)]
            case Failure() if self._exit is None:
                self._failures.note(record, message)
                return []
            case Reject() if self._exit is None:
                return self._give_up(record.session, f"it takes no part: {message.text}", now)
            case Stop():
                if self._exit is None:
                    return self._give_up(record.session, None, now)
                record.has_left = True
                return []
            case _:
                return []

    def _register(self, message: Register, event: Received, now: float) -> list[Command]:
        reject = self.reception.refusal(message, now, is_over=self._exit is not None)
        if reject is not None:
            return [Send(peer=event.peer, message=reject)]
        is_kept_out = self.judge.keeps_out(message, now, is_gathering=self.phase is Phase.GATHERING)
        if self.roster.is_late_copy(message) or is_kept_out:
            return []
        commands: list[Command] = []
        before = self.roster.life_of(message.node)
        if before is not None and before.boot_nonce != message.boot_nonce:
            feud, rejects = self.reception.refuse_both(message, event.peer, before, now)
            commands += [*rejects, *self._give_up(before.session, feud or "it has started again", now)]
            if feud:
                return commands
        place = self.rebalancer.place(message, now) if self.roster.known(message) is None else None
        record, is_new = self.roster.register(message, event.peer, now, place=place)
        if is_new:
            if record.role is Role.WORKER:
                self.rebalancer.joined(record, now)
            commands.append(Append(record=join_record(record), durable=True))
        commands.append(self.reception.welcome(record, event.peer))
        return commands + self._view_changed(now) if is_new else commands

    def _heartbeat(self, record: Record, message: WorkerHeartbeat, now: float) -> list[Command]:
        commands = self._answer(record, message.view)
        before = (record.is_ready, record.version) if record.report else None
        if not record.note(message, now) or self._exit is not None:
            return commands
        self.departures.note(record, now)
        self._is_stirred |= (record.is_ready, record.version) != before
        self.rebalancer.reported(record, now)
        if record.is_ready:
            self.committer.check_replica(record)
        if self.committer.is_conflict(record):
            return commands + self._resolve_conflict(record, now)
        commands += self.committer.reported(record)
        if record.stage == 0 and record.version == self.committer.version:
            self.admission.counted(record.version[1], record.ledger)
        return commands

    def _answered(self, sends: list[Send]) -> list[Command]:
        """A broker of stage 0 has said something of what is on its way to it."""
        return [*sends, *(self.supply.farewells() if self.outbox.closing else [])]

    def _answer(self, record: Record, view: int) -> list[Command]:
        if self._exit is not None:
            return [Send(peer=record.peer, message=Stop(**self._header))]
        return [*self.reception.answer(record, view)]

    def _view_changed(self, now: float) -> list[Command]:
        """Tell everybody; adopt the brokers of stage 0."""
        return [*self.reception.views(), *self.supply.adopt_brokers(now)]

    # -- steps ---------------------------------------------------------------------------------------

    def _commit(self, now: float) -> list[Command]:
        if not self.committer.is_reducing or not self.admission.is_evaluated(self.committer.step):
            return []
        is_due = self.archive.is_due(Step(self.committer.step + 1))
        decided = self.committer.decide(with_snapshot=is_due, going=self.moves.ordered)
        if decided is None:
            return []
        decision, commands = decided
        self.supply.committed(decision.step)
        self._failures.clear()
        self._is_stirred = True
        done = StepDone(
            step=decision.step,
            loss=decision.loss,
            lr=decision.lr,
            grad_norm=decision.grad_norm,
            num_in_flight=self.admission.num_in_flight,
            workers=tuple(len(self.roster.of(Role.WORKER, Stage(s))) for s in range(self._settings.num_stages)),
        )
        donors = self.committer.donors
        taken = self.archive.begin(self.committer.version, donors) if donors else []
        follows = [done, *taken, *self.rebalancer.committed(now), *self._move(now)]
        # Who is moved does not hear of the commit: it would work in the next step before it hears that it is out.
        stay = {record.peer for record in self.roster.records.values()}
        return [*(c for c in commands if not isinstance(c, Send) or c.peer in stay), *follows]

    def _resolve_conflict(self, worker: Record, now: float) -> list[Command]:
        """Two live workers have counted the same microbatch. The rules make that impossible; this is the second wall."""
        self.supply.replays.demand(worker.ledger)
        return self._give_up(worker.session, "it has counted what another worker has counted", now, may_leave=False)

    # -- coming and going ----------------------------------------------------------------------------

    def _unreachable(self, event: Unreachable, now: float) -> None:
        for record in self.roster.records.values():
            if record.peer == event.peer and record.gone_at_s is None:
                record.gone_at_s = now

    def _judge(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for session, reason in self.judge.verdicts(now):
            if session in self.roster.records:
                commands += self._give_up(session, reason, now)
        return commands

    def _let_go(self, now: float) -> list[Command]:
        """Let those leave who lose nothing by it; see to it that no stage is left by all."""
        commands: list[Command] = [*self.departures.orders(self.supply.replays.newest, now)]
        for session in self.departures.due(is_voiding=self.supply.replays.is_voiding):
            commands += self._give_up(session, DRAINED, now, is_loss=False)
        if self.phase is Phase.TRAINING:
            for relocation in self.departures.successors(now):
                reason = f"moved to stage {relocation.stage}, whose last {relocation.record.role.value} leaves"
                commands += self._relocate(relocation, reason, now)
        return commands

    def _move(self, now: float) -> list[Command]:
        """A step is committed, and nobody has counted anything of the next one: the moment to move workers."""
        commands: list[Command] = []
        for relocation in self.moves.due():
            commands += self._relocate(relocation, f"moved to stage {relocation.stage}", now, is_loss=False)
        return commands

    def _relocate(self, relocation: Relocation, reason: str, now: float, *, is_loss: bool = True) -> list[Command]:
        move = Append(record=move_record(relocation))
        if relocation.problem:
            return [move]
        self.roster.want(relocation.record.node, relocation.record.role, relocation.stage)
        return [move, *self._give_up(relocation.record.session, reason, now, to=relocation.stage, is_loss=is_loss)]

    def _give_up(
        self,
        session: Session,
        reason: str | None,
        now: float,
        *,
        to: Stage | None = None,
        is_loss: bool = True,
        may_leave: bool = True,
    ) -> list[Command]:
        """Take a process out of the swarm: whatever it has counted, not prepared and not left is void. No reason: it goes itself."""
        how = {"is_loss": is_loss, "may_leave": may_leave and not self.supply.replays.is_voiding}
        record, said = self.departures.take_out(session, reason, now, **how)
        if record.role is Role.WORKER:
            is_unwanted = is_loss and reason is not None and record.leaving is Leaving.NO
            self.rebalancer.left(record, now, to=to, is_loss=is_unwanted)
        self._alert(now)
        fences = [self.departures.fence(record, now)] if not record.is_silent else []
        return [*said, *fences, *self._view_changed(now)]

    def _keep_state(self, now: float) -> list[Command]:
        """Tell workers where their state is; go back if nobody has a stage's any more."""
        checkpoint_step = self.archive.step
        stage = self.restorer.lost_stage(now, checkpoint_step=checkpoint_step)
        if stage is not None:
            return self._roll_back(stage, now)
        return [*self.restorer.orders(now, checkpoint_step=checkpoint_step)]

    def _roll_back(self, stage: Stage, now: float) -> list[Command]:
        step, before = self.archive.step or Step(0), self.committer.step
        abandoned = self.archive.roll_back()
        self.committer.roll_back(step)
        record = {
            "event": "rollback",
            "branch": self.committer.branch,
            "step": step,
            "reason": f"stage {stage} has no worker left that holds its parameters of step {before}",
        }
        self.phase = Phase.TRAINING
        self.supply.roll_back(*self.committer.version)
        self.restorer.begin()
        self._failures.clear()
        orders = self.restorer.orders(now, checkpoint_step=self.archive.step)
        return [*abandoned, Append(record=record, durable=True), *self._view_changed(now), *orders]

    # -- the end -------------------------------------------------------------------------------------

    def _close(self, exit_: Exit, now: float) -> list[Command]:
        if self._exit is not None:
            return []
        self.phase = Phase.CLOSING
        self._exit = exit_
        self._close_at_s = now + CLOSING_HEARTBEATS * self._settings.heartbeat_s
        self._beat_at_s = now + STOP_HEARTBEATS * self._settings.heartbeat_s
        record = {"event": "finish", "steps": self.committer.step, "code": exit_.code, "reason": exit_.text}
        return [Append(record=record, durable=True), *self._stop_everybody()]

    def _stop_everybody(self) -> list[Send]:
        return [Send(peer=r.peer, message=Stop(**self._header)) for r in self.roster.records.values() if not r.has_left]

    def _leave_if_alone(self, now: float) -> list[Command]:
        alone = all(record.has_left for record in self.roster.records.values())
        return [self._exit] if self._exit is not None and (alone or now >= self._close_at_s) else []

    # -- what is repeated ----------------------------------------------------------------------------

    def _beat(self, now: float) -> list[Command]:
        heartbeat_s = self._settings.heartbeat_s
        if self._exit is not None:
            self._beat_at_s = now + STOP_HEARTBEATS * heartbeat_s
            return [*self._stop_everybody()]
        self._beat_at_s = now + PING_HEARTBEATS * heartbeat_s
        self._num_beats += 1
        self._is_stirred = True
        if self._num_beats % 2:
            return [*self.reception.pings()]
        repeated = [*self.committer.repeat(), *self.supply.beat(now), *self.archive.beat()]
        copies = self.departures.copies(self.supply.replays.newest, now, waiting=self.rebalancer.waiting(now))
        return [*repeated, *copies, *self.reception.pings()]

    def _excuse_own_silence(self, now: float) -> None:
        """We ourselves were not running: nobody else is to blame for what we did not hear."""
        stall_s = now - self._beat_at_s
        if self._settings.heartbeat_s < stall_s < float("inf"):
            self.roster.excuse(stall_s)
            self.supply.excuse(stall_s)
            self.restorer.excuse(stall_s)
            self.judge.excuse(stall_s)
            self._beat_at_s = now  # the same stall is not excused again by the next event
