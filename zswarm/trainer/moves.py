r"""Moving workers to other stages between two steps: by hand, or as a planner has it.

    ordered --no: why not-->   --yes--> WAITING --a step is committed--> fenced; its next life is of the other stage
                                                \-- it has left, or it is not possible any more: the log says why

A worker is moved in the moment of a commit, before anybody has heard of that: then it has counted nothing of the step that
begins, so that nothing is lost. It gives up its session like whoever is given up, and gets its new stage's state like
whoever joins. Never the last worker of a stage that has its state, nor more than a stage can have, nor whoever keeps a
copy that a checkpoint is made from: that one waits for another commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zswarm import limits
from zswarm.ids import NodeId, Peer, Role, Session, Stage
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import Move, Moved
from zswarm.trainer.archive import Archive
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """A worker that is to go to another stage now; with a problem it does not, after all."""

    record: Record
    stage: Stage
    problem: str = ""


class Moves:
    """See the module."""

    def __init__(self, roster: Roster, committer: Committer, archive: Archive, header: Header, *, steps: int) -> None:
        self._roster = roster
        self._committer = committer
        self._archive = archive
        self._header = header
        self._steps = steps
        self._waiting: dict[Session, Stage] = {}

    def answer(self, wanted: Move, peer: Peer, *, refusal: str) -> Send:
        """Answer somebody who wants a worker to be moved by hand; `refusal` says why nobody is now, if that is so."""
        node, stage = wanted.node, wanted.stage
        is_accepted, text = (False, refusal) if refusal else self._order_node(node, stage)
        return Send(
            peer=peer,
            message=Moved(
                **self._header,
                node=node,
                stage=stage,
                is_accepted=is_accepted,
                text=text[: limits.MAX_TEXT_CHARS],
            ),
        )

    def _order_node(self, node: NodeId, stage: Stage) -> tuple[bool, str]:
        """Return whether it is done, and a sentence, which says what becomes of an earlier order that still waits."""
        record = self._roster.life_of(node)
        if record is None:
            return False, f"there is no {node} in the swarm"
        before = self._waiting.get(record.session)
        problem = self.order(record.session, stage)
        when = f"when step {self._committer.step} is committed"
        if problem:
            is_on = before is not None and not self._problem(record, before)
            as_before = f"; as ordered before, it goes to stage {before} {when}" if is_on else ""
            return False, f"{problem}{as_before}"
        if stage == record.stage:
            return True, f"{node} stays in stage {stage}, and does not go to stage {before}"
        instead = "" if before in {None, stage} else f", and not to stage {before}"
        return True, f"{node} goes to stage {stage} {when}{instead}"

    def order(self, session: Session, stage: Stage) -> str:
        """Move a worker at the next commit; returns why that cannot be, "" if it can.

        Of several orders for it the last one holds that could be; one to the stage that it is in cancels the one before.
        """
        record = self._roster.records.get(session)
        if record is None:
            return f"session {session} has left"
        if self._committer.step + 2 >= self._steps:
            return "the run is in its last two steps: nobody is moved any more"
        before = self._waiting.pop(session, None)
        if before is not None and stage == record.stage:
            return ""
        problem = self._problem(record, stage)
        holds = before if problem else stage
        if holds is not None:
            self._waiting[session] = holds
        return problem

    @property
    def ordered(self) -> Mapping[Session, Stage]:
        """Who is to be moved where."""
        return self._waiting

    def due(self) -> Iterator[Relocation]:
        """Yield who is to be moved now that a step is committed; whoever is yielded is out before the next is asked for."""
        if self._committer.step + 1 >= self._steps:
            self._waiting.clear()
        for session, stage in list(self._waiting.items()):
            record = self._roster.records.get(session)
            if record is not None and self._archive.needs(session):
                continue
            del self._waiting[session]
            if record is not None:
                yield Relocation(record=record, stage=stage, problem=self._problem(record, stage))

    def _problem(self, record: Record, stage: Stage) -> str:
        if record.role is not Role.WORKER:
            return f"{record.node} is a {record.role.value}: only workers are moved"
        if stage >= self._committer.num_stages:
            return f"there is no stage {stage}: the last is {self._committer.num_stages - 1}"
        if record.stage == stage:
            return f"{record.node} is in stage {stage}"
        if record not in self._roster.staying(Role.WORKER, record.stage):
            return f"{record.node} leaves"
        coming = sum(to == stage for to in self._waiting.values()) + self._roster.num_wanted(stage)
        if len(self._roster.of(Role.WORKER, stage)) + coming >= limits.MAX_PARTICIPANTS:
            return f"stage {stage} has all the workers that it can have"
        others = [other for other in self._roster.staying(Role.WORKER, record.stage) if other is not record]
        able = [other for other in others if self._committer.has_state(other)]
        if all(other.session in self._waiting for other in able):
            going = f" as soon as those are gone who go: {', '.join(other.node for other in able)}" if able else ""
            return f"{record.node} is the last worker of stage {record.stage} that has its state{going}"
        return ""


def move_record(of: Relocation) -> dict[str, Any]:
    """Return the line of the log that says who goes where, or why not."""
    record = {
        "event": "move",
        "node": of.record.node,
        "session": of.record.session,
        "stage": of.record.stage,
        "to": of.stage,
    }
    return record | ({"problem": of.problem} if of.problem else {})
