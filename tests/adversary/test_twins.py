"""Two processes that go by one name, as after a disk was cloned."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.trainer.settings import settings
from zswarm.errors import REFUSED
from zswarm.loop import Loop
from zswarm.machine import Exit
from zswarm.trainer.coordinator import Coordinator
from zswarm.trainer.settings import Append, Interrupted
from zswarm.transport import Switchboard

DEADLINE_S = 60.0


@pytest.fixture
def twins():
    """Start broker processes of one name on demand; whoever is left at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(address: str) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "zswarm", "broker", "--coordinator", address, "--name", "lab3"]
        started.extend(subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_two_of_one_name_are_both_refused_with_both_addresses(twins):
    """They ended each other's life for ever, several times a second, without a word to anybody."""
    records = []
    with Switchboard() as switchboard:
        address = switchboard.bind("coordinator", "tcp://127.0.0.1:*")
        processes = twins(address)
        deadline_s = time.monotonic() + DEADLINE_S

        def perform(command):
            records.extend([command.record] if isinstance(command, Append) else [])
            return ()

        def collect():
            assert time.monotonic() < deadline_s, records
            return [Interrupted()] if all(process.poll() is not None for process in processes) else []

        end = Loop(Coordinator(settings(), random=lambda: 0.0), switchboard, perform=perform, collect=collect).run()
    assert isinstance(end, Exit)
    said = [(process.returncode, process.stderr.read().splitlines()[-1]) for process in processes]
    assert [code for code, _ in said] == [REFUSED, REFUSED]
    for _, text in said:
        assert text.startswith("zswarm: two processes call themselves lab3, at tcp://127.0.0.1:")
        assert text.count("tcp://127.0.0.1:") == 2
    reasons = [record["reason"] for record in records if record["event"] == "leave"]
    assert reasons[-1] == said[0][1].removeprefix("zswarm: ")
    assert len(reasons) < 10
