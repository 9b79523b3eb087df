"""What may go wrong in a schedule, and when: kinds of faults, and the strikes of those that come at a moment.

A strike names its time and a number that decides whom it hits, so that taking one out of a schedule leaves the
others as they are. One with a hook waits, from its time on, for the first process of its kind that does what the hook
says: the moments between two lines of a program, which a time drawn at random seldom hits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Fault(StrEnum):
    """What may go wrong in a schedule."""

    LOSS = "loss"
    CORRUPTION = "corruption"
    DUPLICATION = "duplication"
    REORDERING = "reordering"
    STRAGGLING = "straggling"
    SLOW_LINKS = "slow links"
    SLOW_PAYLOADS = "slow payloads"
    CROOKED_CLOCKS = "crooked clocks"
    UNEVEN_WORKERS = "uneven workers"
    FORGETFUL_WORKERS = "forgetful workers"
    TIGHT_BROKERS = "tight brokers"
    LATE_PROCESSES = "late processes"
    INTERRUPTION = "interruption"
    DISK = "disk"
    """The trainer's machine loses power when the trainer dies, and its disk is full at times."""
    SLOW_LOG = "slow log"
    """What the trainer writes durably takes a while, and what it says after that comes later."""
    POISON = "poison"
    """A layer raises at some microbatch, in the hands of a few workers."""
    KILL_WORKER = "kill worker"
    KILL_BROKER = "kill broker"
    KILL_TRAINER = "kill trainer"
    KILL_HOST = "kill host"
    """A broker and a worker at once."""
    WIPE_STAGE = "wipe stage"
    """All workers of a stage at once."""
    BLACKOUT = "blackout"
    """Everybody at once."""
    FREEZE = "freeze"
    """A process handles nothing for a while; its clock goes on."""
    PARTITION = "partition"
    """Some do not reach some others, one way or both ways."""
    HANG = "hang"
    """A worker's compute thread never ends its task; nobody helps, the swarm has to notice by itself."""
    SLOW_WORKER = "slow worker"
    """A worker computes many times slower for a while."""
    RESET = "reset"
    """Connections of a process break; both ends live."""
    LEAVE_WORKER = "worker leaves"
    """It is asked to; later it is started again."""
    LEAVE_BROKER = "broker leaves"
    LEAVE_HOST = "host leaves"
    """All processes of a machine are asked to, or all workers of a stage and perhaps a broker, almost at once."""
    MOVE = "worker moved"
    """Somebody has the trainer move a worker to another stage."""


BEFORE_RECORD, AFTER_RECORD = "before record", "after record"
AMID_SENDS, AFTER_SENDS = "amid sends", "after sends"
"""Between two messages of a broadcast, and right after the last."""
ON, AFTER = "on ", "after "
"""Followed by a kind of message: before it is handled, right after it was sent (by the first Send of several)."""

_TRAINER_HOOKS = (
    *(BEFORE_RECORD, AFTER_RECORD, AFTER_RECORD, AMID_SENDS, AMID_SENDS, AFTER_SENDS),
    *("after Prepare", "on Prepared", "after Commit", "after Void", "after Restore", "after Fence", "on Register"),
    *("after Welcome", "after Abort", "on State", "after Forward", "after Inherit"),
)
_WORKER_HOOKS = (
    *(AMID_SENDS, AMID_SENDS, "on Job", "after Result", "after Forward", "after Backward", "on Prepare", "on Chunk"),
    *("after Prepared", "on Commit", "on Void", "on Restore", "on State", "on Fence", "on Pull", "on Welcome"),
    *("after Register", "on Inherit"),
)
_BROKER_HOOKS = (
    AMID_SENDS,
    "on Forward",
    "on Backward",
    "on Result",
    "after Job",
    "on Void",
    "on View",
    "after Revoke",
)
ON_PURPOSE = frozenset({Fault.LEAVE_WORKER, Fault.LEAVE_BROKER, Fault.LEAVE_HOST, Fault.MOVE})
"""What somebody asks for, and no fault: these alone may cost nothing."""
HOOKS = {
    Fault.KILL_WORKER: _WORKER_HOOKS,
    Fault.KILL_BROKER: _BROKER_HOOKS,
    Fault.KILL_TRAINER: _TRAINER_HOOKS,
    Fault.FREEZE: (*_WORKER_HOOKS, *_BROKER_HOOKS, *_TRAINER_HOOKS),
    Fault.LEAVE_WORKER: tuple(hook for hook in _WORKER_HOOKS if hook.startswith(ON)),
    Fault.LEAVE_BROKER: tuple(hook for hook in _BROKER_HOOKS if hook.startswith(ON)),
}
"""Of the faults that may wait for a moment; who freezes is whoever comes to that moment first. Who is asked to leave
hears it right after that moment."""

LASTS_S = {
    Fault.KILL_WORKER: (0.05, 6.0),
    Fault.KILL_BROKER: (0.05, 6.0),
    Fault.KILL_TRAINER: (0.05, 6.0),
    Fault.KILL_HOST: (0.05, 6.0),
    Fault.WIPE_STAGE: (0.05, 8.0),
    Fault.BLACKOUT: (0.05, 4.0),
    Fault.FREEZE: (0.3, 9.0),
    Fault.PARTITION: (0.5, 12.0),
    Fault.HANG: (0.0, 0.0),
    Fault.SLOW_WORKER: (1.0, 8.0),
    Fault.RESET: (0.0, 0.0),
    Fault.LEAVE_WORKER: (0.05, 6.0),
    Fault.LEAVE_BROKER: (0.05, 6.0),
    Fault.LEAVE_HOST: (0.05, 8.0),
    Fault.MOVE: (0.0, 0.0),
}
"""How long the effect of a strike lasts at least and at most: until the killed are started again, and so on.

Short ones are as frequent as long ones: what a life of 50 ms breaks, one of 5 s seldom does.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Something that happens at a moment. See the module."""

    fault: Fault
    at_s: float
    lasts_s: float
    salt: int
    hook: str = ""
    node: str = ""
    """The name of the only process that it may hit; empty for any."""


def draw_strikes(faults: frozenset[Fault], random: Random) -> list[Strike]:
    """Draw one to three strikes for each of the faults that has any."""
    strikes = []
    for fault in Fault:
        if fault not in faults or fault not in LASTS_S:
            continue
        for _ in range(random.choice((1, 1, 2, 3))):
            low_s, high_s = LASTS_S[fault]
            hook = random.choice(HOOKS[fault]) if fault in HOOKS and random.random() < 0.6 else ""
            strikes.append(
                Strike(
                    fault=fault,
                    at_s=round(random.uniform(0.3, 2.0) if hook else random.uniform(0.5, 6.0), 3),
                    lasts_s=round(low_s * (high_s / low_s) ** random.random(), 3) if low_s else 0.0,
                    salt=random.getrandbits(32),
                    hook=hook,
                )
            )
    return strikes


def by_time(strikes: Iterable[Strike]) -> tuple[Strike, ...]:
    """Return them in the order in which a schedule holds them."""
    return tuple(sorted(strikes, key=lambda strike: (strike.at_s, strike.salt)))
