"""Keeping a swarm's processes alive: a child that dies is started again, unless that is of no use.

exit code               meaning                                  what follows
-----------------------------------------------------------------------------------------------
0                       it was told to end                       nothing
2                       the user must mend something             the run ends
78, of others           the run does not take it                 nothing: the run goes on without it, if another worker is left
75                      it may mend itself                       another life, after a pause
71                      its device hung                          another life, after a pause
1, 130 of the trainer   the run has failed, or was interrupted   the run ends
all else, signals       it crashed, or was killed                another life, after a pause
none: it does not turn  it hangs, with Python's lock perhaps     it is killed (`Family.kill_hung`)

The trainer's end is the end of the run. A pause grows as long as the child's lives are short. A child that keeps dying
young by itself ends the run; one that is killed (SIGKILL: by a person, or for its memory), or that has a device that hangs,
is started as often as that, and so is, by `zswarm join`, one that waits for what may mend itself.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from time import monotonic

from zswarm.cli.family import WATCHDOG_S, Ended, Family, wake_on_signals
from zswarm.errors import HANGS, INTERRUPTED, REFUSED, TRY_LATER

TRAINER = "trainer"
WORKERS = "worker-"
"""How their names begin."""
STOP_WITHIN_S = 1.8
"""After Ctrl-C: the trainer and everybody else have this long to stop by themselves."""
LEAVE_WITHIN_S = 1.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
YOUNG_S = 10.0
"""A life that is shorter than this makes the next pause twice as long."""
MAX_SHORT_LIVES = 5
"""So many of them one after the other are enough."""
EXCUSED = frozenset({-signal.SIGKILL, HANGS})
"""The ends of a child that are not its fault: it is started again however often."""
LOOK_S = 1.0
"""Longest wait between two looks at the children, in case that a signal got lost."""


Body = Callable[[int], int]
"""What a child runs: it is told how many lives it has had before, and returns its exit code."""


class Fate(Enum):
    """What follows from the end of a child."""

    AGAIN = "again"
    GONE = "gone"
    OVER = "over"


def fate(ended: Ended) -> Fate:
    """Decide by the table above."""
    if ended.name == TRAINER and ended.code in {0, 1, 2, INTERRUPTED}:
        return Fate.OVER
    if ended.code == 2:
        return Fate.OVER
    return Fate.GONE if ended.code in {0, REFUSED} else Fate.AGAIN


@dataclass(slots=True)
class _Life:
    """The present life of a child, or the pause before its next one."""

    begun_s: float
    num_before: int = 0
    num_short: int = 0
    """Lives before it, without an interruption by a long one, that were short."""
    num_crashes: int = 0
    """Those of them that were not excused."""


class Restarts:
    """When each child is started again; all times on one monotonic clock."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._due_s: dict[str, float] = {}

    def started(self, name: str, now: float) -> None:
        """Note that a child's life begins."""
        self._due_s.pop(name, None)
        if name in self._lives:
            self._lives[name].num_before += 1
            self._lives[name].begun_s = now
        else:
            self._lives[name] = _Life(now)

    def num_lives(self, name: str) -> int:
        """Return how many lives a child has had."""
        return self._lives[name].num_before + 1 if name in self._lives else 0

    def died(self, name: str, now: float, *, is_excused: bool = False) -> bool:
        """Note that it has ended; False if it is to be left at that. One that is excused is never left at that."""
        life = self._lives[name]
        if now - life.begun_s >= YOUNG_S:
            life.num_short = life.num_crashes = 0
        else:
            life.num_short, life.num_crashes = life.num_short + 1, life.num_crashes + (not is_excused)
        if life.num_crashes >= MAX_SHORT_LIVES:
            return False
        doublings = max(0, life.num_short - 1)
        self._due_s[name] = now + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**doublings)
        return True

    def drop(self, name: str) -> None:
        """Forget that a child is to be started again."""
        self._due_s.pop(name, None)

    def due(self, now: float) -> list[str]:
        """Return whose pause is over."""
        return [name for name, due_s in self._due_s.items() if due_s <= now]

    def next_s(self) -> float:
        """Return when the next pause is over."""
        return min(self._due_s.values(), default=float("inf"))


class Supervisor:
    """Watches a family; `bodies` are what its children run, by their names, and the trainer is one of them."""

    def __init__(
        self, family: Family, bodies: dict[str, Body], *, note: Callable[[dict[str, int]], None], advice: str
    ) -> None:
        """`note` is told the process ids by name whenever a child is started; `advice` is for a user who has interrupted."""
        self._family = family
        self._bodies = bodies
        self._note = note
        self._advice = advice
        self._restarts = Restarts()
        self._verdict: int | None = None
        """The exit code, once the end is decided; the trainer may still have to stop."""
        self._deadline_s = float("inf")
        now = monotonic()
        for name in family.processes():
            self._restarts.started(name, now)

    def run(self) -> int:
        """Start whoever is not running, and watch until the run is over; returns the exit code."""
        with wake_on_signals() as wait:
            for name in self._bodies:
                if self._restarts.num_lives(name) == 0:
                    self._start(name)
            self._note(self._family.processes())
            while True:
                for ended in self._family.reap().values():
                    if ended.name == TRAINER and (self._verdict is not None or fate(ended) is Fate.OVER):
                        return self._end(ended)
                    if self._verdict is None:
                        self._bury(ended)
                is_there = TRAINER in self._family.processes()
                if self._verdict is not None and (not is_there or monotonic() >= self._deadline_s):
                    return self._end(Ended(name=TRAINER, code=self._verdict))
                self._start_due()
                say_hung(self._family.kill_hung())
                until_s = min(LOOK_S, self._deadline_s - monotonic(), self._restarts.next_s() - monotonic())
                signals = wait(max(0.0, until_s))
                if self._verdict is None and (signal.SIGINT in signals or signal.SIGTERM in signals):
                    say("interrupted")
                    self._stop(INTERRUPTED)

    def _start(self, name: str) -> None:
        """Begin a child's life."""
        self._family.fork(name, partial(self._bodies[name], self._restarts.num_lives(name)))
        self._restarts.started(name, monotonic())

    def _bury(self, ended: Ended) -> None:
        """A child has ended while the run goes on."""
        what = fate(ended)
        if what is Fate.GONE:
            self._bodies.pop(ended.name, None)
            if ended.code == REFUSED and not any(name.startswith(WORKERS) for name in self._bodies):
                say("no worker is left that the run takes: it ends here")
                self._stop(1)
        elif what is Fate.OVER:
            say(f"{ended.describe()}: the run ends here")
            self._stop(1)
        elif what is Fate.AGAIN:
            if self._restarts.died(ended.name, monotonic(), is_excused=ended.code in EXCUSED):
                say(f"{ended.describe()} and is started again")
            else:
                say(f"{ended.describe()}, {MAX_SHORT_LIVES} times in a row within {YOUNG_S:.0f} s: the run ends here")
                self._stop(TRY_LATER if ended.code == TRY_LATER else 1)

    def _stop(self, verdict: int) -> None:
        self._verdict = verdict
        self._deadline_s = monotonic() + STOP_WITHIN_S
        self._family.signal(TRAINER, signal.SIGTERM)

    def _start_due(self) -> None:
        if self._verdict is not None:
            return
        due = self._restarts.due(monotonic())
        for name in due:
            self._start(name)
        if due:
            self._note(self._family.processes())

    def _end(self, trainer: Ended) -> int:
        """The trainer is gone for good: end everybody else."""
        code = trainer.code
        if code < 0 and code != -signal.SIGTERM:
            # One that had not begun to listen to signals yet ends with that of `_stop`.
            say(trainer.describe())
        self._family.end(grace_s=LEAVE_WITHIN_S if self._verdict is None else 0.1)
        verdict = self._verdict
        # Whoever interrupts a run in its last moment gets it whole.
        if verdict is None or (verdict, code) == (INTERRUPTED, 0):
            verdict = code
        if verdict == INTERRUPTED:
            say(self._advice)
        return verdict


def say_hung(names: Iterable[str]) -> None:
    """Tell the user who was killed since it hung."""
    for name in names:
        say(f"{name} has not moved for {WATCHDOG_S:.0f} s and is killed")


def say(text: str) -> None:
    """Tell the user."""
    print(f"zswarm: {text}", file=sys.stderr, flush=True)
