"""The two-phase commit of an optimizer step, over all stages at once.

For each stage:   COUNTING --every microbatch owned once--> REDUCING --all participants PREPARED--> PREPARED
                      ^                                        |                                       |
                      +------------- abort --------------------+---------------------------------------+

When every stage is PREPARED the step commits: the decision is made durable first, then it is told to the
workers, and repeated to each until it reports the next step. What is owned by whom is derived from the
newest reports each time, never patched event by event. An optimizer step is taken once, by all stages,
or by none: `apply` is false everywhere if one stage's gradient is not finite.

A participant that is given up before all have prepared makes its round void: what it had counted is done
again by others. Once all have prepared, its contribution is in the result that the others hold, and stays as long as
one of them is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from zswarm import ledger
from zswarm.clipping import clip_scale
from zswarm.errors import RunFailed
from zswarm.ids import Branch, Leaving, Role, Round, Session, Stage, Step, Version
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Abort, Commit, Prepare, Prepared
from zswarm.trainer.recovery import Recovered
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings


@dataclass(slots=True, kw_only=True)
class OpenRound:
    """One stage's round: who takes part with which ledger, and who holds the result."""

    round: Round
    stage: Stage
    ledgers: dict[Session, int]
    prepared: dict[Session, Prepared] = field(default_factory=dict)
    asked_at: dict[Session, Version] = field(default_factory=dict)
    """Which parameters a participant held when it was last asked to prepare."""

    @property
    def is_prepared(self) -> bool:
        """Do all participants hold the result?"""
        return len(self.prepared) == len(self.ledgers)

    @property
    def result(self) -> Prepared:
        """The result that all participants hold."""
        return next(iter(self.prepared.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A committed step."""

    step: Step
    loss: float
    lr: float
    scale: float
    grad_norm: float
    apply: bool


class Committer:
    """See the module. Methods return the commands that follow, durable records before the messages."""

    def __init__(self, settings: CoordinatorSettings, roster: Roster, header: Header) -> None:
        self._settings = settings
        self._roster = roster
        self._header = header
        self.branch, self.step = Branch(0), Step(0)
        self._full = ledger.full(settings.num_microbatches)
        self._stages = [Stage(index) for index in range(settings.num_stages)]
        self._rounds: dict[Stage, OpenRound] = {}
        self._num_rounds = 0
        self._commits: dict[Stage, Commit] = {}
        """Of the step before this one, for whoever has not applied it."""
        self.donors: dict[Stage, Session] = {}
        """Who was asked to keep a copy of the present step's state for a checkpoint."""
        if settings.recovered is not None:
            self._take_up(settings.recovered)

    def _take_up(self, recovered: Recovered) -> None:
        self.branch, self.step = recovered.branch, recovered.step
        self._roster.bequests = dict(recovered.bequests)
        last = recovered.commit
        if last is None:
            return
        for stage, (number, digest) in last.rounds.items():
            self._commits[stage] = Commit(
                **self._header,
                branch=self.branch,
                step=last.step,
                round=number,
                digest=digest,
                scale=last.scale,
                lr=last.lr,
                apply=last.apply,
            )

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return self._settings.num_stages

    @property
    def version(self) -> Version:
        """What a worker that has applied every commit holds."""
        return (self.branch, self.step)

    @property
    def is_reducing(self) -> bool:
        """Has every stage a round?"""
        return len(self._rounds) == len(self._stages)

    def owned(self, stage: Stage) -> int:
        """Return the bitmap of microbatches that some worker of the stage has counted in this step."""
        union, version = 0, self.version
        for worker in self._roster.of(Role.WORKER, stage):
            if worker.holds(version):
                union |= worker.ledger
        return union

    def covered(self, stage: Stage) -> int:
        """Return the bitmap of microbatches whose gradient is certain: counted, or in the round that is open."""
        return self._full if stage in self._rounds else self.owned(stage)

    def is_open(self, stage: Stage) -> bool:
        """Has the stage a round?"""
        return stage in self._rounds

    def awaits_commit(self, worker: Record) -> bool:
        """Does a worker hold the result of the last commit, which it has not applied yet?"""
        commit = self._commits.get(worker.stage)
        return (
            commit is not None
            and worker.is_ready
            and worker.version == (commit.branch, commit.step)
            and (worker.prepared == commit.round)
        )

    def has_state(self, worker: Record) -> bool:
        """Does a worker hold the parameters of the step in work, or lack only the last Commit?"""
        return worker.holds(self.version) or self.awaits_commit(worker)

    def keeps_state(self, worker: Record) -> bool:
        """Does a worker hold the parameters of the step in work, and will as far as anybody knows?"""
        is_well = not worker.is_silent and not worker.may_hang(self._settings.heartbeat_s)
        return is_well and worker.leaving is Leaving.NO and self.has_state(worker)

    def is_certain(self, worker: Record) -> bool:
        """Is what a worker has counted in a commit, or nothing at all, and does no round wait for it?"""
        opened = self._rounds.get(worker.stage)
        if opened is not None and worker.session in opened.ledgers:
            return False
        return worker.version != self.version or not worker.ledger

    def is_conflict(self, worker: Record) -> bool:
        """Has a worker counted what another one has counted too? A bug, if it ever has."""
        version = self.version
        if worker.version != version or not worker.ledger:
            return False
        return any(
            other.ledger & worker.ledger
            for other in self._roster.of(Role.WORKER, worker.stage)
            if other is not worker and other.version == version
        )

    def consider(self) -> list[Send | Append]:
        """Open the rounds of stages that have counted everything."""
        commands: list[Send | Append] = []
        for stage in self._stages:
            if stage not in self._rounds and self.owned(stage) == self._full:
                commands += self._open(stage)
        return commands

    def _open(self, stage: Stage) -> list[Send | Append]:
        workers = [w for w in self._roster.of(Role.WORKER, stage) if self.has_state(w)]
        ledgers = {w.session: w.ledger if w.version == self.version else 0 for w in workers}
        if any(w.leaving is Leaving.NO for w in workers):
            # Whoever leaves and has counted nothing need not wait for it, nor it for him.
            goes = {w.session for w in workers if w.leaving is not Leaving.NO and not ledgers[w.session]}
            workers = [w for w in workers if w.session not in goes]
            ledgers = {w.session: ledgers[w.session] for w in workers}
        assert sum(bitmap.bit_count() for bitmap in ledgers.values()) == self._settings.num_microbatches
        self._num_rounds += 1
        number = Round((int(self._header["generation"]) << 32) + self._num_rounds)
        opened = self._rounds[stage] = OpenRound(round=number, stage=stage, ledgers=ledgers)
        return [self._prepare(opened, worker) for worker in workers]

    def _prepare(self, opened: OpenRound, worker: Record) -> Send:
        opened.asked_at[worker.session] = worker.version
        message = Prepare(
            **self._header,
            branch=self.branch,
            step=self.step,
            round=opened.round,
            participants=tuple(opened.ledgers),
            ledger=ledger.to_bytes(opened.ledgers[worker.session]),
        )
        return Send(peer=worker.peer, message=message)

    def reported(self, worker: Record) -> list[Send | Append]:
        """A worker's report is new: does it contradict its round, does it need to be told something again?"""
        opened = self._rounds.get(worker.stage)
        if self.awaits_commit(worker):
            return [Send(peer=worker.peer, message=self._commit_for(worker))]
        if opened is None or worker.session not in opened.ledgers or worker.version != self.version:
            return []
        if worker.ledger != opened.ledgers[worker.session] and not opened.is_prepared:
            return self._abort(opened, f"{worker.node} reports another ledger")
        if worker.session not in opened.prepared and opened.asked_at[worker.session] != worker.version:
            return [self._prepare(opened, worker)]
        return []

    def check_replica(self, worker: Record) -> None:
        """Hold a worker's parameters against those of its stage's other workers at the same step.

        Raises:
            RunFailed: they are not the same.

        """
        for other in self._roster.of(Role.WORKER, worker.stage):
            if other.version == worker.version and other.is_ready and other.parameter_digest != worker.parameter_digest:
                raise RunFailed(
                    f"stage {worker.stage}, step {worker.version[1]}: {worker.node} and {other.node} hold different "
                    "parameters after the same commits; do not trust this run"
                )

    def repeat(self) -> list[Send | Append]:
        """Ask everybody again who has not prepared; to be called once per heartbeat."""
        return [
            self._prepare(opened, worker)
            for opened in self._rounds.values()
            for worker in self._roster.of(Role.WORKER, opened.stage)
            if worker.session in opened.ledgers and worker.session not in opened.prepared
        ]

    def given_up(self, worker: Record) -> list[Send | Append]:
        """A worker has left the roster: its round is void, unless all of it have prepared, and one is left of them."""
        opened = self._rounds.get(worker.stage)
        if opened is None or worker.session not in opened.ledgers:
            return []
        if opened.is_prepared and any(self._participants([opened])):
            return []
        return self._abort(opened, f"{worker.node} took part in it and is gone")

    def roll_back(self, step: Step) -> None:
        """Begin a new branch at a step; every round is void."""
        self.branch, self.step = Branch(self.branch + 1), step
        self._rounds, self._commits, self.donors = {}, {}, {}
        self._roster.forget_bequests()

    def _abort(self, opened: OpenRound, reason: str) -> list[Send | Append]:
        del self._rounds[opened.stage]
        record = {"event": "abort", "step": self.step, "stage": opened.stage, "round": opened.round, "reason": reason}
        message = Abort(**self._header, branch=self.branch, step=self.step, round=opened.round)
        return [Append(record=record), *(Send(peer=w.peer, message=message) for w in self._participants([opened]))]

    def prepared(self, message: Prepared) -> list[Send | Append]:
        """A participant holds the result of its stage's round."""
        for opened in self._rounds.values():
            if opened.round == message.round:
                return self._note_prepared(opened, message)
        return []

    def _note_prepared(self, opened: OpenRound, message: Prepared) -> list[Send | Append]:
        if ledger.from_bytes(message.ledger) != opened.ledgers.get(message.session):
            return self._abort(opened, f"session {message.session} prepared another ledger")
        if opened.prepared and opened.result.digest != message.digest:
            return self._abort(opened, f"session {message.session} holds another result")
        opened.prepared[message.session] = message
        self._roster.records[message.session].prepared = message.round
        return []

    # -- the decision --------------------------------------------------------------------------------

    def decide(
        self, *, with_snapshot: bool = False, going: Collection[Session] = ()
    ) -> tuple[Decision, list[Send | Append]] | None:
        """Commit the step if every stage is prepared: the decision, and what makes it true.

        With `with_snapshot` one live participant of each stage is asked to keep a copy of the new state, if possible
        none that leaves or is among those `going` elsewhere.
        """
        if not self.is_reducing:
            return None
        ready = [opened for stage in self._stages if (opened := self._rounds[stage]).is_prepared]
        if len(ready) < len(self._stages):
            return None
        decision = self._decision(ready)
        self._commits = {opened.stage: self._commit(opened, decision) for opened in ready}
        participants = list(self._participants(ready))
        self.donors = _donors(participants, going) if with_snapshot else {}
        append = Append(record=self._record(ready, decision), durable=True)
        self.step = Step(self.step + 1)
        self._roster.forget_bequests()
        self._rounds = {}
        sends = [Send(peer=worker.peer, message=self._commit_for(worker)) for worker in participants]
        return decision, [append, *sends]

    def _participants(self, rounds: list[OpenRound]) -> Iterator[Record]:
        """Those that are still there."""
        records = self._roster.records
        for opened in rounds:
            yield from (records[session] for session in opened.ledgers if session in records)

    def _commit_for(self, worker: Record) -> Commit:
        commit = self._commits[worker.stage]
        return replace(commit, snapshot=True) if self.donors.get(worker.stage) == worker.session else commit

    def _decision(self, rounds: list[OpenRound]) -> Decision:
        settings = self._settings
        apply = all(opened.result.finite for opened in rounds)
        scale, norm = 1.0, math.nan
        if apply:
            scale, norm = clip_scale([opened.result.square_norm for opened in rounds], settings.grad_clip)
        losses = [math.nan if p.loss_sum is None else p.loss_sum for p in rounds[-1].prepared.values()]
        return Decision(
            step=self.step,
            loss=_total(losses) / settings.num_targets,
            lr=settings.learning_rate(self.step),
            scale=scale,
            grad_norm=norm,
            apply=apply,
        )

    def _commit(self, opened: OpenRound, decision: Decision) -> Commit:
        return Commit(
            **self._header,
            branch=self.branch,
            step=self.step,
            round=opened.round,
            digest=opened.result.digest,
            scale=decision.scale,
            lr=decision.lr,
            apply=decision.apply,
        )

    def _record(self, rounds: list[OpenRound], decision: Decision) -> dict[str, Any]:
        return {
            "event": "commit",
            "branch": self.branch,
            "step": self.step,
            "loss": decision.loss,
            "lr": decision.lr,
            "scale": decision.scale,
            "apply": decision.apply,
            "snapshot": bool(self.donors),
            "grad_norm": decision.grad_norm if decision.apply else None,
            "stages": [
                {
                    "stage": opened.stage,
                    "round": opened.round,
                    "digest": opened.result.digest,
                    "contributions": {
                        str(session): list(ledger.members(ledger.from_bytes(prepared.ledger)))
                        for session, prepared in sorted(opened.prepared.items())
                    },
                }
                for opened in rounds
            ],
        }


def _total(values: list[float]) -> float:
    """Return the sum, rounded once; of what is too large for a number, that it is none."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.nan


def _donors(participants: list[Record], going: Collection[Session]) -> dict[Stage, Session]:
    """Return the first participant of each stage, of those who stay there if there are any."""

    def goes(worker: Record) -> bool:
        return worker.leaving is not Leaving.NO or worker.session in going

    donors: dict[Stage, Session] = {}
    for worker in sorted(participants, key=goes):
        donors.setdefault(worker.stage, worker.session)
    return donors
