"""The options of every socket, with the reasons."""

from __future__ import annotations

import zmq

from zswarm import limits

_OPTIONS: dict[int, int] = {
    # Nothing is worth waiting for when a process ends; `Switchboard.close` may say otherwise.
    zmq.LINGER: 0,
    # To a peer that is away there is no queue: what could be sent again is stale by the time it returns.
    # (The first messages to a peer that is not yet there wait in the switchboard instead.)
    zmq.IMMEDIATE: 1,
    # Half-open connections go after three seconds: 500 of them kept everybody else out for forty.
    zmq.HANDSHAKE_IVL: 3_000,
    zmq.CONNECT_TIMEOUT: 3_000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1_000,
    # ZeroMQ's heartbeats only reap dead sockets: they go on while a process hangs, and they stop while
    # a large frame crawls. Liveness is judged by the machines from their own messages.
    zmq.HEARTBEAT_IVL: 2_000,
    zmq.HEARTBEAT_TIMEOUT: 10_000,
    zmq.HEARTBEAT_TTL: 10_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 10_000,
    # Guards the handshake too: without it a stranger's first frame may have any size.
    zmq.MAXMSGSIZE: limits.MAX_FRAME_BYTES + (64 << 10),
    # Outgoing payloads are references to what the machines hold anyway, bounded by credits and windows.
    zmq.SNDHWM: 1_000,
    zmq.RCVHWM: 1_000,
}
_ROUTER_OPTIONS: dict[int, int] = {
    # A message to a connection that has gone is reported instead of swallowed.
    zmq.ROUTER_MANDATORY: 1,
    # Nobody sets a routing id, so nobody may take one over.
    zmq.ROUTER_HANDOVER: 0,
    zmq.BACKLOG: 512,
}
PAYLOAD_PLANES = frozenset({"work", "peer"})
"""The listening sockets that take payloads."""


def set_options(socket: zmq.Socket[bytes], *, plane: str = "") -> None:
    """Set all options of a new socket; `plane` is the name of a listening one."""
    options = dict(_OPTIONS)
    if socket.type == zmq.ROUTER:
        options |= _ROUTER_OPTIONS
    if plane in PAYLOAD_PLANES:
        options[zmq.RCVHWM] = limits.MAX_UNREAD_PAYLOADS
    for option, value in options.items():
        socket.setsockopt(option, value)
