"""Machines that join, find each other, and serve whatever run there is."""

from __future__ import annotations

import os
import signal

import pytest

from tests.integration.commands import all_gone
from zswarm.audit import audit
from zswarm.cli.family import free_port
from zswarm.swarm_key import make_key_file

STAGES = 2


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    make_key_file(path)
    return path


def end_in_peace(commands) -> None:
    """Ctrl-C ends each of them, with nothing left behind."""
    for command in commands:
        command.process.send_signal(signal.SIGINT)
    for command in commands:
        code, errors = command.wait()
        assert code == 130, errors
        assert "Traceback" not in errors


def test_machines_that_join_serve_two_runs_one_after_the_other(zswarm, lan, key_file):
    """Found by mDNS alone, in a network that leads nowhere; nobody has a run file but the trainer."""
    network = lan(3)
    key = ("--key", str(key_file))
    joined = [
        zswarm.start_any("join", "--workers", "1", "--name", f"lab{index}", *key, before=machine)
        for index, machine in enumerate(network.machines[:2])
    ]
    for out in ("first", "second"):
        trainer = zswarm.start_any(
            "train", "run.toml", "--out", out, "--workers", "1", *key, before=network.machines[2], out=out
        )
        code, errors = trainer.wait()
        assert code == 0, errors
        assert all(check.is_passed for check in audit(trainer.folder))
        joins = {event["node"] for event in trainer.events() if event["event"] == "join"}
        assert joins == {f"lab{index}-{role}-0" for index in range(2) for role in ("broker", "worker")}
    end_in_peace(joined)


def test_a_machine_that_is_paused_gives_its_devices_back_and_returns(zswarm):
    """On one machine, without a key, over the loopback; the run waits for its workers, and goes on."""
    port = str(free_port("127.0.0.1"))
    joined = zswarm.start_any("join", "--workers", str(STAGES), "--port", port)
    trainer = zswarm.start(
        "train",
        "--seed",
        f"127.0.0.1:{port}",
        "--listen",
        f"tcp://127.0.0.1:{free_port('127.0.0.1')}",
        "--set",
        "run.steps=100000",
    )
    trainer.wait_for_step(1)
    beacon, *brokers_and_workers = joined.children()
    assert len(brokers_and_workers) == 2 * STAGES
    assert zswarm.start_any("pause").wait()[0] == 0
    assert all_gone(brokers_and_workers[STAGES:])
    assert all(broker.is_running() for broker in (beacon, *brokers_and_workers[:STAGES]))
    assert zswarm.start_any("resume").wait()[0] == 0
    joined.wait_for_word("resumed")
    done = max(event["step"] for event in trainer.events() if event["event"] == "commit")
    trainer.wait_for_step(done + 2)
    trainer.process.send_signal(signal.SIGINT)
    assert trainer.wait()[0] == 130
    end_in_peace([joined])


@pytest.mark.parametrize(
    ("is_same_address", "says"), [(False, "its trainer is gone"), (True, "the run is over")], ids=["elsewhere", "there"]
)
def test_a_run_whose_trainer_is_gone_for_good_is_left_for_another_one(zswarm, is_same_address, says):
    """The trainer loses its machine; a new run is offered later, under that address or another, and gets the workers."""
    port = str(free_port("127.0.0.1"))
    joined = zswarm.start_any("join", "--workers", str(STAGES), "--port", port)
    first = free_port("127.0.0.1")

    def train(out: str, *more: str):
        listen = f"tcp://127.0.0.1:{first if is_same_address or out == 'lost' else free_port('127.0.0.1')}"
        seed = f"127.0.0.1:{port}"
        return zswarm.start("train", "--out", out, "--seed", seed, "--listen", listen, *more, out=out)

    lost = train("lost", "--set", "run.steps=100000")
    lost.wait_for_step(1)
    os.killpg(lost.process.pid, signal.SIGKILL)
    lost.wait()
    code, errors = train("next").wait()
    assert code == 0, errors
    joined.wait_for_word(says)
    end_in_peace([joined])


def test_a_seed_that_is_no_machine_is_told_before_anything_starts(zswarm):
    code, errors = zswarm.start_any("join", "--seed", "no such machine").wait()
    assert (code, errors) == (
        2,
        "zswarm: --seed: 'no such machine' is no machine: write HOST or HOST:PORT, such as lab2 or 10.0.0.2:4710\n",
    )
