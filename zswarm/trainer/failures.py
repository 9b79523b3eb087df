"""Layers that raise at a microbatch: how often that may happen before the run ends."""

from __future__ import annotations

from zswarm import limits
from zswarm.errors import RunFailed
from zswarm.ids import Microbatch, NodeId, Role, Session, Stage
from zswarm.messages import Failure
from zswarm.trainer.commit import Committer
from zswarm.trainer.roster import Record, Roster


class Failures:
    """Those of the present step: the sessions that have failed at a microbatch, each of which ended with that."""

    def __init__(self, roster: Roster, committer: Committer, *, workers_per_stage: int) -> None:
        self._roster = roster
        self._committer = committer
        self._workers_per_stage = workers_per_stage
        self._nodes: dict[tuple[Stage, Microbatch], dict[Session, NodeId]] = {}

    def clear(self) -> None:
        """Another step is in work."""
        self._nodes.clear()

    def note(self, record: Record, message: Failure) -> None:
        """Hear that a layer has raised.

        Raises:
            RunFailed: it was in no job, or too many have failed at this one.

        """
        where = f"stage {message.stage}" + (f", {message.layer}" if message.layer else "")
        error = RunFailed(f"{record.node} ({where}): {message.text}")
        if message.microbatch is None:
            raise error
        if record.version != self._committer.version:
            return
        failed = self._nodes.setdefault((record.stage, message.microbatch), {})
        failed[record.session] = record.node
        num_workers = max(len(self._roster.of(Role.WORKER, record.stage)), self._workers_per_stage)
        has_failed_everywhere = len(set(failed.values())) >= min(limits.MAX_FAILED_WORKERS, num_workers)
        if has_failed_everywhere or len(failed) >= limits.MAX_FAILURES:
            raise error
