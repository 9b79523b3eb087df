"""Mutants of the worker: what it counts, what it applies, what it hands on."""

# A mutant is surgery: it reaches inside.
# ruff: noqa: SLF001

from __future__ import annotations

from dataclasses import replace
from typing import Any

from brokers.backlog import Backlog
from brokers.entries import Entry, Worker
from stages.departure import Departure
from stages.donor import Donor
from stages.heir import NOTHING, Heir
from stages.jobs import HeldJob, Jobs
from stages.loader import Loader
from stages.participant import StepState
from stages.reduction import Inbox
from stages.tasks import Adopt, Export, Exported
from stages.voids import Voids
from stages.work import Work
from stages.worker import WorkerMachine
from zswarm.bequests import Left
from zswarm.custody import Custody
from zswarm.ids import Branch, Leaving, StatePart, Step
from zswarm.membership import Membership
from zswarm.messages import Job, Load, View
from zswarm.outbox import Outbox
from zswarm.simulation.mutants_trainer import hasty
from zswarm.simulation.surgery import Method, Mutant, Patches, never, no, nothing


def _outputs_once() -> Patches:
    return {(Outbox, "resend_due"): nothing, (Outbox, "next_deadline_s"): never}


def _pulls_once() -> Patches:
    return {(Loader, "resend_due"): nothing, (Loader, "next_deadline_s"): never}


def _counts_twice() -> Patches:
    original: Method = Work.begin

    def begin(self: Work, *args: Any) -> Any:
        counted, self._state.ledger = self._state.ledger, 0
        commands = original(self, *args)
        self._state.ledger = counted
        return commands

    return {(Jobs, "result_of"): never, (Work, "begin"): begin}


def _any_parameters() -> Patches:
    def following(self: Jobs, _: Any) -> HeldJob | None:
        return next((held for held in self.held.values() if not held.begun), None)

    def choose(self: Backlog, _: Worker) -> Entry | None:
        for shelf in self._shelves.values():
            for line in (*shelf.backwards.values(), shelf.forwards):
                if line:
                    return next(iter(line.values()))
        return None

    return {(Jobs, "next"): following, (Backlog, "choose"): choose}


def _ledger_outlives_step() -> Patches:
    def become(self: StepState, version: tuple[Branch, Step]) -> None:
        self.branch, self.step = version

    return {(StepState, "become"): become}


def _sum_of_what_is_there() -> Patches:
    def shard(self: Inbox, sender: Any, phase: Any, index: int) -> tuple[Load, ...] | None:
        chunks = self.chunks.get((sender, phase, index))
        return tuple(chunks[place] for place in sorted(chunks)) if chunks else None

    return {(Inbox, "shard"): shard}


def _ignores_fence() -> Patches:
    return {(Membership, "is_fenced"): no}


def _keeps_counts() -> Patches:
    def forget(self: Work, *_: Any) -> list[Any]:
        self.jobs.clear()
        return []

    return {(Work, "forget"): forget}


def _job_of_an_old_life() -> Patches:
    original: Method = Work.take

    def take(self: Work, message: Job, *args: Any, **kwargs: Any) -> Any:
        return original(self, replace(message, worker=self._me.session), *args, **kwargs)

    return {(Work, "take"): take}


def _void_forgotten() -> Patches:
    return {(Voids, "covers"): no} | hasty()


def _void_answered_in_a_job() -> Patches:
    original: Method = Voids.settle

    def settle(self: Voids, _: Any) -> None:
        original(self, ())

    return {(Voids, "settle"): settle} | hasty()


def _copy_is_the_present() -> Patches:
    original: Method = Donor.pull

    def pull(self: Donor, *args: Any, **kwargs: Any) -> Any:
        commands = original(self, *args, **kwargs)
        return [replace(c, from_snapshot=False) if isinstance(c, Export) else c for c in commands]

    return {(Donor, "pull"): pull}


def _gives_while_it_moves() -> Patches:
    original: Method = Donor.pull

    def pull(self: Donor, message: Any, peer: Any, **kwargs: Any) -> Any:
        wanted = kwargs | {"present": (message.branch, message.step)}
        return original(self, message, peer, **wanted)

    return {(Donor, "pull"): pull}


def _adopts_too_early() -> Patches:
    original: Method = Loader.received

    def received(self: Loader, *args: Any) -> Any:
        commands = original(self, *args)
        num_left = sum(held != self.version for held in self._layers.values())
        if commands and not self.is_adopting and num_left == 1:
            self.is_adopting = True
            self._fetches.clear()
            return [*commands[:1], Adopt()]
        return commands

    return {(Loader, "received"): received}


def _retained_is_the_present() -> Patches:
    original: Method = Donor.pull

    def pull(self: Donor, *args: Any, **kwargs: Any) -> Any:
        commands = original(self, *args, **kwargs)
        return [replace(c, step=None) if c.part is not StatePart.GRADIENT else c for c in commands]

    return {(Donor, "pull"): pull}


def _one_step_is_all() -> Patches:
    original: Method = Loader.received

    def received(self: Loader, message: Any, *args: Any) -> Any:
        before = dict(self._layers)
        commands = original(self, message, *args)
        layer = message.layer
        if message.part is StatePart.GRADIENT and self._layers.get(layer) != before.get(layer):
            self._layers[layer] = self.version
        return commands

    return {(Loader, "received"): received}


def _step_is_forgotten() -> Patches:
    original: Method = Loader.received

    def received(self: Loader, message: Any, *args: Any) -> Any:
        before = dict(self._layers)
        commands = original(self, message, *args)
        if message.part is StatePart.GRADIENT and not self.is_adopting:
            self._layers = before
        return commands

    return {(Loader, "received"): received}


def _generation_without_view() -> Patches:
    def see(self: Membership, message: View, members: Any) -> bool:
        if message.view <= self.view:
            return False
        self.generation, self.view, self.members = message.generation, message.view, members
        return True

    return {(Membership, "see"): see}


def _does_not_clean_up() -> Patches:
    original: Method = WorkerMachine._begin_new_life

    def begin_new_life(self: WorkerMachine, **of: Any) -> Any:
        outbox = self.outbox
        commands = original(self, **of)
        self.outbox = outbox
        return commands

    return {(WorkerMachine, "_begin_new_life"): begin_new_life}


def _leaver_takes_jobs() -> Patches:
    def phase(self: Departure, *, is_idle: bool) -> Leaving:
        if not self.is_asked:
            return Leaving.NO
        return Leaving.IDLE if is_idle else Leaving.DRAINING

    return {(Departure, "begins"): no, (Departure, "phase"): phase}


def _idle_too_early() -> Patches:
    original: Method = Departure.ask

    def ask(self: Departure, now: float) -> None:
        original(self, now)
        for broker in self._me.brokers(self._me.stage):
            self.drained(broker)

    return {(Departure, "ask"): ask}


def _heir_counts_at_once() -> Patches:
    original: Method = Heir.imported

    def imported(self: Heir, now: float) -> Any:
        follows = original(self, now)
        if (held := self.held) is not NOTHING:
            left = Left(self._me.session, held.ledger)
            self._me.bequests[held.owner] = left
            self._me.members = tuple(m for m in self._me.members if m.member != held.owner)
            follows = [*follows, *self.view_changed()]
        return follows

    return {(Heir, "imported"): imported}


def _ranges_say_the_present() -> Patches:
    original: Method = Donor._about_share

    def about_share(self: Donor, outcome: Exported) -> Any:
        self._given = None
        return original(self, outcome)

    return {(Donor, "_about_share"): about_share}


def _rounds_rest() -> Patches:
    original: Method = WorkerMachine._is_able.fget  # type: ignore[attr-defined]

    def is_able(self: WorkerMachine) -> bool:
        return bool(original(self)) and self.participant._reduction is None

    return {(WorkerMachine, "_is_able"): property(is_able)}


def _reports_a_moment() -> Patches:
    return {(Custody, "passed"): lambda *_: 0}


# That an heir counts just what the view says, and that nothing is left while something is voided, no schedule shows by itself:
# each guards what the other, and a Void at the heir, guard too. tests/stages/test_heir.py and tests/trainer/test_bequests.py hold them.
MUTANTS: dict[str, Mutant] = {
    "outputs-once": Mutant("a worker's output is sent once", _outputs_once),
    "worker-counts-twice": Mutant("a worker knows neither finished jobs nor its ledger (R1)", _counts_twice),
    "job-of-an-old-life": Mutant("a worker takes a job that was meant for another life (R1)", _job_of_an_old_life),
    "ignores-its-fence": Mutant("a worker goes on with a session that is void (R3)", _ignores_fence),
    "keeps-its-counts": Mutant("a new life has counted what the last one had (R3)", _keeps_counts),
    "sum-of-what-is-there": Mutant("a shard is summed before all of its chunks are there (R5)", _sum_of_what_is_there),
    "any-parameters": Mutant("brokers give and workers run jobs of any step (R8)", _any_parameters),
    "ledger-outlives-step": Mutant("the ledger of a step is that of the next one, too (R8)", _ledger_outlives_step),
    "void-forgotten": Mutant("a worker does the attempts that it has voided (R9)", _void_forgotten),
    "void-answered-in-a-job": Mutant("a worker has voided what it is about to count (R9)", _void_answered_in_a_job),
    "copy-is-the-present": Mutant("a checkpoint is made of what the worker has by now", _copy_is_the_present),
    "gives-another-version": Mutant(
        "a worker gives what it has to whoever wants another version", _gives_while_it_moves
    ),
    "retained-is-the-present": Mutant(
        "half of a layer is given as it was, half as it is by now", _retained_is_the_present
    ),
    "one-step-is-all": Mutant("a layer that has taken one step counts as one that has taken all", _one_step_is_all),
    "step-is-forgotten": Mutant("a layer takes a step that it has taken already", _step_is_forgotten),
    "adopts-too-early": Mutant("a worker takes over a state of which half has come", _adopts_too_early),
    "pulls-once": Mutant("a Pull is sent once", _pulls_once),
    "leaver-takes-jobs": Mutant("who leaves goes on taking jobs, and is let go between two", _leaver_takes_jobs),
    "idle-too-early": Mutant("who leaves is let go while a job is on its way to it", _idle_too_early),
    "ranges-say-the-present": Mutant("ranges of a copy say what is counted by now (R5)", _ranges_say_the_present),
    "heir-counts-at-once": Mutant(
        "what a leaver has counted is counted while it is still there (R1)", _heir_counts_at_once
    ),
    "rounds-rest": Mutant("a worker whose stage has counted everything computes nothing for others", _rounds_rest),
    "reports-a-moment": Mutant("a report names what is held at its moment, and nothing else", _reports_a_moment),
    "does-not-clean-up": Mutant("a new life sends on what the last one owed", _does_not_clean_up),
    "views-of-a-dead-trainer": Mutant(
        "a view of the next generation is old if its number is", _generation_without_view
    ),
}
