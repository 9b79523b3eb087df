"""What ends a wait besides a message."""

from __future__ import annotations

import os
import threading
import time

from tests.transport.boards import DEADLINE_S, numbered
from zswarm.ids import Address
from zswarm.transport import Switchboard


def test_another_thread_ends_the_wait(here: Switchboard) -> None:
    """The call may come before the wait begins or during it."""
    wake = here.waker()
    thread = threading.Thread(target=wake)
    begin_s = time.monotonic()
    thread.start()
    assert here.poll(DEADLINE_S) == []
    thread.join()
    assert time.monotonic() - begin_s < DEADLINE_S


def test_many_calls_are_one_wake_up(here: Switchboard) -> None:
    """Calling never blocks, however often; afterwards a wait lasts its time."""
    wake = here.waker()
    for _ in range(100_000):
        wake()
    begin_s = time.monotonic()
    for _ in range(1000):
        here.poll(0.0)
    here.poll(0.02)
    assert time.monotonic() - begin_s >= 0.02


def test_waking_a_closed_switchboard_does_nothing() -> None:
    """A thread may outlive it."""
    with Switchboard() as board:
        wake = board.waker()
    wake()


def test_a_watched_pipe_calls_back_for_bytes_and_for_its_end(here: Switchboard) -> None:
    """The end of a parent process is the end of a pipe."""
    read_fd, write_fd = os.pipe()
    heard: list[bytes] = []

    def hear() -> None:
        heard.append(os.read(read_fd, 100))

    here.watch(read_fd, hear)
    os.write(write_fd, b"bytes")
    here.poll(DEADLINE_S)
    os.close(write_fd)
    here.poll(DEADLINE_S)
    assert heard == [b"bytes", b""]
    os.close(read_fd)


def test_a_wait_with_nothing_to_wait_for_is_as_long_as_told(here: Switchboard) -> None:
    """Not shorter: a loop that wakes too early burns a core."""
    here.bind("control", Address("tcp://127.0.0.1:*"))
    here.send(Address("tcp://127.0.0.1:1"), numbered(0))
    begin_s = time.monotonic()
    assert here.poll(0.0205) == []
    assert time.monotonic() - begin_s >= 0.0205
    assert here.poll(-1.0) == []
