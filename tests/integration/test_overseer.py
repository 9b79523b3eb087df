"""What systemd hears of whole runs, through the socket that their environment names."""

from __future__ import annotations

import secrets
import socket

import pytest


@pytest.fixture
def notified(monkeypatch):
    """Return a function that returns what has been told since the last call; the socket is in the environment."""
    address = f"zswarm-{secrets.token_hex(8)}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{address}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{address}")
        systemd.setblocking(False)

        def heard() -> list[str]:
            reports = []
            while True:
                try:
                    reports.append(systemd.recv(4096).decode())
                except BlockingIOError:
                    return reports

        yield heard


def test_a_run_that_is_done_is_ready_and_over(zswarm, notified):
    """A unit of a run that is done, started at boot, failed: it had ended without being ready, and so again and again.

    The children of `zswarm local`, on the other hand, are nobody's services.
    """
    assert zswarm.run("local", "--set", "run.steps=1")["steps"] == 1
    assert notified() == []
    model = zswarm.folder / "out" / "model.safetensors"
    model.unlink()
    code, errors = zswarm.start("train", "--listen", "tcp://127.0.0.1:*", "--set", "run.steps=1").wait()
    assert code == 0, errors
    assert notified() == ["READY=1\nSTATUS=all steps are done"]
    assert model.exists()
