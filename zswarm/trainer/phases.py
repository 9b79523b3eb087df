"""The phases of a run, see the picture in `coordinator`, and how long what lasts in them."""

from __future__ import annotations

from enum import Enum

PING_HEARTBEATS = 0.5
"""Between two messages to everybody, so that a lost connection is noticed; every other time the rest is repeated."""
ALERT_HEARTBEATS = 8.0
"""How long every report is looked at after a loss: until what it has cost is noticed, voided and on its way."""
STOP_HEARTBEATS = 0.25
"""Between two repetitions of Stop while the run is closing."""
CLOSING_HEARTBEATS = 1.0
"""How long the end waits for processes to say that they have stopped."""


class Phase(Enum):
    """Where a run is."""

    GATHERING = "gathering"
    TRAINING = "training"
    COLLECTING = "collecting"
    CLOSING = "closing"
