"""A stage whose parameters nobody holds any more: the swarm goes back to its newest checkpoint, or to the beginning."""

from __future__ import annotations

import pytest

from tests.letters import credit, evaluated, of_type, register, stop
from tests.trainer.swarm import FULL, Trainer, records, written
from zswarm import limits
from zswarm.ids import NodeId
from zswarm.machine import Send
from zswarm.messages import Forward, Restore, Welcome
from zswarm.trainer.phases import Phase
from zswarm.trainer.settings import Append, Forsake, Sample


@pytest.fixture
def trainer():
    """A run with one worker at each of its two stages (sessions 1 and 2) and two brokers (3 and 4)."""
    trainer = Trainer()
    trainer.gather()
    return trainer


def test_a_stage_that_is_lost_makes_the_swarm_go_back(trainer):
    """To its beginning, for there is no checkpoint: the log first, then orders, then the microbatches of step 0."""
    trainer.commit(0)
    trainer.apply(1)
    trainer.live(1.0)
    trainer.get(stop(2))
    del trainer.says[2]
    assert "rollback" not in records(trainer.live(limits.EMPTY_STAGE_HEARTBEATS - 0.5))
    trainer.join("w9")
    commands = trainer.live(1.0)
    (rollback,) = [record for record in written(commands) if record["event"] == "rollback"]
    assert (rollback["branch"], rollback["step"]) == (1, 0)
    assert rollback["reason"] == "stage 1 has no worker left that holds its parameters of step 1"
    (append,) = [c for c in commands if isinstance(c, Append) and c.record["event"] == "rollback"]
    assert append.durable
    told = [c for c in commands if isinstance(c, Send) and getattr(c.message, "branch", 0) == 1]
    assert commands.index(append) < min(commands.index(send) for send in told)
    assert [(m.donor, m.branch, m.step) for m in of_type(commands, Restore) if m.branch == 1] == [(0, 1, 0)]
    assert [(s.step, s.microbatch) for s in of_type(commands, Sample)] == [(0, index) for index in range(4)]


def test_the_new_branch_is_trained_and_the_old_one_is_void(trainer):
    trainer.commit(0)
    trainer.apply(1)
    trainer.live(1.0)
    trainer.dies(2)
    trainer.join("w1", nonce=2, stage=1)
    trainer.report(5, step=0, ready=False)
    trainer.live(limits.EMPTY_STAGE_HEARTBEATS)
    assert trainer.machine.committer.version == (1, 0)
    trainer.report(1, FULL, step=1)
    assert trainer.machine.committer.owned(0) == 0, "counts of the old branch are void"
    sends = trainer.get(credit(3, 9 * 100))
    assert {(m.branch, m.step) for m in of_type(sends, Forward)} == {(1, 0)}
    trainer.report(5, FULL, branch=1, step=0)
    trainer.report(1, FULL, branch=1, step=0)
    trainer.prepare(1, branch=1, step=0)
    (commit,) = written(trainer.prepare(5, branch=1, step=0))
    assert (commit["event"], commit["branch"], commit["step"]) == ("commit", 1, 0)


def test_the_swarm_goes_back_to_its_newest_checkpoint():
    trainer = Trainer(checkpoint_every=1)
    trainer.gather()
    trainer.commit(0)
    trainer.apply(1)
    trainer.live(1.0)
    trainer.give_state(1)
    trainer.seal(1)
    trainer.commit(1)
    trainer.apply(2)
    trainer.live(1.0)
    trainer.dies(2)
    trainer.join("w1", nonce=2, stage=1)
    trainer.report(5, step=0, ready=False)
    commands = trainer.live(limits.EMPTY_STAGE_HEARTBEATS)
    (rollback,) = [record for record in written(commands) if record["event"] == "rollback"]
    assert (rollback["branch"], rollback["step"]) == (1, 1)
    assert Forsake(branch=0, step=2) in trainer.log
    orders = {send.peer: send.message for send in commands if isinstance(send, Send) and type(send.message) is Restore}
    assert {peer: (of.donor, of.branch, of.step) for peer, of in orders.items()} == {
        "sim://1": (0, 1, 1),
        "sim://5": (0, 1, 1),
    }
    assert {sample.step for sample in of_type(commands, Sample)} == {1}


def test_before_the_first_commit_there_is_nothing_to_go_back_from(trainer):
    trainer.dies(2)
    trainer.join("w1", nonce=2)
    assert "rollback" not in records(trainer.live(20.0))


def test_a_stage_that_is_lost_while_the_last_state_is_fetched(trainer):
    """Nobody can give it: the steps since the checkpoint are taken again."""
    trainer.train()
    trainer.live(1.0)
    assert trainer.machine.phase is Phase.COLLECTING
    trainer.dies(2)
    commands = trainer.live(limits.EMPTY_STAGE_HEARTBEATS + 1)
    assert "rollback" in records(trainer.log)
    assert Forsake(branch=0, step=3) in trainer.log
    assert trainer.machine.phase is Phase.TRAINING
    assert trainer.machine.committer.version == (1, 0)
    assert "finish" not in records(commands)


def test_after_going_back_the_last_parameters_are_evaluated_again():
    """They are other ones: gradients were added in another order."""
    trainer = Trainer(num_held_out=1)
    trainer.gather()
    trainer.get(evaluated(2, 0))
    trainer.train()
    trainer.get(evaluated(2, 0, step=3, loss_sum=5.0))
    assert trainer.machine.phase is Phase.COLLECTING
    trainer.dies(2)
    trainer.live(limits.EMPTY_STAGE_HEARTBEATS + 1)
    assert trainer.machine.committer.version == (1, 0)
    assert trainer.machine.admission.is_evaluated(0), "fresh parameters are the same"
    assert not trainer.machine.admission.is_evaluated(3)


def test_who_alone_holds_a_stages_state_is_let_in_again_at_once(trainer):
    """It was kept out, since another worker of its stage was ready, at the step before: and the swarm went back."""
    for _ in range(2):
        trainer.machine.judge._quarantine.note(NodeId("w0"), trainer.now_s)
    trainer.live(1.0)
    trainer.count(0)
    trainer.join("w2", stage=0)
    trainer.report(5, step=0)
    trainer.prepare(1, step=0)
    assert "commit" in records(trainer.prepare(2, step=0))
    trainer.report(2, step=1)
    del trainer.says[1]
    assert "leave" in records(trainer.report(3, accused=(1,)))
    trainer.says[3] = {}
    assert of_type(trainer.get(register("w0", nonce=2, stage=0), peer="sim://w0"), Welcome)
