"""What the event log has decided, as an onlooker sees it who never forgets: sessions, commits, rollbacks.

    I4  commits follow each other on the branch in force, each durable before anybody is told
    I5  whoever has been given up contributes to no round that was not prepared by all of it before

The trainer's own memory ends with its life, and unsynced records may end with its machine. What they said was
said to others all the same, and holds: a session that was void once is never valid again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zswarm.ids import Branch, Round, Session, Stage, Step, Version
from zswarm.messages import Commit, Prepare, Prepared, Welcome
from zswarm.simulation.violation import Violation, require
from zswarm.trainer.settings import Append

MUST_BE_DURABLE = frozenset({"start", "commit", "rollback", "finish"})


@dataclass(slots=True)
class SeenRound:
    """A round that was begun: who is in it, who has the result, and who was given up before all had it."""

    participants: frozenset[Session]
    prepared: set[Session] = field(default_factory=set)
    fenced: set[Session] = field(default_factory=set)


class History:
    """See the module."""

    def __init__(self, *, num_stages: int) -> None:
        self.branch, self.step = Branch(0), Step(0)
        self.commits: dict[Version, dict[Stage, Round]] = {}
        self.finish: dict[str, Any] | None = None
        self.left: dict[Session, str] = {}
        """Who has been given up, and why."""
        self.replayed = False
        """Something was voided, or admitted again."""
        self._num_stages = num_stages
        self._generation = 0
        self._rounds: dict[Round, SeenRound] = {}
        self._lives: dict[Session, int] = {}
        self._checkpoints: set[Step] = set()

    def appended(self, append: Append) -> None:
        """Check a record of the event log, and take it in."""
        record = append.record
        event = record["event"]
        if self.finish is not None and event not in ("start", "checkpoint", "leave"):
            raise Violation("I4", f"{record} comes after the end")
        if not append.durable and event in MUST_BE_DURABLE:
            raise Violation("I4", f"{record} is not durable")
        match event:
            case "start":
                require(record["generation"] > self._generation, "I4", f"{record} after {self._generation}")
                self._generation, self.finish = record["generation"], None
            case "leave":
                self._leave(Session(record["session"]), record.get("reason", ""))
            case "replay":
                self.replayed = True
            case "checkpoint" if not record.get("problem"):
                self._checkpoints.add(Step(record["step"]))
            case "rollback":
                self._roll_back(record)
            case "commit":
                self._commit(record)
            case "finish":
                self.finish = record

    def _leave(self, session: Session, reason: str) -> None:
        self.left[session] = reason
        for seen in self._rounds.values():
            if session in seen.participants and seen.prepared != seen.participants:
                seen.fenced.add(session)

    def _roll_back(self, record: dict[str, Any]) -> None:
        branch, step = Branch(record["branch"]), Step(record["step"])
        require(branch == self.branch + 1, "I4", f"rolled back to branch {branch} from {self.branch}")
        require(step <= self.step, "I4", f"rolled back to step {step} from {self.step}")
        require(step == 0 or step in self._checkpoints, "I4", f"rolled back to step {step}, which has no checkpoint")
        self.branch, self.step = branch, step

    def _commit(self, record: dict[str, Any]) -> None:
        version = (Branch(record["branch"]), Step(record["step"]))
        where = f"step {version[1]} of branch {version[0]}"
        now = f"{self.step} of branch {self.branch}"
        require(version == (self.branch, self.step), "I4", f"{where} is committed, next is {now}")
        rounds = {Stage(each["stage"]): Round(each["round"]) for each in record["stages"]}
        require(len(rounds) == len(record["stages"]) == self._num_stages, "I1", f"{where} lacks a stage")
        for each in record["stages"]:
            seen = self._rounds.get(Round(each["round"]))
            require(seen is not None, "I4", f"{where}: nobody was asked to prepare round {each['round']}")
            assert seen is not None
            for text, counted in each["contributions"].items():
                session = Session(int(text))
                is_fenced = session in seen.fenced or session not in seen.participants
                require(
                    not (counted and is_fenced),
                    "I5",
                    f"{where}, round {each['round']}: session {session} contributes, which was given up before all "
                    f"had prepared: {self.left.get(session, 'it took no part')}",
                )
        self.commits[version] = rounds
        self.step = Step(version[1] + 1)

    # -- messages ------------------------------------------------------------------------------------

    def told(self, message: Commit, name: str) -> None:
        """Check that a commit is told only after it has been decided."""
        rounds = self.commits.get((message.branch, message.step))
        if rounds is None or message.round not in rounds.values():
            what = f"the commit of step {message.step}, round {message.round}"
            raise Violation("I4", f"{name} tells of {what}, before it is durable")

    def opened(self, message: Prepare) -> None:
        """Note a round when it is first told of; a number that is used again is a Violation."""
        participants = frozenset(message.participants)
        seen = self._rounds.get(message.round)
        if seen is None:
            gone = sorted(participants & self.left.keys())
            why = [self.left[session] for session in gone]
            require(not gone, "I5", f"round {message.round} is begun with {gone}, given up before: {why}")
            self._rounds[message.round] = SeenRound(participants)
        elif seen.participants != participants:
            raise Violation("R5", f"round {message.round} is begun twice")

    def prepared(self, message: Prepared) -> None:
        """The coordinator hears that a participant has the result."""
        seen = self._rounds.get(message.round)
        if seen is not None and message.session in seen.participants:
            seen.prepared.add(message.session)

    def welcomed(self, message: Welcome) -> None:
        """R3: check that a session is issued to one life of one process and to no other, whatever was forgotten.

        In the simulator no two lives have equal nonces.
        """
        life = message.boot_nonce
        before = self._lives.setdefault(message.yours, life)
        require(before == life, "R3", f"session {message.yours} of life {before} is issued to life {life} as well")
