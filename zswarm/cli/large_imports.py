"""Importing torch sooner."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """Import something large within, or decorate what does.

    All of it stays. To look for garbage in it meanwhile takes a sixth of the time, and would again with each look later.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
