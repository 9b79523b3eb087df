"""What a user is told who has interrupted a run: what to type to go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

OUT = "--out"


def advice(arguments: Sequence[str], folder: Path) -> str:
    """Say the command that goes on in a run's folder; `arguments` are those of the command that is interrupted."""
    return f"to go on with it: {shlex.join(['zswarm', *_without_out(arguments), OUT, str(folder)])}"


def _without_out(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if word == OUT:
            next(words, None)
        elif not word.startswith(f"{OUT}="):
            yield word
