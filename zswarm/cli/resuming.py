"""What a user types to go on with a run that he has interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

OUT = "--out"


def resuming(arguments: Sequence[str], folder: Path) -> str:
    """Return the command that goes on in a run's folder; `arguments` are those of the command that is interrupted."""
    return shlex.join(["zswarm", *_without_out(arguments), OUT, str(folder)])


def _without_out(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if word == OUT:
            next(words, None)
        elif not word.startswith(f"{OUT}="):
            yield word
