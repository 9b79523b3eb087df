from __future__ import annotations

import queue
import threading

import pytest

from zswarm import limits, wire
from zswarm.ids import StatePart
from zswarm.messages import Pull
from zswarm.trainer.checkpoint_thread import BEHIND, CheckpointThread, Tidy
from zswarm.trainer.settings import Behind, CaughtUp, Forsake, Read, Seal, Sealed, Store, WasRead

DEADLINE_S = 30.0
LOAD = wire.parcelled(b"range", ())


class SlowDisk:
    """Does nothing before it is let, and says what it was asked for."""

    def __init__(self):
        self.may_begin = threading.Event()
        self.done = []

    def _do(self, what):
        assert self.may_begin.wait(DEADLINE_S)
        self.done.append(what)

    def store(self, command):
        self._do(command)

    def forsake(self, version):
        self._do(("forsake", version))

    def tidy(self, back_to):
        self._do(("tidy", back_to))

    def seal(self, version):
        self._do(("seal", version))
        if version == (0, 66):
            raise ZeroDivisionError("what nobody has thought of")
        return Sealed(branch=version[0], step=version[1])

    def read(self, command):
        self._do(command)
        return WasRead(peer=command.peer, pull=command.pull, total_bytes=5, load=LOAD)


@pytest.fixture
def disk():
    return SlowDisk()


@pytest.fixture
def thread(disk):
    woken = queue.SimpleQueue()
    with CheckpointThread(disk, wake=lambda: woken.put(None)) as thread:
        thread.woken = woken
        yield thread
        disk.may_begin.set()


def next_events(thread, count):
    events = []
    while len(events) < count:
        thread.woken.get(timeout=DEADLINE_S)
        events += thread.events()
    return events


def next_event(thread):
    (event,) = next_events(thread, 1)
    return event


def store(step, offset=0):
    return Store(
        branch=0,
        step=step,
        part=StatePart.PARAMETERS,
        layer=0,
        offset_bytes=offset,
        total_bytes=50,
        load=LOAD,
    )


def read(offset=0):
    pull = Pull(
        run=1, generation=1, session=7, branch=0, step=4, part=StatePart.PARAMETERS, layer=0, offset_bytes=offset
    )
    return Read(peer=b"peer", pull=pull, checkpoint=(0, 4))


def test_commands_are_carried_out_in_their_order_and_answered(disk, thread):
    disk.may_begin.set()
    commands = [store(4), store(4, 5), Seal(branch=0, step=4), Tidy(), Forsake(branch=0, step=8), Tidy(back_to=(1, 4))]
    for command in commands:
        thread.submit(command)
    assert next_event(thread) == Sealed(branch=0, step=4)
    thread.submit(read())
    assert next_event(thread).load is LOAD
    assert disk.done == [
        commands[0],
        commands[1],
        ("seal", (0, 4)),
        ("tidy", None),
        ("forsake", (0, 8)),
        ("tidy", (1, 4)),
        read(),
    ]


@pytest.mark.parametrize("num_more", [0, 1, 30])
def test_a_disk_that_is_too_slow_is_behind_until_it_has_caught_up(disk, thread, num_more):
    """Nothing is given up for that; the coordinator hears of both, once."""
    said = [thread.submit(store(4, 5 * index)) for index in range(BEHIND + 1 + num_more)]
    assert [Behind() for each in said if each] == [each[0] for each in said if each] == [Behind()]
    thread.submit(Seal(branch=0, step=4))
    disk.may_begin.set()
    assert next_events(thread, 2) == [CaughtUp(), Sealed(branch=0, step=4)]
    assert len(disk.done) == BEHIND + 2 + num_more
    assert thread.submit(store(6)) == []


def test_reads_have_a_bound_and_what_is_more_is_lost(disk, thread):
    for offset in range(limits.MAX_PULLS + 3):
        thread.submit(read(offset))
    disk.may_begin.set()
    answers = [event for event in next_events(thread, limits.MAX_PULLS + 1) if event != CaughtUp()]
    assert [event.pull.offset_bytes for event in answers] == list(range(limits.MAX_PULLS))
    thread.submit(read(99))
    assert next_event(thread).pull.offset_bytes == 99


def test_a_bug_on_the_way_is_an_answer_and_not_the_end_of_the_thread(disk, thread, capsys):
    disk.may_begin.set()
    thread.submit(Seal(branch=0, step=66))
    assert "bug of zswarm: ZeroDivisionError" in next_event(thread).problem
    thread.submit(Seal(branch=0, step=67))
    assert next_event(thread).problem == ""


def test_leaving_does_not_wait_for_what_is_queued(disk):
    with CheckpointThread(disk, wake=lambda: None) as thread:
        disk.may_begin.set()
        thread.submit(Seal(branch=0, step=4))
    assert thread.events() == [Sealed(branch=0, step=4)]
