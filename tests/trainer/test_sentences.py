from __future__ import annotations

import pytest

from zswarm.trainer.sentences import Narrator

JOIN = {"event": "join", "node": "worker-3", "role": "worker", "session": 9, "stage": 1}
LEAVE = {
    "event": "leave",
    "node": "worker-3",
    "stage": 1,
    "session": 9,
    "reason": "its connection was lost",
    "lost": 4,
}


def commit(step, *, apply=True):
    return {"event": "commit", "step": step, "apply": apply}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (JOIN, "worker-3 has joined stage 1"),
        (LEAVE, "worker-3 (stage 1) is gone: its connection was lost; 4 microbatches are computed again"),
        (LEAVE | {"lost": 1}, "worker-3 (stage 1) is gone: its connection was lost; 1 microbatch is computed again"),
        (LEAVE | {"lost": 0, "redone_s": 0.0}, "worker-3 (stage 1) is gone: its connection was lost"),
        (
            LEAVE | {"redone_s": 1.234},
            "worker-3 (stage 1) is gone: its connection was lost; 4 microbatches are computed again, about 1.2 s of work",
        ),
        (
            LEAVE | {"node": "broker-3", "lost": 0, "queued": 2},
            "broker-3 (stage 1) is gone: its connection was lost; 2 microbatches are to go another way",
        ),
        (LEAVE | {"lost": 0, "queued": 0}, "worker-3 (stage 1) is gone: its connection was lost"),
        (
            {"event": "replay", "step": 17, "attempt": 1, "microbatches": [1, 5, 6]},
            "step 17: 3 microbatches are sent through the pipeline again",
        ),
        (
            {"event": "abort", "step": 140, "stage": 2, "round": 5, "reason": "worker-5 is gone"},
            "step 140, stage 2: the all-reduce begins anew: worker-5 is gone",
        ),
        (
            {"event": "rollback", "branch": 1, "step": 100, "reason": "stage 2 has lost its last worker"},
            "stage 2 has lost its last worker; the run goes back from step 140 to the checkpoint of step 100",
        ),
        (
            {"event": "rollback", "branch": 1, "step": 0, "reason": "stage 2 has lost its last worker"},
            "stage 2 has lost its last worker; the run goes back from step 140 to its beginning",
        ),
        (
            {"event": "checkpoint", "branch": 0, "step": 100, "problem": "No space left on device"},
            "no checkpoint of step 100: No space left on device; the run goes on without it",
        ),
        (
            {
                "event": "rollback",
                "branch": 1,
                "step": 100,
                "reason": "stage 2 has lost its last worker",
                "again_s": 61.26,
            },
            (
                "stage 2 has lost its last worker; the run goes back from step 140 to the checkpoint of step 100: "
                "61.3 s of it are done again"
            ),
        ),
        (commit(140) | {"late_s": 2.06}, "step 140 took 2.1 s longer than usual"),
        (commit(140) | {"late_s": -0.4}, "step 140 took no longer than usual"),
        ({"event": "checkpoint", "branch": 0, "step": 100}, None),
        (commit(140), None),
        ({"event": "what nobody knows yet"}, None),
    ],
)
def test_what_happens_is_told_in_a_sentence(record, sentence):
    assert Narrator(step=140).sentence(record) == sentence


def test_who_comes_before_training_begins_is_no_news():
    narrator = Narrator()
    assert narrator.sentence({"event": "start"}) is None
    assert narrator.sentence(JOIN) is None
    assert narrator.sentence({"event": "evaluation", "step": 0}) is None
    assert narrator.sentence(JOIN) is not None


def test_who_leaves_when_the_run_is_over_is_no_news():
    narrator = Narrator(step=3)
    narrator.sentence({"event": "finish"})
    assert narrator.sentence(LEAVE) is None


def test_a_step_without_a_finite_gradient_is_told_once_and_then_every_tenth():
    narrator = Narrator()
    told = {step: narrator.sentence(commit(step, apply=step in {0, 25})) for step in range(28)}
    assert {step for step, sentence in told.items() if sentence} == {1, 10, 20, 26}
    assert told[1] == "step 1 is skipped: its gradient is not finite, the parameters stay as they are"
    assert told[20] == "20 steps in a row are skipped by now, up to step 20"


def test_a_rollback_counts_from_where_the_run_was():
    narrator = Narrator()
    narrator.sentence(commit(6))
    back = {"event": "rollback", "step": 5, "reason": "so"}
    assert "from step 7 to the checkpoint of step 5" in narrator.sentence(back)
    assert "from step 5 to the checkpoint of step 5" in narrator.sentence(back)
