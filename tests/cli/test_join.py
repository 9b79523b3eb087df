"""What `zswarm join` does about its children, with a family that is made up and a clock that only waits move."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from zswarm.cli import join
from zswarm.cli.family import Ended
from zswarm.errors import HANGS, TRY_LATER, RunFailed

AT_ONCE_S = 1e-6
"""What a wait of nothing takes: a loop of them is a processor's time."""


class World:
    """A family whose children live until they are told to end, a machine that may be paused, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.is_paused = False
        self.alive: set[str] = set()
        self.forked: list[str] = []
        self.waits: list[float] = []
        self.codes: dict[str, int] = {}
        """Of children that end as soon as they are started."""
        self._ended: list[Ended] = []
        self._plan: list[tuple[float, Callable[[], None]]] = []
        self._signals = b""

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        self._plan.append((when_s, do))

    def set_paused(self, is_paused: bool) -> Callable[[], None]:
        return lambda: setattr(self, "is_paused", is_paused)

    def end(self, name: str, code: int) -> None:
        self.alive.discard(name)
        self._ended.append(Ended(name=name, code=code))

    def run(self, caretaker: join.Caretaker, until_s: float) -> int:
        self.at(until_s, lambda: setattr(self, "_signals", bytes([signal.SIGTERM])))
        return caretaker.run()

    # -- the family ---------------------------------------------------------------------------------------

    def fork(self, name: str, _body: object) -> None:
        self.forked.append(name)
        self.alive.add(name)
        if name in self.codes:
            self.end(name, self.codes[name])

    def processes(self) -> dict[str, int]:
        return dict.fromkeys(sorted(self.alive), 1)

    def reap(self) -> dict[int, Ended]:
        ended, self._ended = self._ended, []
        return dict(enumerate(ended))

    def kill_hung(self) -> list[str]:
        return []

    def signal(self, name: str, number: int) -> None:
        self.end(name, 0 if number == signal.SIGTERM else -number)

    # -- the system ---------------------------------------------------------------------------------------

    @contextmanager
    def wake_on_signals(self) -> Iterator[Callable[[float], bytes]]:
        def wait(timeout_s: float) -> bytes:
            self.waits.append(timeout_s)
            assert len(self.waits) < 1000, "it spins"
            self.now += max(timeout_s, AT_ONCE_S)
            for due in [each for each in self._plan if each[0] <= self.now]:
                self._plan.remove(due)
                due[1]()
            return self._signals

        yield wait


@pytest.fixture
def world(monkeypatch) -> World:
    made = World()
    monkeypatch.setattr(join, "wake_on_signals", made.wake_on_signals)
    monkeypatch.setattr(join, "is_paused", lambda: made.is_paused)
    monkeypatch.setattr(join, "monotonic", lambda: made.now)
    return made


def caretaker_of(world: World, *workers: str) -> join.Caretaker:
    caretaker = join.Caretaker(world)
    caretaker.add("beacon", int)
    for name in workers:
        caretaker.add(name, int, is_pausable=True)
    return caretaker


def test_a_pause_between_two_lives_of_a_worker_is_waited_for_in_peace(world):
    """The start that was due while the machine was paused stayed due, and nothing was waited for: a processor's time."""
    caretaker = caretaker_of(world, "worker-0")
    for crash_s in (1.0, 2.0, 3.0):
        world.at(crash_s, lambda: world.end("worker-0", 70))
    world.at(3.0, world.set_paused(True))
    world.at(60.0, world.set_paused(False))
    alive_s = []
    world.at(59.0, lambda: alive_s.append(sorted(world.alive)))
    world.at(62.0, lambda: alive_s.append(sorted(world.alive)))
    assert world.run(caretaker, 63.0) == 0
    assert alive_s == [["beacon"], ["beacon", "worker-0"]]
    assert world.forked.count("worker-0") == 4


def test_a_resume_right_after_a_join_on_a_paused_machine_is_heard(world, capsys):
    """Workers that were not started since the machine was paused were never started if it was not at the first look."""
    world.is_paused = True
    caretaker = caretaker_of(world, "worker-0", "worker-1")
    assert world.forked == ["beacon"]
    assert "zswarm: paused: no workers are started" in capsys.readouterr().err
    world.is_paused = False
    world.run(caretaker, 2.0)
    assert world.forked == ["beacon", "worker-0", "worker-1"]
    assert "zswarm: resumed" in capsys.readouterr().err


def test_a_pause_while_workers_are_started_is_for_all_of_them(world):
    caretaker = caretaker_of(world, "worker-0")
    world.is_paused = True
    caretaker.add("worker-1", int, is_pausable=True)
    alive = []
    world.at(5.0, lambda: alive.append(sorted(world.alive)))
    world.at(6.0, world.set_paused(False))
    world.at(8.0, lambda: alive.append(sorted(world.alive)))
    world.run(caretaker, 9.0)
    assert alive == [["beacon"], ["beacon", "worker-0", "worker-1"]]


@pytest.mark.parametrize("code", [TRY_LATER, HANGS])
def test_a_child_that_waits_for_what_may_mend_itself_is_started_until_it_has(world, code):
    """A network that was gone for seconds ended the swarm's part on this machine, or at best its only worker."""
    world.codes["worker-0"] = code
    caretaker = caretaker_of(world, "worker-0")
    world.at(300.0, world.codes.clear)
    world.run(caretaker, 310.0)
    assert 50 < world.forked.count("worker-0") < 80


@pytest.mark.parametrize(("code", "says"), [(2, "worker-0 cannot go on"), (70, "again and again")])
def test_a_child_that_cannot_live_ends_it(world, code, says):
    world.codes["worker-0"] = code
    with pytest.raises(RunFailed, match=says):
        world.run(caretaker_of(world, "worker-0"), 60.0)
