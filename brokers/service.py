"""The broker's process: one thread, two sockets to listen on, no torch."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterable
from typing import Never

from brokers.machine import BrokerMachine
from zswarm import limits
from zswarm.allocator import keep_freed_memory
from zswarm.ids import Address, NodeId
from zswarm.lifeline import Lifeline
from zswarm.logs import get_log
from zswarm.loop import Loop
from zswarm.machine import Exit, Leave
from zswarm.sigterm import sigterm_as
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard

COLLECT_AFTER = 20_000
"""Objects made and still there. Python's own number is 700, at which a broker spent a twentieth of its time on it."""


def serve_broker(
    *,
    node: NodeId,
    coordinator: Address,
    listen: Address,
    capacity_bytes: int,
    key: SwarmKey | None = None,
    lifeline: Lifeline | None = None,
) -> Exit:
    """Take part in the coordinator's run as a broker until it is over.

    `listen` is the address to listen on, with any port; it and `coordinator` are of the loopback, or there is a swarm
    key. `UserError` if that is impossible or the coordinator has another key. A broker without a lifeline, which nobody
    else ends, leaves at SIGTERM, within `limits.DRAIN_S`.
    """
    keep_freed_memory(one_arena=True)
    _collect_garbage_rarely()
    with Switchboard(key=key) as switchboard:
        control = switchboard.bind("control", listen)
        work = switchboard.bind("work", listen)
        switchboard.dial(coordinator, is_first=True)
        machine = BrokerMachine(
            node=node,
            boot_nonce=secrets.randbits(63),
            addresses=(control, work),
            coordinator=coordinator,
            capacity_bytes=capacity_bytes,
        )
        log = get_log()
        log.info("listening", control=control, work=work, coordinator=coordinator)
        if lifeline is not None:
            lifeline.watch(switchboard)
        with sigterm_as(Leave(), wake=switchboard.waker(), is_child=lifeline is not None) as leaves:
            end = Loop(
                machine,
                switchboard,
                perform=_nothing_else,
                collect=leaves,
                members=lambda: machine.membership.members,
            ).run()
        switchboard.close(linger_s=limits.LINGER_S)
        log.info("ended", code=end.code, reason=end.text)
        return end


def _collect_garbage_rarely() -> None:
    """Have Python look through its objects less often: thousands are held until the step is over, none in cycles."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _nothing_else(command: Never) -> Iterable[Never]:
    raise AssertionError(command)
