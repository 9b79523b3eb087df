from __future__ import annotations

import math

import pytest

from tests.letters import header, heartbeat, of_type, prepared, register
from tests.trainer.settings import settings
from zswarm import ledger
from zswarm.errors import RunFailed
from zswarm.ids import Address
from zswarm.machine import Send
from zswarm.messages import Abort, Commit, Prepare
from zswarm.trainer.commit import NORM_EPSILON, Committer
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Append

A, B, C = 1, 2, 3
"""A and C work at stage 0, B at stage 1."""


class Fixture:
    """A run of four microbatches a step; everybody is ready and has counted nothing."""

    def __init__(self, **changes) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for node in ("a", "b", "c"):
            self.roster.register(register(node), Address(f"sim://{node}"), 0.0)
        self.committer = Committer(settings(**changes), self.roster, header())
        self.num_reports = 0
        for session in (A, B, C):
            self.report(session)

    def report(self, session, counted=0, *, step=0, ready=True):
        self.num_reports += 1
        record = self.roster.records[session]
        assert record.note(heartbeat(session, self.num_reports, step=step, counted=counted, ready=ready))
        return self.committer.reported(record)

    def prepared(self, session, counted, *, stage=0, **of):
        round_ = self.committer._rounds[stage].round
        return self.committer.prepared(prepared(session, round_, counted=counted, **of))

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


def test_a_microbatch_in_two_ledgers_is_never_committed(run):
    run.report(A, 0b0111)
    run.report(C, 0b1100)
    with pytest.raises(RunFailed, match=r"step 0, stage 0: a microbatch was counted by two"):
        run.committer.consider()


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
    commands = run.prepared(C, **of)
    assert len(of_type(commands, Abort)) == 2
    assert run.committer.num_aborted == 1


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
    assert (run.committer.step, run.committer.members) == (1, {A, B, C})


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
    (message,) = of_type(run.report(A, 0b0011), Commit)
    assert (message.step, message.round) == (0, (1 << 32) + 1)
    assert of_type(run.report(B, 0b1111), Commit)[0].round == (1 << 32) + 2
    assert run.report(A, step=1) == []


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
