"""The broker's process: one thread, two sockets to listen on, no torch."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Never

from brokers.machine import BrokerMachine
from zswarm import limits
from zswarm.ids import Address, NodeId
from zswarm.lifeline import Lifeline
from zswarm.logs import get_log
from zswarm.loop import Loop
from zswarm.machine import Exit
from zswarm.transport import Switchboard


def serve_broker(
    *, node: NodeId, coordinator: Address, host: str, capacity_bytes: int, lifeline: Lifeline | None = None
) -> Exit:
    """Take part in the coordinator's run as a broker until it is over.

    `host` is the address to listen on; ports are chosen by the system. `UserError` if that is impossible.
    """
    with Switchboard() as switchboard:
        control = switchboard.bind("control", Address(f"tcp://{host}:*"))
        work = switchboard.bind("work", Address(f"tcp://{host}:*"))
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
        end = Loop(machine, switchboard, perform=_nothing_else).run()
        switchboard.close(linger_s=limits.LINGER_S)
        log.info("ended", code=end.code, reason=end.text)
        return end


def _nothing_else(command: Never) -> Iterable[Never]:
    raise AssertionError(command)
