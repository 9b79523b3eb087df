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
from zswarm.logs import get_log
from zswarm.loop import Loop
from zswarm.machine import Exit, Leave
from zswarm.overseer import NOBODY, Overseer
from zswarm.signals import signals_as
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
    overseer: Overseer = NOBODY,
) -> Exit:
    """Take part in the coordinator's run as a broker until it is over.

    `listen` is the address to listen on, with any port; it and `coordinator` are of the loopback, or there is a swarm
    key. `UserError` if that is impossible or the coordinator has another key. A broker that its overseer does not end by
    itself leaves when it is asked to go (`zswarm.signals`), within `limits.DRAIN_S`.
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
        with signals_as(Leave(), wake=switchboard.waker(), overseer=overseer) as leaves:
            overseer.begin(switchboard, machine.health)
            end = Loop(
                machine,
                switchboard,
                perform=_nothing_else,
                collect=leaves,
                members=lambda: machine.membership.members,
            ).run(overseer.turned)
        overseer.stopping(end.text)
        switchboard.close(linger_s=limits.LINGER_S)
        heard = switchboard.counters
        log.info(
            "ended",
            code=end.code,
            reason=end.text,
            received_bytes=heard.received_bytes,
            num_malformed=heard.num_malformed,
            num_cut_off=heard.num_cut_off,
        )
        return end


def _collect_garbage_rarely() -> None:
    """Have Python look through its objects less often: thousands are held until the step is over, none in cycles."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _nothing_else(command: Never) -> Iterable[Never]:
    raise AssertionError(command)
