"""A run whose messages are changed on their way, as no network does that TCP's checksum does not see: by a proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.integration.commands import Zswarm
from zswarm.audit import audit
from zswarm.cli.family import free_port

GREETING_BYTES = 200
"""What two sockets say before the first message."""
MEAN_BYTES = 4000
"""Between two changed bits: a message is some hundred bytes."""


class BitFlipper:
    """Passes on what two sides say, now and then with a bit changed."""

    def __init__(self, server: socket.socket, target: tuple[str, int]) -> None:
        self.num_flipped = 0
        self._server = server
        self._target = target
        self._random = Random(5)
        self._sockets: list[socket.socket] = []

    def serve(self) -> None:
        """Take connections until the server's socket is closed."""
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            try:
                called = socket.create_connection(self._target)
            except OSError:
                # The trainer has ended.
                caller.close()
                continue
            self._sockets += [caller, called]
            for ways in ((caller, called), (called, caller)):
                threading.Thread(target=self._pass_on, args=ways, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        passed, next_flip = 0, GREETING_BYTES + self._random.expovariate(1 / MEAN_BYTES)
        try:
            while data := bytearray(source.recv(65536)):
                while next_flip < passed + len(data):
                    data[int(next_flip) - passed] ^= 1 << self._random.randrange(8)
                    self.num_flipped += 1
                    next_flip += 1 + self._random.expovariate(1 / MEAN_BYTES)
                passed += len(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, target):
                # Both directions end: half of a connection is of use to nobody.
                each.close()

    def close(self) -> None:
        """End every connection."""
        self._server.close()
        for each in self._sockets:
            each.close()


@contextmanager
def bit_flipper(target: tuple[str, int]) -> Iterator[tuple[BitFlipper, str]]:
    """Give one in front of a port of the loopback, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        flipper = BitFlipper(server, target)
        threading.Thread(target=flipper.serve, daemon=True).start()
        try:
            yield flipper, f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            flipper.close()


def test_messages_that_are_changed_on_the_way_cost_time_and_nothing_else(zswarm: Zswarm) -> None:
    """Between the trainer and one of two workers: headers, reports, commits."""
    port = free_port("127.0.0.1")
    address = f"tcp://127.0.0.1:{port}"
    trainer = zswarm.start_any(
        *("train", "run.toml", "--listen", address, "--workers", "2", "--brokers", "1", "--out", "out"),
        *("--set", "pipeline.stages=1", "--set", "run.steps=80"),
    )
    trainer.wait_for_word("out")
    with bit_flipper(("127.0.0.1", port)) as (flipper, crooked):
        others = [zswarm.start_any("worker", "--coordinator", crooked, "--name", "crooked")]
        others.append(zswarm.start_any("worker", "--coordinator", address, "--name", "straight"))
        others.append(zswarm.start_any("broker", "--coordinator", address))
        code, errors = trainer.wait()
        assert code == 0, errors
        for command in others:
            # Whether the word that the run is over has come through is a matter of luck.
            command.process.kill()
            command.wait()
    assert flipper.num_flipped > 0, "one that makes a frame seem long may keep all behind it back for a while"
    assert all(check.is_passed for check in audit(trainer.folder))
    events = trainer.events()
    names = {event["session"]: event["node"] for event in events if event["event"] == "join"}
    counted = {
        names[int(session)]
        for event in events
        if event["event"] == "commit"
        for session, microbatches in event["stages"][0]["contributions"].items()
        if microbatches
    }
    assert counted == {"crooked", "straight"}
