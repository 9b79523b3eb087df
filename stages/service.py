"""The worker's process: one thread for the sockets, one for the device."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from stages.allowed import Allowed
from stages.compute import Compute
from stages.compute_thread import ComputeThread
from stages.devices import BrokenDevice, device_named
from stages.tasks import Task
from stages.worker import WorkerMachine
from zswarm import limits
from zswarm.device_names import AUTO, CPU, has_driver
from zswarm.errors import BROKEN
from zswarm.ids import Address, NodeId
from zswarm.logs import get_log
from zswarm.loop import Loop
from zswarm.machine import Exit, Leave
from zswarm.overseer import NOBODY, Overseer
from zswarm.signals import signals_as
from zswarm.swarm_key import SwarmKey
from zswarm.transport import Switchboard


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """What a worker may do on its machine."""

    device: str
    """Its name, see stages/devices.py."""
    threads: int
    """Of torch, for one operation."""
    allowed: Allowed
    """Whose model code may run."""


def serve_worker(
    *,
    node: NodeId,
    coordinator: Address,
    listen: Address,
    computing: Computing,
    key: SwarmKey | None = None,
    overseer: Overseer = NOBODY,
) -> Exit:
    """Take part in the coordinator's run as a worker until it is over.

    `listen` is the address to listen on, with any port; it and `coordinator` are of the loopback, or there is a swarm
    key. `UserError` if that is impossible or the coordinator has another key, or if there is no such device; one that does not
    work ends it as one that hangs. A worker that its overseer does not end by
    itself leaves when it is asked to go (`zswarm.signals`), within `limits.DRAIN_S`.
    """
    nonce = secrets.randbits(63)
    try:
        device = device_named(computing.device)
    except BrokenDevice as error:
        return Exit(code=BROKEN, text=str(error))
    if computing.device == AUTO and device.type == CPU and has_driver():
        get_log().warning("computes on the processor", reason="there is a driver of cards, and torch finds none")
    with Switchboard(key=key) as switchboard:
        peer = switchboard.bind("peer", listen)
        switchboard.dial(coordinator, is_first=True)
        machine = WorkerMachine(
            node=node,
            boot_nonce=nonce,
            addresses=(peer,),
            coordinator=coordinator,
            random=random.Random(nonce).random,
        )
        log = get_log()
        log.info("listening", peer=peer, coordinator=coordinator, device=str(device))
        wake = switchboard.waker()
        leaving = signals_as(Leave(), wake=wake, overseer=overseer)
        make = partial(Compute, device=device, allowed=computing.allowed)
        with ComputeThread(wake=wake, threads=computing.threads, make=make) as compute, leaving as leaves:

            def perform(task: Task) -> Iterable[object]:
                compute.submit(task)
                return ()

            overseer.begin(switchboard, machine.health)
            end = Loop(
                machine,
                switchboard,
                perform=perform,
                collect=lambda: [*leaves(), *compute.outcomes()],
                members=lambda: machine.membership.members,
            ).run(overseer.turned)
            overseer.stopping(end.text)
            switchboard.close(linger_s=limits.LINGER_S)
            log.info("ended", code=end.code, reason=end.text)
            return end
