"""What a process has said, heard and lost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the process began; bytes are headers and payloads, without what ZeroMQ adds."""

    num_sent: int = 0
    sent_bytes: int = 0
    num_received: int = 0
    received_bytes: int = 0
    num_lost: int = 0
    """Messages that could not be sent: the queue was full or nobody was there."""
    num_malformed: int = 0
    num_cut_off: int = 0
    """Connections that were shut down for sending a message without end."""
    num_gaps: int = 0
    """Messages missing between two that came over the same connection."""
