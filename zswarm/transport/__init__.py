"""The only place that makes ZeroMQ sockets."""

from __future__ import annotations

from zswarm.transport.addresses import checked_address
from zswarm.transport.counters import Counters
from zswarm.transport.switchboard import Switchboard

__all__ = ["Counters", "Switchboard", "checked_address"]
