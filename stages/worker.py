"""The worker's machine: jobs of its stage, its ledger, and its part in the commit.

Theory of operation.

    REGISTERING --Welcome--> has a place --View--> takes part --Stop--> out
         ^                                           |
         +---- Fence, or a job that failed ----------+
               everything counted is void, Reset

What it holds of its stage's parameters is a matter of its own (`parameters.py`) and outlives all this: they were
made by commits, which nobody takes back. It takes jobs if they are those of its version and nothing is
being reset. While a commit is applied nothing else is computed (`participant.py`).

The compute thread gets one job at a time, so that the order of jobs stays this machine's decision; it gets the next one
as soon as dx is out, and has the weights' gradients left for when nothing waits.
Rules (docs/protocol.md): a microbatch is accumulated only if its job says so and is meant for this session, the
parameters are those of its step, and it is not in the ledger yet (R1); a fenced session contributes nothing (R3); what
a Void covers is not begun (R9); the snapshot of a round is a copy and its ledger is the one of Prepare (R5); Commit
is applied only to a result that is held (R7); jobs of another step are refused (R8).

Repeated until true: Register; the heartbeat with the whole ledger, or Failure in its place; Ready to the
own brokers; Attach to the own and the next stage's brokers; Prepared until Commit or Abort; Pull until State; outputs
until acknowledged.

Ignored on purpose: Prepare, Abort and Commit of another step than the own; results of rounds that have
been replaced; outcomes of jobs that are void; Restore while the parameters are being put in place; jobs while the stage
is not built.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from stages.departure import Departure
from stages.greetings import Greetings
from stages.jobs import Jobs
from stages.outputs import Outputs
from stages.parameters import Parameters
from stages.participant import Participant, StepState
from stages.reports import Reports, sendable
from stages.tasks import (
    Adopted,
    Applied,
    Assembled,
    Broken,
    Built,
    Emitted,
    Exported,
    Failed,
    Imported,
    Outcome,
    Ran,
    Reset,
    ShareTaken,
    Snapshotted,
    Summed,
    Task,
    Unfit,
    WasReset,
)
from stages.work import Work
from zswarm import limits
from zswarm.errors import BROKEN, HANGS, REFUSED
from zswarm.ids import TRAINER, Address, Generation, JobStatus, NodeId, RejectCode, Role, Session, StatePart
from zswarm.machine import ASKED, Exit, Health, Leave, Received, Send, Tick
from zswarm.membership import Membership
from zswarm.messages import (
    Abort,
    Ack,
    Chunk,
    ChunkAck,
    Commit,
    Credit,
    Drained,
    Fence,
    HeartbeatAck,
    Inherit,
    Job,
    Load,
    Member,
    Nack,
    Prepare,
    Pull,
    Reject,
    Restore,
    Revoke,
    State,
    Stop,
    View,
    Void,
    Welcome,
)
from zswarm.outbox import Outbox
from zswarm.slots import maker
from zswarm.wiring import Random, make_wiring

make_load = maker(Load)


Event = Received | Tick | Leave | Outcome
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
        self._now = 0.0
        self.jobs = Jobs()
        self.outbox: Outbox | None = None
        """None while this process has no session."""
        self.state = StepState()
        self.participant = Participant(self.membership, self.state, self._report)
        self.parameters = Parameters(self.membership, self.state)
        self._outputs = Outputs(self.membership)
        self.departure = Departure(self.membership)
        self._greetings = Greetings(self.membership, self.state, self.jobs, slots=self._slots, departure=self.departure)
        self.work = Work(
            self.membership,
            self.state,
            jobs=self.jobs,
            greetings=self._greetings,
            outputs=self._outputs,
            departure=self.departure,
        )
        self._reports = Reports(
            self.membership,
            self.state,
            parameters=self.parameters,
            work=self.work,
            participant=self.participant,
            departure=self.departure,
        )
        self._was_able = False

    # -- the machine's interface ---------------------------------------------------------------------

    @property
    def is_built(self) -> bool:
        """Do the stage's layers exist?"""
        return self.parameters.is_built

    def next_deadline_s(self) -> float:
        """Return when something is to be repeated."""
        due = [self.participant.next_deadline_s(), self.parameters.next_deadline_s(), self.work.heir.next_deadline_s()]
        if self.outbox is not None:
            due += [self.outbox.next_deadline_s(), self._reports.overdue_at_s()]
        if self.work.device.is_resetting:
            due.append(self.work.device.stuck_at_s(self.membership.heartbeat_s))
        return min(self._reports.next_at_s, self.departure.at_s, *(at_s for at_s in due if at_s is not None))

    def health(self, now: float) -> Health:
        """Say how this worker is: well, unless its device is at one task for longer than anybody is given.

        The trainer gives such a worker up, and it ends when it hears of that; it may not be able to hear.
        """
        device = self.work.device
        overdue_at_s = device.overdue_at_s(self.membership.heartbeat_s)
        if overdue_at_s is not None and now >= overdue_at_s:
            return Health(text=f"the device has been at one task for {device.busy_s(now):.0f} s", is_well=False)
        text = self.membership.describe(self.state.version)
        if not self.parameters.is_ready:
            text = f"{text}, without parameters yet"
        return Health(text=text, silent_s=self.membership.silent_s(now))

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from the event."""
        self._now = now
        device = self.work.device
        if self._reports.woke(now):
            device.excuse(now)
        commands: list[Command] = []
        if isinstance(event, Received):
            if event.message.session == TRAINER:
                self.membership.heard_at_s = now
            commands += self._received(event, now)
        elif isinstance(event, Leave):
            if self.departure.is_asked or self.outbox is None or self._reports.is_fatal:
                return self._leave(ASKED)
            self.departure.ask(now)
        elif not isinstance(event, Tick):
            device.answered(event, now)
            commands += self._outcome(event, now)
        if device.is_resetting:
            stuck_at_s = device.stuck_at_s(self.membership.heartbeat_s)
            if stuck_at_s is not None and now >= stuck_at_s:
                return [Exit(code=HANGS, text="the device hangs: what it is at does not end")]
        if self.departure.is_asked:
            if commands and isinstance(commands[-1], Exit):
                return commands
            commands += self._drain()
            if self.departure.is_over(now, is_needless=self._is_needless):
                return [*commands, *self._leave(ASKED)]
        commands += self._carry_on(now)
        generation = self.membership.generation
        for place, command in enumerate(commands):
            if isinstance(command, Send):
                if command.message.generation < generation:
                    commands[place] = self._dated(command)
            elif isinstance(command, Task):
                device.submitted(command, now)
        return commands

    def _carry_on(self, now: float) -> list[Command]:
        """Do what follows from the state and the time, whatever the event was."""
        commands: list[Command] = []
        if self.outbox is not None:
            commands += self.outbox.resend_due(now)
        commands += self.participant.repeat(now)
        commands += self.parameters.resend_due(now)
        commands += self.work.heir.resend_due(now)
        self.work.settle()
        is_beat = self._reports.is_due(now)
        if self.outbox is not None:
            commands += self._reports.due(self.outbox, now, is_beat=is_beat)
        elif is_beat:
            commands += self._register()
        is_able = self._is_able
        commands += self._greet(is_beat=is_beat, is_able=is_able)
        if is_able and not self.participant.is_applying:
            commands += self.work.begin()
        return commands

    def _dated(self, send: Send) -> Send:
        """Let nothing go out under a generation of the trainer that has passed: nobody would listen to it."""
        return replace(send, message=replace(send.message, generation=self.membership.generation))

    # -- messages ------------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Command]:
        message, me = event.message, self.membership
        if isinstance(message, Welcome):
            return self._welcome(message, event)
        if isinstance(message, Reject):
            return [Exit(code=REFUSED, text=message.text)] if me.is_refused(message, event.peer) else []
        if me.is_foreign(message):
            return []
        if isinstance(message, Stop):
            return self._leave("the run is over")
        if isinstance(message, Fence):
            return self._begin_new_life(is_spare=message.is_spare) if me.is_fenced(message) else []
        return self._take_part(self.outbox, event, now) if self.outbox is not None else []

    def _take_part(self, outbox: Outbox, event: Received, now: float) -> list[Command]:
        """Do what a message of the run asks for; those that come most often are looked for first."""
        match event.message:
            case HeartbeatAck() as message:
                self._greetings.heard(message.session, now)
                return []
            case Job() as message:
                return [*self.work.take(message, event.frames, is_able=self._is_able)] if self.is_built else []
            case Chunk() as message:
                load = make_load(parcel=message.parcel, frames=event.frames)
                return self.participant.chunk(message, load, event.peer, now)
            case ChunkAck() as message:
                return self.participant.acknowledged(message, now)
            case Ack() as message:
                return [*outbox.acknowledge(message, now)]
            case Credit() as message:
                return [*outbox.update_room(message.session, message.room, now)]
            case View() as message:
                return self._see(outbox, message, event.frames, now)
            case Nack() as message:
                return [*outbox.refuse(message, now)]
            case Restore() as message:
                return self._restore(outbox, message, now)
            case Void() as message:
                self.work.void(message, outbox)
                return []
            case Revoke() as message:
                return [*self.work.revoke(message)]
            case Drained() as message:
                if message.worker == self.membership.session and self.departure.drains:
                    self.departure.drained(message.session)
                return []
            case Prepare() as message:
                return self.participant.prepare(message, now) if self._is_able else []
            case Abort() as message:
                return self.participant.abort(message)
            case Commit() as message:
                return self._commit(message)
            case Pull() as message:
                of = {"is_applying": self.participant.is_applying, "shares": self._is_able}
                return [*self.parameters.pull(message, event.peer, **of, now=now)]
            case State() as message:
                load = Load(parcel=message.parcel, frames=event.frames)
                receiver = self.work.heir if message.part is StatePart.SHARE else self.parameters
                return [*receiver.received(message, load, now)]
            case Inherit() as message if self._is_able and not self.participant.is_applying:
                return [*self.work.inherit(message, layer=self.membership.layers.start, now=now)]
            case _:
                return []

    def _welcome(self, message: Welcome, event: Received) -> list[Command]:
        me = self.membership
        if not me.welcome(message):
            return []
        wiring = make_wiring(me.wiring, self._random)
        self.outbox = Outbox(
            wiring=wiring, resend_s=limits.RESEND_HEARTBEATS * me.heartbeat_s, me=me.session, trainer=Generation(0)
        )
        self._reports.next_at_s = min(self._reports.next_at_s, self._now + me.heartbeat_s)
        # Another stage may be built now: no commit is in work, since the Register waited for the Reset behind it.
        tasks = self.parameters.welcomed(b"".join(bytes(frame) for frame in event.frames))
        if tasks:
            self.work.device.begin_stage()
        return [*tasks]

    def _see(self, outbox: Outbox, message: View, members: tuple[Member, ...], now: float) -> list[Command]:
        me, before = self.membership, self._outputs.live
        if not me.see(message, members):
            return []
        self._outputs.see()
        self._greetings.see()
        self._reports.num_losses += not before <= self._outputs.live
        tasks = self.work.view_changed()
        outbox.set_brokers({session: addresses[1] for session, addresses in me.brokers(me.stage + 1).items()})
        outbox.forget_brokers(self._outputs.live)
        homes = {session: addresses[1] for session, addresses in me.brokers(me.stage - 1).items()}
        return [
            *tasks,
            *outbox.introduce(homes, now),
            *outbox.flush(now),
            *(self._greetings.greet(outbox, now) if self.is_built else []),
            *self.participant.view_changed(now),
        ]

    def _restore(self, outbox: Outbox, message: Restore, now: float) -> list[Command]:
        if self.parameters.is_ready and (message.branch, message.step) == self.state.version:
            return self._report()
        if self.participant.is_applying:
            return []
        if not self.parameters.wants(message):
            return [*self.parameters.follow(message, now)]
        void = [held.job for held in self.jobs.held.values()]
        commands: list[Command] = [*self._forget()]
        outbox.drop_before(message.branch, message.step)
        commands += self.parameters.restore(message, now)
        for job in void:
            commands += self.work.refuse(job, JobStatus.WRONG_STEP)
        return commands

    def _commit(self, message: Commit) -> list[Command]:
        if (apply := self.participant.commit(message)) is None:
            return []
        self.work.heir.forget()
        return [self.parameters.will_move(apply, self._now)]

    # -- lives ---------------------------------------------------------------------------------------

    def _begin_new_life(self, *, is_spare: bool = False) -> list[Command]:
        """Give up the session and all that was counted with it, not what a commit has made; others may have that, too."""
        if self.departure.is_asked:
            return self._leave(ASKED)
        commands: list[Command] = [*self._forget()]
        self.outbox = None
        self.parameters.stop_loading()
        self.work.begin_new_life(is_spare=is_spare)
        self.membership.begin_new_life()
        self._outputs.see()
        self._greetings.see()
        return [*commands, *self._register()]

    def _register(self) -> list[Command]:
        """Ask for a session; not as long as a job of an earlier life is in work, which may never end."""
        return [] if self.work.device.is_resetting else [self.membership.register()]

    def _forget(self) -> list[Reset]:
        """Nothing is counted, nothing is in work, but for a commit that is being applied: that is final."""
        self.participant.forget()
        self.parameters.forget_share()
        return self.work.forget()

    def _drain(self) -> list[Command]:
        """Hand over what can be, as soon as there is somebody to."""
        if self.outbox is None or not self.departure.begins():
            return []
        return [*self.work.hand_back(), *(self._greetings.greet(self.outbox, self._now) if self.is_built else [])]

    @property
    def _is_needless(self) -> bool:
        """Is nothing in hand, nothing counted, and nobody in want of the parameters, which anybody can make?"""
        is_idle = self.outbox is None or (self.work.is_idle and not any(self.outbox.pending()))
        return is_idle and not self.state.ledger and not (self.parameters.is_ready and self.state.step > 0)

    def _leave(self, text: str) -> list[Command]:
        me = self.membership
        farewell = [Send(peer=me.coordinator, message=Stop(**me.header()))] if me.has_place else []
        return [*farewell, Exit(code=0, text=text)]

    # -- computing -----------------------------------------------------------------------------------

    @property
    def _is_able(self) -> bool:
        """May this worker count something?"""
        is_idle = self.outbox is None or self.work.device.is_resetting or self._reports.is_fatal
        return self.parameters.is_ready and not is_idle

    def _outcome(self, outcome: Outcome, now: float) -> list[Command]:
        match outcome:
            case Built():
                return [*self.parameters.built(outcome)]
            case Adopted():
                self.parameters.adopted(outcome)
            case WasReset():
                self.work.device.was_reset()
                return [self.membership.register()] if self.outbox is None else []
            case Emitted() if self.outbox is not None:
                return [*self.work.emitted(outcome, self.outbox, now)]
            case Ran() if self.outbox is not None:
                return [*self.work.ran(outcome, self.outbox, now)]
            case Emitted() | Ran():
                # Of a job of an earlier life: a session comes before its jobs.
                return []
            case Applied():
                self._applied(outcome)
            case Exported():
                return [*self.parameters.exported(outcome)]
            case Imported():
                taker = self.work.heir if outcome.part is StatePart.SHARE else self.parameters
                return [*taker.imported(now)]
            case ShareTaken():
                self.work.heir.taken()
            case Failed():
                return self._failed(outcome)
            case Unfit():
                return self._resign(outcome)
            case Broken():
                return [Exit(code=BROKEN, text=f"{self.membership.node}: {outcome.text}")]
            case Snapshotted() | Summed() | Assembled():
                return self.participant.outcome(outcome, now)
            case _:
                assert_never(outcome)
        return []

    def _applied(self, outcome: Applied) -> None:
        self.parameters.moved(outcome, self.participant.applied())
        self.jobs.drop_before(self.state.version)
        if self.outbox is not None:
            self.outbox.drop_before(*self.state.version)

    def _failed(self, outcome: Failed) -> list[Command]:
        """A layer raised in a job: the accumulator may hold half a gradient. Anything else ends the run."""
        if outcome.lease is None:
            said = self._reports.fail(outcome.layer, outcome.text)
            return [*said] if self.outbox is not None else []
        held = self.work.device.running_of(outcome.lease)
        if held is None:
            return []
        failure = self._reports.failed(outcome.layer, outcome.text, held.job.microbatch)
        return [
            *self.work.refuse(held.job, JobStatus.FAILED),
            Send(peer=self.membership.coordinator, message=failure),
            *self._begin_new_life(),
        ]

    def _resign(self, outcome: Unfit) -> list[Command]:
        """Go, and say why: the run goes on without this machine. If nobody hears it, the lost connection is seen."""
        me = self.membership
        text = sendable(outcome.text)
        reject = Reject(**me.header(), code=RejectCode.UNFIT, text=text)
        return [Send(peer=me.coordinator, message=reject), Exit(code=REFUSED, text=f"{me.node}: {outcome.text}")]

    # -- what is repeated ----------------------------------------------------------------------------

    def _slots(self, broker: Session) -> int:
        """Return how many leases a broker may have out here; none while outputs pile up."""
        is_open = self.outbox is not None and self._is_able and self.outbox.num_waiting < limits.OUTBOX_LENGTH
        is_open = is_open and not self.departure.drains
        return limits.PREFETCH + self.work.device.num_unfinished(broker) if is_open else 0

    def _greet(self, *, is_beat: bool, is_able: bool) -> list[Command]:
        """Tell the brokers who we are once per interval, at news, and when this worker begins to be able."""
        was_able, self._was_able = self._was_able, is_able
        if not self.is_built or self.outbox is None or self._reports.is_fatal:
            return []
        begins = is_able and not was_able
        if is_beat or begins:
            return [*self._greetings.greet(self.outbox, self._now)]
        return [*self._greetings.news(), *(self._greetings.farewells(self.outbox) if self.outbox.closing else [])]

    def _report(self) -> list[Command]:
        """Tell the coordinator everything that it decides from."""
        assert self.outbox is not None
        return [self._reports.report(self.outbox, self._now)]
