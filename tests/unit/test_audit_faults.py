from __future__ import annotations

import pytest

from zswarm.audit import Audit
from zswarm.json_lines import Line

MICROBATCHES, STEPS = 4, 3


def verdict(log):
    lines = [Line(number=number, record=record) for number, record in enumerate(log, 1)]
    return {check.name: check for check in Audit(lines, torn_bytes=0).checks}


def failed(log):
    return {name for name, check in verdict(log).items() if not check.is_passed}


class History:
    """Writes the log of a run with faults, record by record, as its coordinator would."""

    def __init__(self):
        self.log = []
        self.workers = {}
        self.split = [1, 1]
        self.branch = self.step = self.steps = self.round = self.generation = 0

    def add(self, event, **fields):
        self.log.append({"event": event, **fields})
        return self

    def start(self, *, steps=STEPS, split=None, **changes):
        self.generation += 1
        self.steps, self.split = steps, split or self.split
        fields = {
            "run": "000000000000004d",
            "generation": self.generation,
            "stages": len(self.split),
            "split": self.split,
            "steps": steps,
            "num_microbatches": MICROBATCHES,
        }
        return self.add("start", **fields | changes)

    def join(self, *sessions, stage=0, role="worker", node=None):
        for session in sessions:
            self.add("join", node=node or f"{role}-{session}", role=role, session=session, stage=stage)
            self.workers.setdefault(stage, []).append(session)
        return self

    def renew(self, stages=None):
        """All who were there are forgotten, and each stage gets a new worker."""
        self.workers = {}
        for stage in range(stages or len(self.split)):
            self.join(100 * self.generation + stage, stage=stage)
        return self

    def dismiss(self, *sessions):
        """These do not contribute any more, for a reason that is in the log already."""
        self.workers = {
            stage: [session for session in workers if session not in sessions]
            for stage, workers in self.workers.items()
        }
        return self

    def leave(self, session, stage=0):
        self.workers[stage].remove(session)
        return self.add("leave", node=f"worker-{session}", session=session, stage=stage, reason="silent", lost=1)

    def next_round(self):
        self.round += 1
        return (self.generation << 32) + self.round

    def abort(self, stage=0):
        return self.add("abort", step=self.step, stage=stage, round=self.next_round(), reason="a participant left")

    def replay(self, *microbatches):
        attempt = (self.generation << 32) + 1
        return self.add("replay", step=self.step, attempt=attempt, microbatches=list(microbatches))

    def commit(self, times=1, *, stages=None, **changes):
        """The first worker of each stage has counted all."""
        for _ in range(times):
            committed = []
            for stage in range(stages or len(self.split)):
                counted = {str(self.workers[stage][0]): list(range(MICROBATCHES))}
                committed.append({"stage": stage, "round": self.next_round(), "digest": 7, "contributions": counted})
            self.add("commit", **{"branch": self.branch, "step": self.step, "stages": committed} | changes)
            self.step += 1
        return self

    def checkpoint(self, **fields):
        return self.add("checkpoint", **{"branch": self.branch, "step": self.step} | fields)

    def rollback(self, step, **changes):
        self.branch += 1
        self.step = step
        return self.add("rollback", **{"branch": self.branch, "step": step, "reason": "a stage is empty"} | changes)

    def finish(self, code=0, *, is_saved=True, **changes):
        """With code 0 the model was made from a checkpoint of the last step."""
        if code == 0 and is_saved and self.step == self.steps:
            self.checkpoint()
        return self.add("finish", **{"steps": self.step, "code": code, "reason": "over"} | changes)


def begun(**options):
    """Two stages of two workers each."""
    return History().join(10, 11, stage=0).join(20, 21, stage=1).start(**options)


LEGAL = {
    "a worker leaves, its round is aborted, it comes back as another": begun()
    .commit()
    .leave(10)
    .abort()
    .join(30)
    .commit(2)
    .finish(),
    "what a worker had counted is lost and done again": begun().commit().leave(11).replay(0, 3).commit(2).finish(),
    "a worker is moved to another stage": begun()
    .commit()
    .add("move", node="w", session=11, stage=0, to=1)
    .leave(11)
    .join(22, stage=1)
    .commit(2)
    .finish(),
    "a worker is moved after its round was prepared": begun()
    .add("move", node="worker-10", session=10, stage=0, to=1)
    .add("leave", session=10)
    .commit()
    .dismiss(10)
    .join(22, stage=1)
    .commit(2)
    .finish(),
    "the trainer dies between a move and its leave": begun()
    .commit()
    .add("move", node="worker-10", session=10, stage=0, to=1)
    .start()
    .commit(2)
    .finish(),
    "a node comes back, in another place": begun().leave(11).join(12, stage=1, node="worker-11").commit(3).finish(),
    "a node comes back after the run was interrupted": begun()
    .finish(code=130)
    .start()
    .join(12, node="worker-10")
    .join(22, stage=1, node="worker-20")
    .dismiss(10, 11, 20, 21)
    .commit(3)
    .finish(),
    "a worker cannot be moved after all": begun()
    .commit()
    .add("move", node="w", session=11, stage=0, to=0, problem="it is there")
    .commit(2)
    .finish(),
    "a broker leaves": begun().join(5, role="broker", stage=1).leave(5, stage=1).commit(3).finish(),
    "the trainer starts again, and workers go on with their sessions": begun().commit().start().commit(2).finish(),
    "the trainer starts again twice before the first step": begun().start().start().commit(3).finish(),
    "it starts before anybody has joined": History().start().join(10).join(20, stage=1).commit(3).finish(),
    "the trainer starts again on the same basis": begun(basis="a").commit().start(basis="a").commit(2).finish(),
    "it starts again on another basis, and all are new": begun(basis="a")
    .commit()
    .start(basis="b")
    .renew()
    .rollback(0)
    .commit(3)
    .finish(),
    "a session leaves while the run is ending": begun().commit(3).finish().leave(10),
    "interrupted after the last step, when the log did not know of its checkpoint": begun()
    .commit(3)
    .finish(code=130)
    .start()
    .checkpoint()
    .finish(is_saved=False),
    "the last step was done again on another branch": begun().commit(3).rollback(0).commit(3).finish(),
    "a run that fails at its end": begun().commit(3).checkpoint(problem="no space").finish(code=1),
    "a rollback to the beginning": begun().commit(2).rollback(0).commit(3).finish(),
    "a rollback before the first step": begun().rollback(0).commit(3).finish(),
    "a rollback to a checkpoint": begun().commit(2).checkpoint().commit().rollback(2).commit().finish(),
    "two rollbacks to one checkpoint": begun()
    .commit(2)
    .checkpoint()
    .rollback(2)
    .rollback(2)
    .commit()
    .rollback(2)
    .commit()
    .finish(),
    "a rollback past a checkpoint that the disk has lost": begun()
    .commit()
    .checkpoint()
    .commit()
    .checkpoint()
    .rollback(1)
    .commit()
    .checkpoint()
    .rollback(2)
    .commit()
    .finish(),
    "a checkpoint is complete after a rollback to a later one": begun()
    .commit(2)
    .checkpoint()
    .rollback(2)
    .checkpoint(branch=0, step=1)
    .rollback(1)
    .commit(2)
    .finish(),
    "a checkpoint fails, for a full disk": begun().commit().checkpoint(problem="no space").commit(2).finish(),
    "interrupted and resumed": begun()
    .commit(2)
    .checkpoint()
    .finish(code=130)
    .start()
    .renew()
    .rollback(2)
    .commit()
    .finish(),
    "the trainer starts again, and all workers of a stage are new": begun()
    .commit(2)
    .checkpoint()
    .start()
    .leave(10)
    .leave(11)
    .join(12)
    .rollback(2)
    .commit()
    .finish(),
    "resumed with more steps": begun().commit(3).finish().start(steps=5).renew().commit(2).finish(),
    "the last checkpoint comes after an interruption": begun()
    .commit(3)
    .finish(code=130)
    .checkpoint()
    .start(steps=4)
    .renew()
    .commit()
    .finish(),
    "resumed with another number of stages": begun()
    .commit(2)
    .checkpoint()
    .finish(code=130)
    .start(split=[1, 1, 1])
    .renew()
    .rollback(2)
    .commit()
    .finish(),
    "gone on with from the last checkpoint, with more steps and other stages": begun()
    .commit(3)
    .finish()
    .start(steps=5, split=[1, 1, 1])
    .renew()
    .commit(2)
    .finish(),
    "interrupted before the first commit and resumed with another split": begun()
    .finish(code=130)
    .start(split=[2, 1])
    .renew()
    .commit(3)
    .finish(),
    "interrupted at a checkpoint and resumed with another split": begun()
    .commit(2)
    .checkpoint()
    .finish(code=130)
    .start(split=[2, 1])
    .renew()
    .commit()
    .finish(),
    "a checkpoint that the log did not know of is resumed with another split": begun()
    .commit(2)
    .start(split=[2, 1])
    .renew()
    .checkpoint()
    .commit()
    .finish(),
    "another split is taken back before anything is committed": begun()
    .commit(2)
    .start(split=[2])
    .start(split=[1, 1])
    .renew()
    .commit()
    .finish(),
}


@pytest.mark.parametrize("history", LEGAL.values(), ids=LEGAL)
def test_a_legal_history_with_faults_passes_and_so_does_all_that_precedes_any_of_its_records(history):
    assert [str(check) for check in verdict(history.log).values() if not check.is_passed] == []
    assert "0 to" in str(verdict(history.log)["steps"])
    begin = next(index for index, record in enumerate(history.log) if record["event"] == "start")
    for length in range(begin + 1, len(history.log)):
        assert failed(history.log[:length]) == set(), length


def test_what_went_wrong_on_the_way_is_counted():
    history = begun().commit(2).leave(10).abort().replay(1).rollback(0).commit().start().replay(2).commit(2).finish()
    checks = verdict(history.log)
    assert "18 records, 1 restart of the trainer" in str(checks["log"])
    steps = "3 of 3 committed: 0 to 2, each once, in order, on branches 0 to 1, 1 rollback, 2 steps voided"
    assert steps in str(checks["steps"])
    assert "2 in every commit, 11 rounds, none used twice, 1 aborted" in str(checks["stages"])
    assert "24 contributions = 3 steps x 2 stages x 4 microbatches, each counted exactly once, 2 replays" in str(
        checks["ledgers"]
    )
    assert "3 workers contributed, 4 processes joined, 1 left" in str(checks["sessions"])


def with_lost_microbatch(history):
    """Leave microbatch 3 out of the last commit."""
    del history.log[-1]["stages"][0]["contributions"]["10"][-1]
    return history


def with_round(number, history):
    """Let the first stage of the last commit have this round."""
    history.log[-1]["stages"][0]["round"] = number
    return history


ILLEGAL = {
    "a voided step was wrong": (
        with_lost_microbatch(begun().commit()).rollback(0).commit(3).finish(),
        "ledgers",
        "line 6, step 0, stage 0: microbatch 3 is missing",
    ),
    "a step is committed twice without a rollback": (
        begun().commit(2).start().commit(step=1),
        "steps",
        "line 9, step 1: expected step 2",
    ),
    "a step is missing after a restart": (begun().commit().start().commit(step=2), "steps", "expected step 1"),
    "a rollback does not void its step": (
        begun().commit(2).rollback(0).commit(step=2),
        "steps",
        "line 9, step 2: expected step 0",
    ),
    "a rollback goes on with the old branch": (
        begun().commit().rollback(0).commit(branch=0),
        "steps",
        "line 8, step 0: branch 0, it was 1",
    ),
    "a rollback skips a branch": (begun().rollback(0, branch=2), "steps", "line 6: rolled back to branch 2 from 0"),
    "a rollback stays on its branch": (begun().rollback(0, branch=0), "steps", "rolled back to branch 0 from 0"),
    "a rollback goes forward": (begun().commit().rollback(2), "steps", "line 7: rolled back to step 2 from 1"),
    "a rollback without a checkpoint": (
        begun().commit(2).checkpoint().commit().rollback(1),
        "steps",
        "line 10: rolled back to step 1, which has no checkpoint",
    ),
    "a rollback to a checkpoint that failed": (
        begun().commit().checkpoint(problem="no space").commit().rollback(1),
        "steps",
        "rolled back to step 1, which has no checkpoint",
    ),
    "a rollback to a checkpoint that was voided": (
        begun().commit().checkpoint().rollback(0).commit().rollback(1),
        "steps",
        "line 10: rolled back to step 1, which has no checkpoint",
    ),
    "a rollback to a checkpoint that was complete too late": (
        begun().commit().rollback(0).checkpoint(branch=0, step=1).commit().rollback(1),
        "steps",
        "rolled back to step 1, which has no checkpoint",
    ),
    "a checkpoint comes after the rollback to it": (
        begun().commit().rollback(1).checkpoint().commit(2).finish(),
        "steps",
        "line 7: rolled back to step 1, which has no checkpoint",
    ),
    "a checkpoint of a step that is not committed": (
        begun().commit().checkpoint(step=2),
        "steps",
        "line 7: a checkpoint of step 2 on branch 0; the run is at step 1 on branch 0",
    ),
    "a checkpoint of a branch to come": (begun().commit().checkpoint(branch=1), "steps", "of step 1 on branch 1"),
    "a round is used again after a rollback": (
        begun().commit().rollback(0).add("abort", stage=0, round=2**32 + 1),
        "stages",
        "line 8: round 4294967297 of stage 0 was committed in line 6, step 0",
    ),
    "a round is aborted twice": (
        begun().abort().add("abort", stage=1, round=2**32 + 1),
        "stages",
        "line 7: round 4294967297 of stage 1 was aborted in line 6",
    ),
    "a round that an earlier generation had opened is aborted": (
        begun().start().add("abort", stage=1, round=2**32 + 1),
        "stages",
        "line 7: round 4294967297 of stage 1 is of generation 1, and generation 2 is in force",
    ),
    "a round that an earlier generation had opened is committed": (
        with_round(2**32 + 3, begun().commit().start().commit()).commit().finish(),
        "stages",
        "line 8, step 1, stage 0: round 4294967299 of stage 0 is of generation 1, and generation 2 is in force",
    ),
    "a round of no generation": (
        with_round(1, begun().commit()),
        "stages",
        "line 6, step 0, stage 0: round 1 of stage 0 is of generation 0, and generation 1 is in force",
    ),
    "other stages without a rollback": (
        begun().commit().start(split=[1, 1, 1]).renew().commit(),
        "stages",
        "line 11, step 1: stages of [1, 1, 1] layers, they were [1, 1], nothing was rolled back, and step 1 has no",
    ),
    "another split without a rollback": (
        begun().commit().start(split=[2, 1]).renew().commit(),
        "stages",
        "line 10, step 1: stages of [2, 1] layers, they were [1, 1]",
    ),
    "another split at a step whose checkpoint failed": (
        begun().commit().checkpoint(problem="no space").start(split=[2, 1]).renew().commit(),
        "stages",
        "line 11, step 1: stages of [2, 1] layers, they were [1, 1], nothing was rolled back, and step 1 has no checkpoint",
    ),
    "another split at a step whose checkpoint is void": (
        begun().commit().checkpoint().rollback(0).commit().start(split=[2, 1]).renew().commit(),
        "stages",
        "line 13, step 1: stages of [2, 1] layers, they were [1, 1], nothing was rolled back",
    ),
    "another split after the checkpoint": (
        begun().commit().checkpoint().commit().start(split=[2, 1]).renew().commit(),
        "stages",
        "line 12, step 2: stages of [2, 1] layers, they were [1, 1], nothing was rolled back",
    ),
    "a stage of the old split": (
        begun().start(split=[2]).renew(stages=2).rollback(0).commit(stages=2),
        "stages",
        "line 10, step 0: stage 1, and the run has 1",
    ),
    "a split that is not of these stages": (begun(stages=3), "log", "line 5: 3 stages, and layers for 2"),
    "a restart with other microbatches": (
        begun().start(num_microbatches=5),
        "log",
        "line 6: started again with num_microbatches 5, it was 4",
    ),
    "the generation does not grow": (
        begun().start().start(generation=2),
        "log",
        "line 7: started again with generation 2 after 2",
    ),
    "a rollback before the start": (History().rollback(0), "log", "line 1: comes before the start of the run"),
    "a checkpoint before the start": (History().checkpoint(), "log", "line 1: comes before the start of the run"),
    "a session comes back": (begun().leave(10).join(10), "sessions", "line 7: session 10 joins a second time"),
    "a session leaves again after a restart": (
        begun().leave(10).start().add("leave", session=10),
        "sessions",
        "line 8: session 10 leaves and is not there",
    ),
    "a session that left before the rollback contributes after it": (
        begun().add("leave", session=10).rollback(0).commit(),
        "sessions",
        "line 8, step 0, stage 0: session 10 had left before this step began",
    ),
    "a session that left before the restart contributes after it": (
        begun().commit().add("leave", session=10).start().commit(),
        "sessions",
        "line 9, step 1, stage 0: session 10 had left before this step began",
    ),
    "a session from before an interruption contributes after it": (
        begun().commit().finish(code=130).start().commit(2).finish(),
        "sessions",
        "line 9, step 1, stage 0: session 10 is of a life of the run that was over before this step began",
    ),
    "a session from before the end contributes to further steps": (
        begun().commit(3).finish().start(steps=4).commit().finish(),
        "sessions",
        "step 3, stage 1: session 20 is of a life of the run that was over before this step began",
    ),
    "a session leaves that an interruption had ended": (
        begun().finish(code=130).start().add("leave", session=10),
        "sessions",
        "line 8: session 10 leaves and is not there",
    ),
    "a session of another basis contributes": (
        begun(basis="a").commit().start(basis="b").commit(2).finish(),
        "sessions",
        "line 8, step 1, stage 0: session 10 is of a life of the run that was over before this step began",
    ),
    "a session of another split contributes": (
        begun().start(split=[2, 1]).commit(3).finish(),
        "sessions",
        "line 7, step 0, stage 0: session 10 is of a life of the run that was over before this step began",
    ),
    "somebody is moved, and stays": (
        begun().commit().add("move", node="worker-10", session=10, stage=0, to=1).commit(2).finish(),
        "sessions",
        "line 8, step 1, stage 0: session 10 was moved to stage 1, and has not left",
    ),
    "a node has two sessions": (
        begun().join(12, stage=1, node="worker-10").commit(3).finish(),
        "sessions",
        "line 6: worker-10 joins with session 12, and session 10 of it is still there",
    ),
    "a node has two sessions after a restart": (
        begun().commit().start().join(12, node="worker-10").commit(2).finish(),
        "sessions",
        "line 8: worker-10 joins with session 12, and session 10 of it is still there",
    ),
    "a node is a worker and a broker": (
        begun().join(12, role="broker", node="worker-10").commit(3).finish(),
        "sessions",
        "line 6: worker-10 joins with session 12, and session 10 of it is still there",
    ),
    "somebody is moved from where he is not": (
        begun().add("move", node="w", session=11, stage=1, to=0).commit(3).finish(),
        "sessions",
        "line 6: session 11 is moved and is not in stage 1",
    ),
    "somebody is moved who has left": (
        begun().leave(11).add("move", node="w", session=11, stage=0, to=1).commit(3).finish(),
        "sessions",
        "line 7: session 11 is moved and is not in stage 0",
    ),
    "somebody is moved to where he is": (
        begun().add("move", node="w", session=11, stage=0, to=0).commit(3).finish(),
        "sessions",
        "line 6: session 11 is moved to the stage that it is in",
    ),
    "rolled back after the end": (begun().commit(3).finish().rollback(0), "end", "rollback after the run has finished"),
    "committed after the end": (
        begun().commit().finish(code=130).commit(2),
        "end",
        "line 8: commit after the run has finished",
    ),
    "an interrupted run counts wrong": (
        begun().commit().finish(code=130, steps=2).start().renew().commit(2).finish(),
        "end",
        "line 7: finished with 2 steps, and 1 are committed",
    ),
    "a finish before the last step, and a resumption": (
        begun().commit().finish().start().renew().commit(2).finish(),
        "end",
        "line 7: finished with code 0 after 1 of 3 steps",
    ),
    "all steps are done, and the model is not saved": (
        begun().commit(2).checkpoint().commit().finish(is_saved=False),
        "end",
        "line 10: finished with code 0, and the state after step 2 has no checkpoint",
    ),
    "all steps are done, and saving the model has failed": (
        begun().commit(3).checkpoint(problem="no space").finish(is_saved=False),
        "end",
        "line 10: finished with code 0, and the state after step 2 has no checkpoint",
    ),
    "all steps are done, and the checkpoint of the last is void": (
        begun().commit(3).checkpoint().rollback(0).commit(3).finish(is_saved=False),
        "end",
        "line 14: finished with code 0, and the state after step 2 has no checkpoint",
    ),
    "a voided step is counted as done": (
        begun().commit(3).rollback(0).finish(steps=3),
        "end",
        "finished with 3 steps, and 0 are committed",
    ),
}


@pytest.mark.parametrize(("history", "name", "says"), ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_history_with_faults_is_told_with_its_place(history, name, says):
    assert failed(history.log) == {name}
    assert says in str(verdict(history.log)[name])
