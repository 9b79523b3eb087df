"""A broker process of its own, and this process as its coordinator."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from tests.letters import welcome
from tests.transport.boards import DEADLINE_S, poll_until
from zswarm import wire
from zswarm.benchmarks.children import Children
from zswarm.ids import Address
from zswarm.messages import BrokerHeartbeat, Register, Stop
from zswarm.transport import Switchboard

HOST = Address("tcp://127.0.0.1:*")


@pytest.fixture
def coordinator():
    with Switchboard() as switchboard:
        yield switchboard


@pytest.fixture
def broker(coordinator):
    command = ["-m", "zswarm", "broker", "--coordinator", coordinator.bind("coordinator", HOST)]
    with Children([command], deadline_s=DEADLINE_S) as children:
        yield children


def hear(coordinator, kind):
    """Wait for a message of a kind."""
    received = poll_until(lambda so_far: any(isinstance(r.message, kind) for r in so_far), coordinator)
    return next(r for r in received if isinstance(r.message, kind))


def place(coordinator) -> None:
    """Welcome the broker as session 50."""
    register = hear(coordinator, Register)
    message = replace(welcome(50, nonce=register.message.boot_nonce, stage=1), size_bytes=2)
    coordinator.send(register.peer, message, wire.split(b"{}"))
    hear(coordinator, BrokerHeartbeat)


def test_it_says_farewell_at_sigterm(coordinator, broker):
    place(coordinator)
    os.kill(broker.pid(0), signal.SIGTERM)
    assert hear(coordinator, Stop).message.session == 50
    assert broker.wait(0) == ""


def test_it_ends_at_sigterm_before_it_has_a_place(coordinator, broker):
    hear(coordinator, Register)
    os.kill(broker.pid(0), signal.SIGTERM)
    assert broker.wait(0) == ""
