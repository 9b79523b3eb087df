"""`zswarm pause` and `zswarm resume`: the owner of a machine wants its devices back for a while.

A file says so, in the folder of this user's state: it outlives every process, so that a machine that is paused stays
paused over a restart, and nobody can pause it over the network.
"""

from __future__ import annotations

import os
from pathlib import Path

from zswarm.cli.folders import is_there, user_folder
from zswarm.errors import UserError


def pause_file() -> Path:
    """Return the file whose being there means paused: systemd's state folder, or by the XDG base directories."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given) / "paused"
    return user_folder("XDG_STATE_HOME", ".local/state") / "paused"


def is_paused() -> bool:
    """Is this machine paused?"""
    return is_there(pause_file())


def pause() -> bool:
    """Pause it; False if it is paused already."""
    path = pause_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror}") from None
    return True


def resume() -> bool:
    """Take the pause back; False if there is none."""
    path = pause_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be removed: {error.strerror}") from None
    return True
