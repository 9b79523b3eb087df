"""`zswarm move`, with this test as the trainer."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.letters import moved, reject
from tests.transport.boards import DEADLINE_S, poll_until
from zswarm.cli import main
from zswarm.cli import move as moving
from zswarm.cli.move import move
from zswarm.errors import RunFailed, UserError
from zswarm.ids import Address, NodeId, Stage
from zswarm.messages import Message, Move
from zswarm.transport import Switchboard

HOST = Address("tcp://127.0.0.1:*")
NODE = NodeId("worker-3")


def asked(answers: list[Message], *, num_orders: int = 1) -> tuple[Future[str], list[Move]]:
    """Ask for a move, answer the last of so many orders, and return what came of it and the orders."""
    with Switchboard() as trainer, ThreadPoolExecutor(max_workers=1) as pool:
        address = trainer.bind("coordinator", HOST)
        outcome = pool.submit(move, node=NODE, stage=Stage(1), coordinator=address, key=None)
        received = poll_until(lambda so_far: len(so_far) >= num_orders, trainer)
        for answer in answers:
            trainer.send(received[-1].peer, answer)
        outcome.exception(timeout=DEADLINE_S)
    return outcome, [each.message for each in received if isinstance(each.message, Move)]


def test_it_says_what_the_trainer_says():
    """An answer to somebody else's order is none."""
    answers = [moved("worker-3", 0, "no"), moved("worker-4", 1, "no"), moved("worker-3", 1, "it goes to stage 1")]
    outcome, (order,) = asked(answers)
    assert outcome.result() == "it goes to stage 1"
    assert (order.node, order.stage, order.run, order.session) == ("worker-3", 1, 0, 0)


def test_a_refusal_is_the_users_error():
    outcome, _ = asked([moved("worker-3", 1, "worker-3 leaves", is_accepted=False)])
    with pytest.raises(UserError, match="worker-3 leaves"):
        outcome.result()


def test_a_trainer_of_another_version_is_told():
    outcome, _ = asked([reject("it speaks version 2")])
    with pytest.raises(UserError, match=r"--coordinator tcp://127.0.0.1:\d+: it speaks version 2"):
        outcome.result()


def test_it_asks_again_until_it_is_answered(monkeypatch):
    monkeypatch.setattr(moving, "AGAIN_S", 0.05)
    outcome, orders = asked([moved("worker-3", 1, "it goes")], num_orders=3)
    assert outcome.result() == "it goes"
    assert len(set(orders)) == 1


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(moving, "ANSWER_S", 0.1)
    with pytest.raises(RunFailed, match=r"tcp://127.0.0.1:1: no trainer has answered within 0.1 s"):
        move(node=NODE, stage=Stage(1), coordinator=Address("tcp://127.0.0.1:1"), key=None)


def test_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(moving, "move", lambda **of: f"{of['node']} goes to {of['stage']} at {of['coordinator']}")
    assert main.run(["move", "w1", "2", "--coordinator", "tcp://127.0.0.1:4711"]) == 0
    assert capsys.readouterr().out == "w1 goes to 2 at tcp://127.0.0.1:4711\n"
    assert main.run(["move", "w1", "x", "--coordinator", "tcp://127.0.0.1:4711"]) == 2
    assert main.run(["move", "w1", "256", "--coordinator", "tcp://127.0.0.1:4711"]) == 2
