"""Two processes of one name."""

from __future__ import annotations

import pytest

from tests.letters import of_type, register
from tests.trainer.swarm import Trainer, records, to, written
from zswarm import limits
from zswarm.ids import NodeId, RejectCode, Role
from zswarm.messages import Fence, Reject, Welcome
from zswarm.trainer.feuds import Feuds

NODE = NodeId("w0")
PLACES = ("tcp://10.0.0.2:1", "tcp://10.0.0.3:1")
OURS, THEIRS = 1000, 2000
"""The nonces of the first lives of two processes."""


def test_as_many_comebacks_as_are_allowed_are_no_feud():
    """A frozen process whose supervisor has started another one comes back, too."""
    feuds = Feuds()
    said = [feuds.came_back(NODE, PLACES, float(i)) for i in range(limits.MAX_COMEBACKS)]
    assert said == [""] * limits.MAX_COMEBACKS
    assert feuds.refusal(NODE, 5.0) == ""


def test_one_more_within_a_minute_is_a_feud():
    """Both places are named, and what to do."""
    feuds = Feuds()
    said = [feuds.came_back(NODE, PLACES, float(i)) for i in range(limits.MAX_COMEBACKS + 1)]
    assert all(word in said[-1] for word in (NODE, *PLACES, "cloned disk", "--name"))
    assert len(said[-1]) < limits.MAX_TEXT_CHARS
    now = float(limits.MAX_COMEBACKS)
    assert feuds.refusal(NODE, now + limits.FEUD_S - 0.1) == said[-1]
    assert feuds.refusal(NODE, now + limits.FEUD_S) == ""
    assert feuds.refusal(NodeId("w1"), now) == ""


def test_comebacks_that_are_rare_are_never_a_feud():
    """However many a long run has."""
    feuds = Feuds()
    apart_s = limits.FEUD_S / limits.MAX_COMEBACKS + 0.1
    assert not any(feuds.came_back(NODE, PLACES, i * apart_s) for i in range(50))


def test_what_is_remembered_is_bounded(monkeypatch):
    """A member may make up names as long as it likes."""
    monkeypatch.setattr(limits, "MAX_ENDED_NODES", 3)
    feuds = Feuds()
    for index in range(100):
        feuds.came_back(NodeId(f"w{index}"), PLACES, 0.0)
    assert len(feuds._feuds) == 3


# -- the coordinator -----------------------------------------------------------------------------------


@pytest.fixture
def trainer():
    return Trainer()


def fight(trainer: Trainer) -> list:
    """Have two processes register in turn, each as the life after the one that the other has ended, until both go."""
    commands = []
    nonces = {"sim://ours": OURS, "sim://theirs": THEIRS}
    for turn in range(20):
        peer = list(nonces)[turn % 2]
        commands = trainer.get(register(NODE, nonce=nonces[peer]), peer=peer)
        if of_type(commands, Reject):
            return commands
        nonces[peer] += 1
    raise AssertionError("they fight for ever")


def test_both_are_refused_and_the_user_is_told(trainer):
    """The log says why the one that was in has left; the run knows neither of them any more."""
    commands = fight(trainer)
    assert to(commands, Reject) == ["sim://theirs", "sim://ours"]
    codes = {reject.code for reject in of_type(commands, Reject)}
    assert codes == {RejectCode.DUPLICATE}
    (leave,) = [record for record in written(commands) if record["event"] == "leave"]
    assert leave["node"] == NODE
    assert "two processes call themselves w0" in leave["reason"]
    assert trainer.machine.roster.life_of(NODE) is None


def test_a_fight_is_over_after_as_many_lives_as_comebacks(trainer):
    """The first life of each is no comeback."""
    fight(trainer)
    joins = records(trainer.log).count("join")
    assert joins == 2 + limits.MAX_COMEBACKS


def test_for_a_minute_nobody_of_that_name_comes_in_then_everybody(trainer):
    """Whoever was fenced in the middle of it asks again and has to hear the same."""
    fight(trainer)
    for nonce in (OURS + 50, THEIRS + 50, 3000):
        (reject,) = of_type(trainer.get(register(NODE, nonce=nonce), peer="sim://late"), Reject)
        assert reject.code is RejectCode.DUPLICATE
    assert of_type(trainer.join("w1"), Welcome)
    trainer.now_s += limits.FEUD_S
    assert of_type(trainer.get(register(NODE, nonce=3000), peer="sim://late"), Welcome)


def test_a_process_that_keeps_dying_is_no_feud(trainer):
    """Each of its lives has another nonce, and none that was ended comes back."""
    for nonce in range(100, 100 * 40, 100):
        commands = trainer.get(register(NODE, nonce=nonce), peer=f"sim://{nonce}")
        assert of_type(commands, Welcome)


def test_a_process_that_is_fenced_again_and_again_is_no_feud(trainer):
    """It has the next nonce each time, and nobody else lives under its name meanwhile."""
    for nonce in range(100, 120):
        assert of_type(trainer.get(register(NODE, nonce=nonce), peer="sim://w0"), Welcome)
        session = trainer.machine.roster.life_of(NODE).session
        trainer.report(session)
        trainer.says.clear()
        fences = of_type(trainer.live(5.0), Fence)
        assert session in {fence.fenced for fence in fences}


def test_a_feud_of_brokers_is_one_too(trainer):
    """Roles share the names."""
    for turn in range(2 + limits.MAX_COMEBACKS):
        message = register("b0", role=Role.BROKER, nonce=(OURS, THEIRS)[turn % 2] + turn // 2)
        assert of_type(trainer.get(message, peer=f"sim://{turn % 2}"), Welcome)
    message = register("b0", role=Role.BROKER, nonce=(OURS, THEIRS)[(turn + 1) % 2] + (turn + 1) // 2)
    assert of_type(trainer.get(message, peer="sim://last"), Reject)
