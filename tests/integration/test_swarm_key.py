"""Swarms with a key: of processes started one by one, of `zswarm local`, and between two machines."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from zswarm.audit import audit
from zswarm.cli.family import free_port
from zswarm.errors import INTERRUPTED
from zswarm.swarm_key import make_key_file, read_key_file
from zswarm.transport.curve import Curve

NUM_STAGES = 2
LONG = ("--set", "run.steps=100000")


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "secrets" / "key"
    make_key_file(path)
    return path


def secrets(key_file) -> list[bytes]:
    """Return the key, and what is derived from it, as it would look in text or in bytes."""
    key = read_key_file(key_file)
    keys = Curve.of(key)
    derived = [keys.server_secret, keys.server_public, keys.client_secret, keys.client_public]
    return [key.secret, key.secret.hex().encode(), *derived]


def shown_by(commands, folder: Path) -> bytes:
    """Return all that processes say of themselves while they run: arguments, and what lies in the run folder."""
    processes = [psutil.Process(command.process.pid) for command in commands]
    processes += [child for process in processes for child in process.children(recursive=True)]
    arguments = [" ".join(process.cmdline()).encode() for process in processes]
    return b"\n".join([*arguments, *(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())])


def start_swarm(zswarm, key_file, host="127.0.0.1", *, trainers=(), workers=()):
    """Start a trainer, and a broker and a worker for each stage, the worker by another command before it."""
    address = f"tcp://{host}:{free_port('127.0.0.1')}"
    key = ("--key", str(key_file))
    swarm = ("--workers", "1", "--brokers", "1", "--out", "out", *key)
    trainer = zswarm.start_any("train", "run.toml", "--listen", address, *swarm, before=trainers)
    place = ("--coordinator", address, *key)
    brokers = [zswarm.start_any("broker", *place, before=trainers) for _ in range(NUM_STAGES)]
    return trainer, [*brokers, *(zswarm.start_any("worker", *place, before=workers) for _ in range(NUM_STAGES))]


def test_a_run_of_processes_with_a_key(zswarm, key_file):
    """It trains and passes the audit; its key is in no argument, no log and no file of its folder."""
    trainer, others = start_swarm(zswarm, key_file)
    trainer.wait_for_step(1)
    shown = shown_by([trainer, *others], trainer.folder)
    said = [command.wait() for command in (trainer, *others)]
    assert [code for code, _ in said] == [0] * 5, said
    assert all(check.is_passed for check in audit(trainer.folder))
    shown += shown_by([], trainer.folder) + "".join(errors for _, errors in said).encode()
    assert b"--key" in shown
    assert b"listening" in shown
    assert not [secret for secret in secrets(key_file) if secret in shown]


def test_local_hands_its_key_to_its_children(zswarm, key_file, tmp_path):
    """Whoever dials one of them without the key is told nothing, and ends with what to do."""
    command = zswarm.start("local", "--key", str(key_file), *LONG)
    command.wait_for_step(1)
    shown = shown_by([command], command.folder)
    ports = {
        connection.laddr.port
        for child in command.children()
        for connection in child.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ports) == 1 + 2 * 2 + 2 * NUM_STAGES
    for port in sorted(ports):
        stranger = zswarm.start_any("broker", "--coordinator", f"tcp://127.0.0.1:{port}")
        code, errors = stranger.wait()
        assert code == 2
        assert "this process has no swarm key" in errors
    command.process.send_signal(signal.SIGINT)
    code, errors = command.wait()
    assert code == INTERRUPTED
    assert not [secret for secret in secrets(key_file) if secret in shown + errors.encode()]


def test_a_key_that_others_can_read_starts_nothing(zswarm, key_file):
    """One line, exit code 2, and no run folder."""
    key_file.chmod(0o644)
    command = zswarm.start("local", "--key", str(key_file))
    code, errors = command.wait()
    assert code == 2
    assert errors == (
        f"zswarm: {key_file}: the swarm key has mode 0644: others may have read it; chmod 600 it, or make a new one\n"
    )
    assert not command.folder.exists()


def test_a_run_between_two_machines(zswarm, key_file, lan):
    """Everybody listens on the address by which his machine reaches the trainer, without being told."""
    here, there = lan(2).machines
    trainer, others = start_swarm(zswarm, key_file, "10.77.0.1", trainers=here, workers=there)
    said = [command.wait() for command in (trainer, *others)]
    assert [code for code, _ in said] == [0] * 5, said
    assert all(check.is_passed for check in audit(trainer.folder))
    listening = [json.loads(errors.partition("\n")[0]) for _, errors in said[1:]]
    hosts = [[record[plane] for plane in ("control", "work", "peer") if plane in record] for record in listening]
    assert [{address.split(":")[1] for address in addresses} for addresses in hosts] == [
        {"//10.77.0.1"},
        {"//10.77.0.1"},
        {"//10.77.0.2"},
        {"//10.77.0.2"},
    ]
