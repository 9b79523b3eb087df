from __future__ import annotations

import math

import pytest

from tests.letters import abort, header, heartbeat, of_type, prepared, register
from tests.trainer.settings import recovered, settings
from zswarm import ledger
from zswarm.clipping import NORM_EPSILON
from zswarm.errors import RunFailed
from zswarm.ids import Address
from zswarm.machine import Send
from zswarm.messages import Abort, Commit, Prepare
from zswarm.trainer.commit import Committer, _total
from zswarm.trainer.recovery import RecoveredCommit
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Append

A, B, C = 1, 2, 3
"""A and C work at stage 0, B at stage 1."""


class Fixture:
    """A run of four microbatches a step; everybody is ready and has counted nothing."""

    def __init__(self, *, generation=1, **changes) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for node in ("a", "b", "c"):
            self.roster.register(register(node), Address(f"sim://{node}"), 0.0)
        run = settings(generation=generation, **changes)
        self.committer = Committer(run, self.roster, header(generation=generation))
        self.num_reports = 0
        for session in (A, B, C):
            self.report(session, branch=self.committer.branch, step=self.committer.step)

    def report(self, session, counted=0, **of):
        self.num_reports += 1
        record = self.roster.records[session]
        assert record.note(heartbeat(session, self.num_reports, counted=counted, **of), 0.0)
        return self.committer.reported(record)

    def round_of(self, stage):
        return self.committer._rounds[stage].round

    def prepared(self, session, counted, *, stage=0, **of):
        return self.committer.prepared(prepared(session, self.round_of(stage), counted=counted, **of))

    def give_up(self, session):
        return self.committer.given_up(self.roster.remove(session, 0.0))

    def count_all(self):
        """A and C share stage 0; B does all of stage 1."""
        for session, counted in ((A, 0b0011), (C, 0b1100), (B, 0b1111)):
            self.report(session, counted)
        return self.committer.consider()

    def prepare_all(self, **of):
        self.count_all()
        for session, counted, stage in ((A, 0b0011, 0), (C, 0b1100, 0), (B, 0b1111, 1)):
            self.prepared(session, counted, stage=stage, **of)


def prepares(commands) -> list[tuple[str, int, tuple[int, ...], int]]:
    """Return (address, stage's round, participants, ledger) of each Prepare."""
    return [
        (c.peer, c.message.round, c.message.participants, ledger.from_bytes(c.message.ledger))
        for c in commands
        if isinstance(c, Send) and isinstance(c.message, Prepare)
    ]


@pytest.fixture
def run():
    return Fixture()


# -- counting ----------------------------------------------------------------------------------------


def test_a_stage_that_has_counted_everything_is_asked_to_prepare(run):
    run.report(A, 0b0011)
    run.report(C, 0b0100)
    assert run.committer.consider() == []
    run.report(C, 0b1100)
    round_ = (1 << 32) + 1
    assert prepares(run.committer.consider()) == [
        ("sim://a", round_, (A, C), 0b0011),
        ("sim://c", round_, (A, C), 0b1100),
    ]
    assert run.committer.consider() == [], "it has been asked"


def test_a_worker_that_has_counted_nothing_takes_part_too(run):
    run.report(A, 0b1111)
    assert [ledger for *_, ledger in prepares(run.committer.consider())] == [0b1111, 0]


def test_a_worker_that_is_not_ready_does_not(run):
    run.report(C, ready=False)
    run.report(A, 0b1111)
    assert [participants for _, _, participants, _ in prepares(run.committer.consider())] == [(A,)]


def test_ledgers_of_another_step_are_not_counted(run):
    run.report(A, 0b1111, step=1)
    assert run.committer.consider() == []
    assert run.committer.owned(0) == 0


def test_the_ledgers_of_another_branch_are_not_counted(run):
    run.report(A, 0b1111, branch=1)
    assert run.committer.owned(0) == 0


@pytest.mark.parametrize(
    ("session", "counted", "of", "is_conflict"),
    [
        (C, 0b0110, {}, True),
        (C, 0b1100, {}, False),
        (C, 0b0110, {"step": 1}, False),
        (C, 0b0110, {"branch": 1}, False),
        (B, 0b0110, {}, False),
    ],
    ids=["one in both", "none in both", "another step", "another branch", "another stage"],
)
def test_a_microbatch_in_two_ledgers_is_a_conflict(run, session, counted, of, is_conflict):
    run.report(A, 0b0011)
    run.report(session, counted, **of)
    assert run.committer.is_conflict(run.roster.records[session]) == is_conflict
    assert run.committer.is_conflict(run.roster.records[A]) == is_conflict


def test_what_a_stage_has_for_certain(run):
    """While its round is open that is everything; a round that is aborted gives it back."""
    run.report(A, 0b0011)
    run.report(C, 0b0100)
    assert (run.committer.owned(0), run.committer.covered(0)) == (0b0111, 0b0111)
    run.report(C, 0b1100)
    run.committer.consider()
    run.give_up(C)
    assert (run.committer.owned(0), run.committer.covered(0)) == (0b0011, 0b0011)


def test_what_has_been_given_up_after_it_was_prepared_is_certain(run):
    run.prepare_all()
    run.give_up(C)
    assert (run.committer.owned(0), run.committer.covered(0)) == (0b0011, 0b1111)


def test_a_result_that_nobody_holds_any_more_is_not_committed(run):
    """It was: those of the stage that had taken no part in the round held the step before, and the run went back for them."""
    run.prepare_all()
    assert run.give_up(A) == []
    (record, *_) = run.give_up(C)
    assert (record.record["event"], record.record["stage"]) == ("abort", 0)
    assert run.committer.covered(0) == 0
    assert run.committer.decide() is None


def test_replicas_must_hold_the_same_parameters(run):
    run.roster.records[C].parameter_digest = 9
    with pytest.raises(RunFailed, match="stage 0, step 0: a and c hold different parameters"):
        run.committer.check_replica(run.roster.records[A])
    run.committer.check_replica(run.roster.records[B])
    run.report(C, step=1)
    run.roster.records[C].parameter_digest = 9
    run.committer.check_replica(run.roster.records[A])


# -- the round ---------------------------------------------------------------------------------------


def test_who_has_not_prepared_is_asked_again(run):
    run.count_all()
    run.prepared(A, 0b0011)
    assert [peer for peer, *_ in prepares(run.committer.repeat())] == ["sim://c", "sim://b"]
    run.prepared(C, 0b1100)
    run.prepared(B, 0b1111, stage=1)
    assert run.committer.repeat() == []


def test_a_worker_that_catches_up_is_asked_at_once(run):
    """It was asked when it still held the parameters of the step before, which it ignored."""
    run.prepare_all()
    run.committer.decide()
    run.report(C, step=1)
    run.report(C, 0b1111, step=1)
    assert {peer for peer, *_ in prepares(run.committer.consider())} == {"sim://a", "sim://c"}
    assert [peer for peer, *_ in prepares(run.report(A, step=1))] == ["sim://a"]
    assert prepares(run.report(A, step=1)) == []


def test_a_report_with_another_ledger_aborts(run):
    run.count_all()
    append, *aborts = run.report(A, 0b0001)
    assert append.record["event"] == "abort"
    assert "a reports another ledger" in append.record["reason"]
    assert {send.peer for send in aborts} == {"sim://a", "sim://c"}
    assert all(isinstance(send.message, Abort) for send in aborts)
    assert run.committer.consider() == [], "microbatch 1 is missing"
    run.report(A, 0b0011)
    (first, second) = prepares(run.committer.consider())
    assert first[1] == second[1] == (1 << 32) + 3, "a round's number is never used twice"


@pytest.mark.parametrize("of", [{"counted": 0b0111}, {"counted": 0b1100, "digest": 2}], ids=["ledger", "digest"])
def test_a_result_that_does_not_fit_aborts(run, of):
    run.count_all()
    run.prepared(A, 0b0011)
    number = run.round_of(0)
    append, *aborts = run.prepared(C, **of)
    assert (append.record["event"], append.record["round"]) == ("abort", number)
    assert [send.message for send in aborts] == [abort(number)] * 2
    assert [send.peer for send in run.committer.repeat()] == ["sim://b"]


def test_prepared_of_an_older_round_is_ignored(run):
    run.count_all()
    old = run.committer._rounds[0].round
    run.report(A, 0)
    run.report(A, 0b0011)
    run.committer.consider()
    for session, counted in ((A, 0b0011), (C, 0b1100)):
        assert run.committer.prepared(prepared(session, old, counted=counted)) == []
    run.prepared(B, 0b1111, stage=1)
    assert run.committer.decide() is None


# -- the decision ------------------------------------------------------------------------------------


def test_nothing_is_decided_before_everybody_holds_every_stages_result(run):
    run.count_all()
    for session, counted, stage in ((A, 0b0011, 0), (A, 0b0011, 0), (B, 0b1111, 1)):
        run.prepared(session, counted, stage=stage)
        assert run.committer.decide() is None
    run.prepared(C, 0b1100)
    assert run.committer.decide() is not None
    assert run.committer.decide() is None


def test_the_record_is_durable_and_comes_before_the_messages(run):
    run.prepare_all()
    decision, (append, *sends) = run.committer.decide()
    assert isinstance(append, Append)
    assert append.durable
    assert [send.peer for send in sends] == ["sim://a", "sim://c", "sim://b"]
    assert append.record["step"] == decision.step == 0
    assert [stage["contributions"] for stage in append.record["stages"]] == [
        {"1": [0, 1], "3": [2, 3]},
        {"2": [0, 1, 2, 3]},
    ]
    assert run.committer.version == (0, 1)


def test_the_record_holds_all_that_a_later_generation_needs(run):
    run.prepare_all()
    _, (append, *_) = run.committer.decide()
    record = append.record
    assert (record["event"], record["branch"], record["step"], record["snapshot"]) == ("commit", 0, 0, False)
    assert (record["scale"], record["lr"], record["apply"]) == (1.0, pytest.approx(0.1), True)
    assert [(of["stage"], of["round"], of["digest"]) for of in record["stages"]] == [
        (0, (1 << 32) + 1, 1),
        (1, (1 << 32) + 2, 1),
    ]


@pytest.mark.parametrize(
    ("grad_clip", "expected"), [(0.0, 1.0), (100.0, 1.0), (1.0, 1.0 / (math.sqrt(13.0) + NORM_EPSILON))]
)
def test_clipping_is_by_the_norm_of_the_whole_model(grad_clip, expected):
    run = Fixture(grad_clip=grad_clip)
    run.count_all()
    for session, counted, stage, square_norm in ((A, 0b0011, 0, 4.0), (C, 0b1100, 0, 4.0), (B, 0b1111, 1, 9.0)):
        run.prepared(session, counted, stage=stage, square_norm=square_norm)
    decision, commands = run.committer.decide()
    assert decision.grad_norm == pytest.approx(math.sqrt(13.0)), "a stage's norm counts once"
    assert [message.scale for message in of_type(commands, Commit)] == pytest.approx([expected] * 3)


def test_losses_that_are_too_large_for_a_sum_end_no_run():
    assert math.isnan(_total([1.7e308, 1.7e308]))
    assert _total([1.7e308, -1.7e308, 1.0]) == 1.0


def test_the_loss_is_that_of_the_last_stage_over_the_fixed_denominator(run):
    run.count_all()
    for session, counted, stage, loss_sum in ((A, 0b0011, 0, 50.0), (C, 0b1100, 0, 50.0), (B, 0b1111, 1, 6.0)):
        run.prepared(session, counted, stage=stage, loss_sum=loss_sum)
    decision, _ = run.committer.decide()
    assert (decision.loss, decision.lr) == (1.5, pytest.approx(0.1))


def test_a_gradient_that_is_not_finite_skips_the_step_everywhere(run):
    run.count_all()
    for session, counted, stage in ((A, 0b0011, 0), (C, 0b1100, 0), (B, 0b1111, 1)):
        loss_sum = None if session == B else 0.0
        run.prepared(session, counted, stage=stage, finite=session != B, square_norm=0.0, loss_sum=loss_sum)
    decision, (append, *sends) = run.committer.decide()
    assert not decision.apply
    assert math.isnan(decision.loss)
    assert math.isnan(decision.grad_norm)
    assert (append.record["grad_norm"], append.record["apply"]) == (None, False)
    assert {send.message.apply for send in sends} == {False}


def test_commit_is_repeated_to_whoever_is_behind(run):
    run.prepare_all()
    run.committer.decide()
    first, second = (1 << 32) + 1, (1 << 32) + 2
    (message,) = of_type(run.report(A, 0b0011, prepared=first), Commit)
    assert (message.step, message.round) == (0, first)
    assert of_type(run.report(B, 0b1111, prepared=second), Commit)[0].round == second
    assert run.report(A, step=1) == []


@pytest.mark.parametrize(
    "report",
    [
        {"prepared": 0},
        {"prepared": (1 << 32) + 2},
        {"prepared": (1 << 32) + 1, "ready": False},
        {"prepared": (1 << 32) + 1, "branch": 1},
        {"prepared": (1 << 32) + 1, "step": 1},
    ],
    ids=["no result", "another round's", "not its parameters", "another branch", "has applied it"],
)
def test_commit_is_not_for_who_cannot_apply_it(run, report):
    """It would be repeated for ever, and its sender would be waited for."""
    run.prepare_all()
    run.committer.decide()
    assert run.report(A, **report) == []
    assert not run.committer.awaits_commit(run.roster.records[A])


def test_who_has_prepared_awaits_the_commit_before_its_next_report_says_so(run):
    """Its last heartbeat is from before its Prepared: it was told to get its state from somebody else."""
    run.prepare_all()
    assert not run.committer.awaits_commit(run.roster.records[A]), "nothing is committed"
    run.committer.decide()
    assert all(run.committer.awaits_commit(run.roster.records[session]) for session in (A, B, C))


def test_a_commit_of_an_earlier_generation_is_repeated_by_a_later_one():
    """Some had the result and not the commit when the trainer died; the record was on the disk."""
    last = RecoveredCommit(
        step=4,
        scale=0.5,
        lr=0.25,
        apply=True,
        rounds={0: (71, 11), 1: (72, 12)},
    )
    run = Fixture(generation=2, steps=9, recovered=recovered(branch=1, step=5, commit=last))
    assert run.committer.version == (1, 5)
    (message,) = of_type(run.report(A, branch=1, step=4, prepared=71), Commit)
    assert (message.branch, message.step, message.round, message.digest, message.generation) == (1, 4, 71, 11, 2)
    assert (message.scale, message.lr, message.apply, message.snapshot) == (0.5, 0.25, True, False)
    assert run.committer.awaits_commit(run.roster.records[A])
    assert run.report(A, branch=1, step=4, prepared=72) == []
    assert run.report(A, branch=0, step=4, prepared=71) == []


def test_after_a_rollback_or_before_the_first_commit_there_is_nothing_to_repeat():
    run = Fixture(generation=2, recovered=recovered(branch=1, step=0))
    assert run.committer.version == (1, 0)
    assert run.report(A, branch=1, prepared=71) == []


# -- losses ------------------------------------------------------------------------------------------


def test_who_leaves_before_all_have_prepared_makes_the_round_void(run):
    run.count_all()
    number = run.round_of(0)
    run.prepared(A, 0b0011)
    append, *aborts = run.give_up(A)
    assert (append.record["event"], append.record["round"], append.durable) == ("abort", number, False)
    assert append.record["reason"] == "a took part in it and is gone"
    assert [(send.peer, send.message) for send in aborts] == [("sim://c", abort(number))]
    assert run.committer.consider() == [], "what it has counted is to be done again"
    run.report(C, 0b1111)
    assert prepares(run.committer.consider()) == [("sim://c", number + 2, (C,), 0b1111)]


def test_who_leaves_after_all_have_prepared_has_contributed(run):
    run.prepare_all()
    assert run.give_up(A) == []
    decision, (append, *sends) = run.committer.decide()
    assert decision.step == 0
    assert append.record["stages"][0]["contributions"] == {"1": [0, 1], "3": [2, 3]}
    assert [send.peer for send in sends] == ["sim://c", "sim://b"], "to those that are there"


def test_who_leaves_another_stage_disturbs_no_round(run):
    run.report(B, 0b1111)
    run.committer.consider()
    assert run.give_up(A) == []
    assert [peer for peer, *_ in prepares(run.committer.repeat())] == ["sim://b"]


def test_who_has_joined_since_the_round_began_disturbs_none(run):
    run.count_all()
    run.roster.register(register("d", stage=0), Address("sim://d"), 0.0)
    assert run.report(4, 0) == []
    assert run.give_up(4) == []
    assert [peer for peer, *_ in prepares(run.committer.repeat())] == ["sim://a", "sim://c", "sim://b"]


def test_who_has_another_ledger_after_all_have_prepared_disturbs_none(run):
    """Its copy is in the result; a report that contradicts it is of a life that is over, or of none."""
    run.prepare_all()
    assert run.report(A, 0) == []
    assert run.committer.decide() is not None


def test_a_laggard_takes_part_in_the_next_round_as_soon_as_it_has_the_commit(run):
    """Who only lacks the last Commit is waited for with nothing counted, and who needs its state is not."""
    run.prepare_all()
    run.committer.decide()
    run.report(A, 0b1111, step=1)
    run.roster.register(register("d", stage=0), Address("sim://d"), 0.0)
    run.report(4, step=0, ready=True)
    number = (1 << 32) + 3
    assert prepares(run.committer.consider()) == [
        ("sim://a", number, (A, C), 0b1111),
        ("sim://c", number, (A, C), 0),
    ]


def test_after_a_rollback_every_round_and_every_commit_is_void(run):
    run.prepare_all()
    run.committer.decide(with_snapshot=True)
    for session in (A, C):
        run.report(session, 0b0011 if session == A else 0b1100, step=1)
    run.committer.consider()
    old = run.round_of(0)
    run.committer.roll_back(0)
    assert (run.committer.version, run.committer.donors) == ((1, 0), {})
    assert run.report(B, 0b1111, prepared=(1 << 32) + 2) == []
    assert run.committer.prepared(prepared(A, old, counted=0b0011, step=1)) == []
    assert (run.committer.repeat(), run.committer.covered(0)) == ([], 0)
    run.report(B, 0b1111, branch=1)
    ((_, number, _, _),) = prepares(run.committer.consider())
    assert number == old + 1


def test_rounds_of_a_later_generation_are_new():
    run = Fixture(generation=2, recovered=recovered())
    run.report(B, 0b1111)
    ((_, number, _, _),) = prepares(run.committer.consider())
    assert number == (2 << 32) + 1


# -- copies for a checkpoint -------------------------------------------------------------------------


def test_one_worker_of_each_stage_is_asked_to_keep_a_copy(run):
    run.prepare_all()
    _, (append, *sends) = run.committer.decide(with_snapshot=True)
    assert append.record["snapshot"]
    assert {send.peer: send.message.snapshot for send in sends} == {
        "sim://a": True,
        "sim://c": False,
        "sim://b": True,
    }
    assert run.committer.donors == {0: A, 1: B}
    assert of_type(run.report(A, prepared=(1 << 32) + 1), Commit)[0].snapshot, "also when it is repeated"
    assert not of_type(run.report(C, prepared=(1 << 32) + 1), Commit)[0].snapshot


def test_the_copy_is_kept_by_somebody_who_is_there(run):
    run.prepare_all()
    run.give_up(A)
    _, (_, *sends) = run.committer.decide(with_snapshot=True)
    assert [(send.peer, send.message.snapshot) for send in sends] == [("sim://c", True), ("sim://b", True)]
    assert run.committer.donors == {0: C, 1: B}


def test_the_next_commit_asks_for_no_copy(run):
    run.prepare_all()
    run.committer.decide(with_snapshot=True)
    for session, counted in ((A, 0b0011), (C, 0b1100), (B, 0b1111)):
        run.report(session, counted, step=1)
    run.committer.consider()
    for session, counted, stage in ((A, 0b0011, 0), (C, 0b1100, 0), (B, 0b1111, 1)):
        run.prepared(session, counted, stage=stage, step=1)
    _, (append, *sends) = run.committer.decide()
    assert (append.record["snapshot"], run.committer.donors) == (False, {})
    assert not any(send.message.snapshot for send in sends)


def test_the_next_step_needs_the_ledgers_of_the_next_step(run):
    run.prepare_all()
    run.committer.decide()
    assert run.committer.consider() == []
    for session, counted in ((A, 0b1111), (B, 0b1111)):
        run.report(session, counted, step=1)
    assert {message.step for message in of_type(run.committer.consider(), Prepare)} == {1}
    run.prepared(A, 0b1111, step=1)
    run.prepared(B, 0b1111, stage=1, step=1)
    assert run.committer.decide() is None, "C has not applied the step before"
