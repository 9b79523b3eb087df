"""The two-phase commit of an optimizer step, over all stages at once.

For each stage:   COUNTING --every microbatch owned once--> REDUCING --all participants PREPARED--> PREPARED
                      ^                                        |                                       |
                      +------------- abort --------------------+---------------------------------------+

When every stage is PREPARED the step commits: the decision is made durable first, then it is told to the
workers, and repeated to each until it reports the next step. What is owned by whom is derived from the
newest reports each time, never patched event by event. An optimizer step is taken once, by all stages,
or by none: `apply` is false everywhere if one stage's gradient is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from zswarm import ledger
from zswarm.errors import RunFailed
from zswarm.ids import Branch, Role, Round, Session, Stage, Step
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Abort, Commit, Prepare, Prepared
from zswarm.trainer.roster import Record, Roster
from zswarm.trainer.settings import Append, CoordinatorSettings

NORM_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`, so that clipping equals that of a plain loop."""


@dataclass(slots=True, kw_only=True)
class OpenRound:
    """One stage's round: who takes part with which ledger, and who holds the result."""

    round: Round
    stage: Stage
    ledgers: dict[Session, int]
    prepared: dict[Session, Prepared] = field(default_factory=dict)
    asked_at: dict[Session, tuple[Branch, Step]] = field(default_factory=dict)
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
        self._rounds: dict[Stage, OpenRound] = {}
        self._num_rounds = 0
        self._commits: dict[Stage, Commit] = {}
        """Of the step before this one, for whoever has not applied it."""
        self.members: frozenset[Session] = frozenset()
        """The workers that took part in the last commit."""
        self.num_aborted = 0

    @property
    def version(self) -> tuple[Branch, Step]:
        """What a worker that has applied every commit holds."""
        return (self.branch, self.step)

    def owned(self, stage: Stage) -> int:
        """Return the bitmap of microbatches that some worker of the stage has counted in this step."""
        union = 0
        for worker in self._roster.of(Role.WORKER, stage):
            if worker.version == self.version:
                union |= worker.ledger
        return union

    def consider(self) -> list[Send | Append]:
        """Open the rounds of stages that have counted everything."""
        commands: list[Send | Append] = []
        for index in range(self._settings.num_stages):
            stage = Stage(index)
            if stage not in self._rounds and self.owned(stage) == self._full:
                commands += self._open(stage)
        return commands

    def _open(self, stage: Stage) -> list[Send | Append]:
        workers = [w for w in self._roster.of(Role.WORKER, stage) if w.is_ready]
        ledgers = {w.session: w.ledger if w.version == self.version else 0 for w in workers}
        if sum(bitmap.bit_count() for bitmap in ledgers.values()) != self._settings.num_microbatches:
            raise RunFailed(
                f"step {self.step}, stage {stage}: a microbatch was counted by two workers "
                f"({ {s: list(ledger.members(b)) for s, b in ledgers.items()} }); the step is not committed"
            )
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
        if worker.version < self.version and (commit := self._commits.get(worker.stage)) is not None:
            return [Send(peer=worker.peer, message=commit)] if worker.version[1] == commit.step else []
        if opened is None or worker.session not in opened.ledgers or worker.version != self.version:
            return []
        if worker.ledger != opened.ledgers[worker.session]:
            return self._abort(opened, f"worker {worker.node} reports another ledger")
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

    def _abort(self, opened: OpenRound, reason: str) -> list[Send | Append]:
        del self._rounds[opened.stage]
        self.num_aborted += 1
        record = {"event": "abort", "step": self.step, "stage": opened.stage, "round": opened.round, "reason": reason}
        message = Abort(**self._header, branch=self.branch, step=self.step, round=opened.round)
        participants = [w for w in self._roster.of(Role.WORKER, opened.stage) if w.session in opened.ledgers]
        return [Append(record=record), *(Send(peer=worker.peer, message=message) for worker in participants)]

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
        return []

    # -- the decision --------------------------------------------------------------------------------

    def decide(self) -> tuple[Decision, list[Send | Append]] | None:
        """Commit the step if every stage is prepared: the decision, and what makes it true."""
        rounds = [self._rounds.get(Stage(stage)) for stage in range(self._settings.num_stages)]
        ready = [opened for opened in rounds if opened is not None and opened.is_prepared]
        if len(ready) < len(rounds):
            return None
        decision = self._decision(ready)
        self._commits = {opened.stage: self._commit(opened, decision) for opened in ready}
        append = Append(record=self._record(ready, decision), durable=True)
        self.step = Step(self.step + 1)
        self._rounds = {}
        self.members = frozenset(session for opened in ready for session in opened.ledgers)
        sends = [Send(peer=worker.peer, message=self._commits[worker.stage]) for worker in self._participants(ready)]
        return decision, [append, *sends]

    def _participants(self, rounds: list[OpenRound]) -> Iterator[Record]:
        for opened in rounds:
            yield from (self._roster.records[session] for session in opened.ledgers)

    def _decision(self, rounds: list[OpenRound]) -> Decision:
        settings = self._settings
        apply = all(opened.result.finite for opened in rounds)
        norm = math.sqrt(sum(opened.result.square_norm for opened in rounds)) if apply else math.nan
        scale = 1.0
        if apply and settings.grad_clip > 0:
            scale = min(1.0, settings.grad_clip / (norm + NORM_EPSILON))
        losses = [math.nan if p.loss_sum is None else p.loss_sum for p in rounds[-1].prepared.values()]
        return Decision(
            step=self.step,
            loss=math.fsum(losses) / settings.num_targets,
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
