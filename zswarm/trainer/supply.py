"""The trainer as the producer of stage 0: what goes into the pipeline, and what has to go in once more.

admission --Sample--> (the samples are drawn) --Sampled--> outbox --Forward--> brokers of stage 0
replays   --Void to everybody, answers--> admission, as a new attempt with its own mask
"""

from __future__ import annotations

from itertools import groupby

from zswarm import ledger, limits
from zswarm.ids import TRAINER, Branch, Direction, Peer, Purpose, Role, Session, Stage, Step
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Ack, Attach, Evaluated, Forward, key_fields
from zswarm.outbox import Outbox
from zswarm.trainer.admission import Admission
from zswarm.trainer.commit import Committer
from zswarm.trainer.replays import Replay, Replays, first_attempt
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings, EvaluationDone, Sample, Sampled
from zswarm.wiring import Random, make_wiring

Command = Send | Sample | Append | EvaluationDone


class Supply:
    """See the module."""

    def __init__(
        self, settings: CoordinatorSettings, roster: Roster, committer: Committer, header: Header, *, random: Random
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._committer = committer
        self._header = header
        self.admission = Admission(settings, first_attempt=first_attempt(settings.generation))
        self.outbox = Outbox(
            wiring=make_wiring(settings.wiring, random),
            resend_s=limits.RESEND_HEARTBEATS * settings.heartbeat_s,
            me=TRAINER,
            trainer=settings.generation,
        )
        self.replays = Replays(
            roster,
            header,
            num_stages=settings.num_stages,
            heartbeat_s=settings.heartbeat_s,
            covered=committer.covered,
        )
        self.replays.begin(committer.version)
        self._counted_at_s, self._num_stuck = float("-inf"), 0
        """When it was counted what is with somebody who is silent, and how much that was."""
        self._is_crowded = False
        """Something of this step waited for room at the last heartbeat."""
        self._told_done: set[Session] = set()
        """Brokers that close and have heard that nothing comes any more."""
        self._held_back: list[Replay] = []
        """What was recalled of the next step, until nothing of this one waits any more."""

    def take_up(self) -> None:
        """Go on with what an earlier generation has admitted, whatever that is."""
        self.admission.begin(self._committer.step, is_taken_up=True)

    def adopt_brokers(self, now: float) -> list[Send]:
        """Send to the brokers of stage 0 that are in the roster, and to no others."""
        brokers = self._roster.of(Role.BROKER, Stage(0))
        addresses = {broker.session: broker.addresses[1] for broker in brokers}
        self.outbox.set_brokers(addresses)
        self.outbox.forget_brokers({TRAINER, *addresses})
        self._told_done.intersection_update(addresses)
        return [*self.attach(), *self.outbox.flush(now)]

    def attach(self) -> list[Send]:
        """Tell the brokers of stage 0 our return address, and whether they get nothing any more; to be repeated with every heartbeat."""
        brokers = self._roster.of(Role.BROKER, Stage(0))
        return [self._attach(broker, is_done=self.outbox.is_done_with(broker.session)) for broker in brokers]

    def _attach(self, broker: Record, *, is_done: bool) -> Send:
        if is_done:
            self._told_done.add(broker.session)
        return Send(peer=broker.addresses[1], message=Attach(**self._header, is_done=is_done))

    def farewells(self) -> list[Send]:
        """Tell a broker that closes, as soon as it is so, that nothing comes any more."""
        brokers = [self._roster.records.get(session) for session in sorted(self.outbox.closing - self._told_done)]
        return [
            self._attach(broker, is_done=True)
            for broker in brokers
            if broker is not None and self.outbox.is_done_with(broker.session)
        ]

    def admit(self, now: float) -> list[Command]:
        """Let in what there is room for; nothing of the next step where this one lacks room."""
        has_room = not (self._is_crowded or self._held_back)
        admission, step = self.admission, self._committer.step
        return [*admission.admit(step=step, window=self._window(now), now=now, is_ahead=has_room)]

    def _window(self, now: float) -> int:
        """Return how many microbatches may be in the pipeline; those with somebody who is silent keep no others out."""
        if self._settings.window:
            return self._settings.window
        heartbeat_s = self._settings.heartbeat_s
        if now >= self._counted_at_s + 0.5 * limits.DOUBT_HEARTBEATS * heartbeat_s:
            self._counted_at_s, stuck = now, 0
            for record in self._roster.records.values():
                if now > record.heard_at_s + (1.0 + limits.DOUBT_HEARTBEATS) * heartbeat_s:
                    stuck |= record.pending if record.version == self._committer.version else 0
            self._num_stuck = stuck.bit_count()
        window = limits.PREFETCH * max(1, self._roster.num_live_workers)
        return window + min(window, self._num_stuck)

    def look(self, now: float) -> list[Command]:
        """Void what nobody has any more."""
        version = self._committer.version
        admitted = self.admission.admitted(version[1])
        held_back = sum(1 << replay.microbatch for replay in self._held_back if replay.step == version[1])
        own = self.outbox.pending_ledger(*version) | held_back
        voids = self.replays.look(admitted=admitted, own=own, now=now)
        self._drop_void()
        return [*voids]

    def _drop_void(self) -> None:
        if (wave := self.replays.wave) is not None:
            self.outbox.drop_void((self._committer.branch, wave.step), wave.attempt, wave.bitmap)

    def _recall(self) -> list[Send]:
        """Make room at stage 0 for what has been waiting for it since the last heartbeat."""
        branch, step = self._committer.version
        before, self._is_crowded = self._is_crowded, self.outbox.waits(branch, step)
        if not (before and self._is_crowded):
            return []
        held_back = sum(1 << replay.microbatch for replay in self._held_back if replay.step == step + 1)
        voids = self.replays.recall(self.admission.admitted(Step(step + 1)) & ~held_back)
        self._drop_void()
        return voids

    def replay(self) -> list[Command]:
        """Let in again what has been voided, once everybody has answered."""
        replays = self.replays.take()
        if replays and replays[0].step > self._committer.step:
            self._held_back, replays = [*self._held_back, *replays], []
        elif self._held_back and self._may_go_on():
            self._held_back, replays = [], [*self._held_back, *replays]
        return self._readmit(replays)

    def _may_go_on(self) -> bool:
        """Is what was held back of this step by now, or does nothing of this step wait any more?"""
        version = self._committer.version
        return self._held_back[0].step == version[1] or not self.outbox.waits(*version)

    def _readmit(self, replays: list[Replay]) -> list[Command]:
        """Admit again what has been voided; the log says so for each attempt."""
        records: list[Command] = []
        for (step, attempt), group in groupby(replays, key=lambda replay: (replay.step, replay.attempt)):
            microbatches = [replay.microbatch for replay in group]
            record = {"event": "replay", "step": step, "attempt": attempt, "microbatches": microbatches}
            records.append(Append(record=record))
        return [*records, *self.admission.readmit(replays)]

    def sampled(self, event: Sampled, now: float) -> list[Send]:
        """Send a microbatch on its way, unless the run has gone back meanwhile."""
        ticket = (event.purpose, event.step, event.microbatch)
        if not self.admission.expects(ticket):
            return []
        attempt, mask = self.admission.attempt(ticket)
        key = (self._committer.branch, event.step, event.purpose, event.microbatch, attempt)
        message = Forward(
            **self._header, **key_fields(key), route=(), parcel=event.load.parcel, mask=ledger.to_bytes(mask)
        )
        return self.outbox.put_forward(message, event.load.frames, now)

    def evaluated(self, message: Evaluated, peer: Peer, now: float) -> list[Command]:
        """Take a held-out loss of the present parameters; acknowledge any."""
        ack = Ack(**self._header, **key_fields(message.key), direction=Direction.LOSS, room=None)
        commands: list[Command] = [Send(peer=peer, message=ack)]
        if message.purpose is not Purpose.EVALUATE or (message.branch, message.step) != self._committer.version:
            return commands
        done = self.admission.evaluated(message, now)
        if done is not None:
            commands += [Append(record={"event": "evaluation", "step": done.step, "loss": done.loss}), done]
        return commands

    def committed(self, step: Step) -> None:
        """A step is over, and the next one begins."""
        self.outbox.drop_before(*self._committer.version)
        self.admission.committed(step)
        self._is_crowded = False
        # What an earlier generation has sent ahead has come by now, or never will.
        version = self._committer.version
        self.replays.begin(version, is_suspect=self.admission.is_taken_up(version[1]))

    def roll_back(self, branch: Branch, step: Step) -> None:
        """Begin anew from a step, on a new branch."""
        self.outbox.drop_before(branch, step)
        self._is_crowded, self._held_back = False, []
        self.admission.forget_after(step)
        self.admission.begin(step)
        self.replays.begin((branch, step))

    def beat(self, now: float) -> list[Command]:
        """Repeat what is to be repeated with every heartbeat."""
        again = self.admission.reevaluate(now=now, heartbeat_s=self._settings.heartbeat_s)
        return [*self.attach(), *self.replays.repeat(), *self._recall(), *again]

    def excuse(self, stall_s: float) -> None:
        """The trainer itself was not running."""
        self.replays.excuse(stall_s)
        self.admission.excuse(stall_s)
