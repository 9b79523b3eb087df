"""The only place that makes ZeroMQ sockets."""

from __future__ import annotations

from zswarm.transport.addresses import address_at, any_port, checked_address, host_of, host_towards, port_of
from zswarm.transport.counters import Counters
from zswarm.transport.switchboard import Switchboard

__all__ = ["Counters", "Switchboard", "address_at", "any_port", "checked_address", "host_of", "host_towards", "port_of"]
