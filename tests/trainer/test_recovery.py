from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zswarm.ids import Role
from zswarm.trainer.recovery import RecoveredCommit, RecoveredMember, recover

RUN = 0x4D


def start(generation=1, **changes):
    fields = {"run": f"{RUN:016x}", "generation": generation, "stages": 2, "split": [2, 1], "steps": 9, "basis": "one"}
    return {"event": "start", "num_microbatches": 4, **fields, **changes}


def join(session, *, node=None, role="worker", stage=0):
    return {
        "event": "join",
        "node": node or f"worker-{session}",
        "role": role,
        "session": session,
        "stage": stage,
        "boot_nonce": 2**63 + session,
        "addresses": [f"tcp://127.0.0.1:{session}"] * (2 if role == "broker" else 1),
    }


def leave(session):
    return {"event": "leave", "node": f"worker-{session}", "role": "worker", "session": session, "stage": 0}


def commit(step, *, branch=0, loss=0.0, sessions=(1, 2)):
    stages = [
        {"stage": stage, "round": 10 * step + stage, "digest": 2**64 - 1 - step, "contributions": {str(session): [0]}}
        for stage, session in enumerate(sessions)
    ]
    return {
        "event": "commit",
        "branch": branch,
        "step": step,
        "loss": loss or 5.0 - step,
        "lr": 0.1,
        "scale": 0.5,
        "apply": True,
        "snapshot": step == 1,
        "grad_norm": 2.0,
        "stages": stages,
    }


def rollback(step, *, branch):
    return {"event": "rollback", "branch": branch, "step": step, "reason": "stage 1 has lost its last worker"}


def checkpoint(step, *, branch=0, **fields):
    return {"event": "checkpoint", "branch": branch, "step": step, **fields}


def evaluation(step, loss):
    return {"event": "evaluation", "step": step, "loss": loss}


FINISH = {"event": "finish", "steps": 2, "code": 130, "reason": "interrupted"}
BEGUN = [start(), join(1), join(2, stage=1), join(3, role="broker", node="broker-0")]


@pytest.mark.parametrize("records", [[], [{"event": "something"}]])
def test_a_log_without_a_start_has_nothing_to_go_on_with(records):
    assert recover(records) is None


def test_a_run_that_has_just_begun_has_its_members_and_nothing_else():
    found = recover(BEGUN)
    assert (found.run, found.generation, found.next_session) == (RUN, 2, 4)
    assert (found.branch, found.step, found.commit, found.checkpoint) == (0, 0, None, None)
    assert found.basis == "one"
    assert found.members[0] == RecoveredMember(
        session=1,
        node="worker-1",
        boot_nonce=2**63 + 1,
        role=Role.WORKER,
        stage=0,
        addresses=("tcp://127.0.0.1:1",),
    )
    assert [(m.session, m.role, m.stage, len(m.addresses)) for m in found.members[1:]] == [
        (2, Role.WORKER, 1, 1),
        (3, Role.BROKER, 0, 2),
    ]


def test_who_has_left_is_gone_and_his_session_is_never_issued_again():
    found = recover([*BEGUN, join(9), leave(9), leave(1)])
    assert [member.session for member in found.members] == [2, 3]
    assert found.next_session == 10


def test_whose_share_is_whose_is_known_until_the_step_is_over():
    begun = [*BEGUN, join(9), {**leave(9), "heir": 1, "left": [0, 2]}]
    assert recover(begun).bequests == {9: (1, 0b101)}
    assert recover([*begun, start(2)]).bequests == {9: (1, 0b101)}
    assert recover([*begun, commit(0)]).bequests == {}
    assert recover([*begun, start(2, basis="other")]).bequests == {}
    assert recover([*begun, {"event": "rollback", "branch": 1, "step": 0, "reason": ""}]).bequests == {}
    assert recover([*begun, FINISH]).bequests == {}


def move(session, *, to, **of):
    return {"event": "move", "node": f"worker-{session}", "session": session, "stage": 0, "to": to, **of}


def test_who_was_moved_and_has_not_joined_since_is_still_to_go_there():
    moved = [move(1, to=1), leave(1), move(2, to=1, problem="it is the last"), move(3, to=1), leave(3), join(9)]
    assert recover([*BEGUN, *moved]).moves == {"worker-1": (Role.WORKER, 1), "broker-0": (Role.BROKER, 1)}
    assert recover([*BEGUN, *moved, join(10, node="worker-1", stage=1)]).moves == {"broker-0": (Role.BROKER, 1)}
    assert recover([*BEGUN, *moved, {"event": "finish", "steps": 0, "code": 130, "reason": ""}]).moves == {}
    with pytest.raises(ValueError, match=f"line {len(BEGUN) + 1}: move.to"):
        recover([*BEGUN, move(1, to=-1)])


def test_the_last_commit_is_all_that_a_worker_needs_to_apply_it():
    found = recover([*BEGUN, commit(0), commit(1)])
    assert (found.branch, found.step, found.losses) == (0, 2, (5.0, 4.0))
    assert found.commit == RecoveredCommit(
        step=1,
        scale=0.5,
        lr=0.1,
        apply=True,
        rounds={0: (10, 2**64 - 2), 1: (11, 2**64 - 2)},
    )


def test_nobody_goes_on_with_what_he_has_when_the_configuration_or_the_data_are_others():
    """A layer was in two stages once, and in no checkpoint: those that lived on had kept the old cut."""
    others = recover([*BEGUN, move(1, to=1), commit(0), start(2, basis="other"), join(9)])
    assert ([member.session for member in others.members], others.commit, others.moves) == ([9], None, {})
    assert (others.basis, others.step, others.next_session) == ("other", 1, 10)
    again = recover([*BEGUN, commit(0), start(2, basis="other"), start(3)])
    assert (again.members, again.commit) == ((), None), "nor when it is as it was at first"
    assert len(recover([*BEGUN, commit(0), start(2)]).members) == len(recover(BEGUN).members)


def test_nobody_is_left_of_a_life_that_told_all_to_end():
    found = recover([*BEGUN, commit(0), FINISH])
    assert (found.members, found.exit_code, found.step) == ((), 130, 1)
    assert recover([*BEGUN, FINISH, leave(1), start(2), join(4)]).exit_code is None
    assert [m.session for m in recover([*BEGUN, FINISH, start(2), join(4)]).members] == [4]


@pytest.mark.parametrize(("code", "steps", "is_done"), [(0, 1, True), (0, 2, False), (130, 1, False)])
def test_a_run_is_done_when_it_said_so_of_all_its_steps(code, steps, is_done):
    assert recover([*BEGUN, commit(0), FINISH | {"code": code}]).is_done(steps) is is_done


def test_after_a_rollback_what_came_after_its_step_is_void():
    log = [
        *BEGUN,
        evaluation(0, 5.5),
        commit(0),
        checkpoint(1),
        commit(1),
        commit(2),
        evaluation(3, 2.5),
        checkpoint(3),
        rollback(1, branch=1),
    ]
    found = recover(log)
    assert (found.branch, found.step, found.commit) == (1, 1, None)
    assert (found.losses, found.held_out, found.checkpoint) == ((5.0,), {0: 5.5}, (0, 1))
    found = recover([*log, commit(1, branch=1, loss=3.5), checkpoint(2, branch=1)])
    assert (found.losses, found.commit.step, found.checkpoint) == ((5.0, 3.5), 1, (1, 2))


def test_a_checkpoint_that_is_completed_after_the_rollback_is_void_all_the_same():
    """It was sealed by another thread while the swarm went back."""
    found = recover([*BEGUN, commit(0), checkpoint(1), commit(1), rollback(1, branch=1), checkpoint(2)])
    assert found.checkpoint == (0, 1)


def test_a_checkpoint_with_a_problem_is_none():
    found = recover([*BEGUN, commit(0), checkpoint(1), commit(1), checkpoint(2, problem="No space left on device")])
    assert found.checkpoint == (0, 1)


@pytest.mark.parametrize(
    ("version", "is_void"),
    [((0, 1), False), ((0, 2), True), ((1, 2), False), ((1, 3), True), ((2, 2), False), ((2, 3), True), ((3, 1), True)],
)
def test_which_checkpoints_belong_to_the_present_history(version, is_void):
    """Branch 1 began at step 1 and branch 2 at step 2, where the run is now."""
    steps = [commit(0), commit(1), rollback(1, branch=1), commit(1, branch=1), commit(2, branch=1)]
    found = recover([*BEGUN, *steps, rollback(2, branch=2)])
    assert found.is_void(version) is is_void


def test_what_was_not_finite_comes_back_as_that():
    found = recover([*BEGUN, evaluation(0, None), {**commit(0), "loss": None, "apply": False}])
    assert math.isnan(found.losses[0])
    assert math.isnan(found.held_out[0])
    assert found.commit.apply is False


def test_the_lives_of_the_trainer_add_up():
    """Each of them counts its seconds from its own beginning."""
    log = [start(), join(1), commit(0), start(2), commit(1), start(3)]
    for record, time_s in zip(log, (1.0, 2.0, 10.0, 3.0, 7.5, 0.5), strict=True):
        record["time_s"] = time_s
    assert recover(log).wall_s == 18.0


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([commit(0)], "line 1: a commit before the start of the run"),
        ([*BEGUN, commit(1)], "line 5: step 1 is committed on branch 0, and step 0 of branch 0 is next"),
        ([*BEGUN, commit(0), commit(0)], "line 6: step 0 is committed"),
        ([*BEGUN, commit(0, branch=1)], "line 5: step 0 is committed on branch 1"),
        ([*BEGUN, join(2)], "line 5: session 2 joins a second time"),
        ([*BEGUN, leave(7)], "line 5: session 7 leaves and has not joined"),
        ([*BEGUN, start(1)], "line 5: generation 1 after 1"),
        ([*BEGUN, start(2, run="0000000000000001")], "line 5: run 0000000000000001, it was 000000000000004d"),
        ([*BEGUN, rollback(1, branch=1)], "line 5: back to step 1 on branch 1, and step 0 of branch 0 is next"),
        ([*BEGUN, commit(0), rollback(0, branch=0)], "line 6: back to step 0 on branch 0"),
        ([*BEGUN, checkpoint(1)], "line 5: a checkpoint of step 1, and step 0 is next"),
        ([start(run="run")], "line 1: start.run: "),
        ([*BEGUN, {**join(5), "addresses": []}], "line 5: join.addresses: "),
        ([*BEGUN, {**join(5), "role": "cook"}], "line 5: "),
        ([*BEGUN, {**commit(0), "scale": None}], "line 5: commit.scale: "),
    ],
)
def test_a_log_that_contradicts_itself_is_told_with_its_line(records, says):
    with pytest.raises(ValueError) as raised:
        recover(records)
    assert str(raised.value).startswith(says)


@given(st.integers(0, 20), st.data())
def test_every_beginning_of_a_good_log_can_be_gone_on_with(length, data):
    """A trainer may die after any line: what its successor reads is one commit further at most, never back."""
    log, step, branch = [*BEGUN], 0, 0
    for _ in range(length):
        if step and data.draw(st.integers(0, 4)) == 0:
            branch, step = branch + 1, data.draw(st.integers(0, step))
            log.append(rollback(step, branch=branch))
        else:
            log.append(commit(step, branch=branch))
            step += 1
    found = recover(log)
    assert (found.branch, found.step, len(found.losses)) == (branch, step, step)
    for cut in range(4, len(log)):
        earlier = recover(log[:cut])
        assert earlier.branch <= branch
        assert earlier.commit is None or earlier.commit.step == earlier.step - 1
