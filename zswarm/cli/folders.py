"""This user's folders, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path

from zswarm.errors import UserError


def user_folder(variable: str, default: str) -> Path:
    """Return zswarm's folder in the one that the environment names, a relative one counting as none, or at home.

    Raises:
        UserError: this user has no home.

    """
    folder = Path(os.environ.get(variable, ""))
    try:
        return (folder if folder.is_absolute() else Path.home() / default) / "zswarm"
    except RuntimeError:
        text = f"user {os.getuid()} has no home folder on this machine: set HOME, or {variable}, in the environment"
        raise UserError(text) from None


def is_there(path: Path) -> bool:
    """Is there such a file?

    Raises:
        UserError: this user cannot look.

    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot see whether it is there: {error.strerror}") from None
    return True
