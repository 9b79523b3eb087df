"""Samples of a microbatch, packed for stage 0: the tokens, and the labels that ride along to the last stage."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from zswarm import wire
from zswarm.messages import Load, TensorSpec


def pack(*arrays: NDArray[Any]) -> Load:
    """Pack integer arrays into one load, each as raw bytes under its own dtype and shape."""
    packed = b"".join(array.tobytes() for array in arrays)
    specs = tuple(
        TensorSpec(codec="raw", dtype=array.dtype.name, shape=array.shape, size_bytes=array.nbytes) for array in arrays
    )
    return wire.parcelled(packed, specs)
