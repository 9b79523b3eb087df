"""Who has started this command, as its environment says."""

from __future__ import annotations

import os
from pathlib import Path

from zswarm.overseer import NOBODY, Overseer


def started_by() -> Overseer:
    """Return systemd's notifier if systemd waits for a word of this process; our own children are not told of it."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
    of = os.environ.pop("WATCHDOG_PID", "")
    if not address.startswith(("/", "@")):
        return NOBODY
    from zswarm.systemd import Notifier

    is_watched = watchdog_us.isdecimal() and int(watchdog_us) > 0 and of in {"", str(os.getpid())}
    return Notifier(address, watchdog_s=int(watchdog_us) / 1e6 if is_watched else None)


def credentials_folder() -> Path | None:
    """Return where systemd has put what LoadCredential= names, if it has started this process."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(folder) if folder else None
