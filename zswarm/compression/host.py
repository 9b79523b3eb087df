"""Memory of the host for what comes from a device and what goes there.

A card reads and writes pinned memory itself, several times faster than it copies any other. torch keeps pinned memory that is
not used any more for the next time, and rounds up to powers of two: a worker on a card needs up to four times its stage's
gradient of it, for its own contribution and for the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.device("cpu")


def host_memory(num_values: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a flat tensor on the host, not filled, that is quick to copy from and to a device."""
    return torch.empty(num_values, dtype=dtype, pin_memory=device.type == "cuda")


def to_host(tensor: Tensor) -> Tensor:
    """Copy a flat tensor into memory of its own on the host."""
    return host_memory(tensor.numel(), tensor.dtype, tensor.device).copy_(tensor)
