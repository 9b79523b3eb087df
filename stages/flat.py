"""All parameters of a stage in one buffer, all their gradients in another.

    values     | W_0 .. | b_0 .. | W_1 .. |  parameters are views of it
    gradients  | W_0 .. | b_0 .. | W_1 .. |  each parameter's .grad is a view of it, always

One buffer makes the optimizer step, the all-reduce and the digest one operation each instead of one per
parameter. Every parameter starts at a multiple of ALIGNMENT values; the gaps stay zero. The layout
follows from the layers alone, so that all workers of a stage have the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.checks import LayerCheck
from stages.model import layer_name
from zswarm import limits

ALIGNMENT = 16
"""Values: 64 bytes, one cache line, as torch aligns tensors of their own."""
DIGEST_ROW = 1024
"""Words summed into one before they are hashed, which is 30 times slower than summing."""


class Slot(NamedTuple):
    """Where one trainable parameter lies in a flat buffer; `layer` counts from the stage's first one."""

    layer: int
    name: str
    """Within its layer."""
    parameter: nn.Parameter
    offset: int

    def of(self, buffer: Tensor) -> Tensor:
        """Return the parameter's part of a flat buffer, in its shape."""
        return buffer[self.offset : self.offset + self.parameter.numel()].view(self.parameter.shape)


class FlatParameters:
    """The trainable parameters of some layers, moved into one buffer.

    Raises:
        UserError: as `LayerCheck`.

    """

    def __init__(self, layers: Sequence[nn.Module], first_layer: int, device: torch.device) -> None:
        self.slots: list[Slot] = []
        """In the order in which they lie."""
        self.regions: list[slice] = []
        """Where each layer's parameters lie."""
        check = LayerCheck()
        size = 0
        for index, layer in enumerate(layers):
            check.look(layer, layer_name(layer, first_layer + index))
            begin = size
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad:
                    self.slots.append(Slot(index, name, parameter, size))
                    size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self.regions.append(slice(begin, size))
        self.num_parameters = sum(slot.parameter.numel() for slot in self.slots)
        # Never so small that a shard of an all-reduce would be empty.
        size = max(size, limits.MAX_PARTICIPANTS)
        self.values = torch.zeros(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        for slot in self.slots:
            view = slot.of(self.values)
            view.copy_(slot.parameter.detach())
            slot.parameter.data = view
            slot.parameter.grad = slot.of(self.gradients)

    def attach_gradients(self) -> None:
        """Take back gradients that a layer has put elsewhere, such as by `zero_grad` in its forward."""
        for slot in self.slots:
            view = slot.of(self.gradients)
            gradient = slot.parameter.grad
            if gradient is None or gradient.data_ptr() != view.data_ptr():
                if gradient is not None:
                    view.copy_(gradient)
                slot.parameter.grad = view

    @contextmanager
    def gradients_apart(self) -> Iterator[None]:
        """Leave `gradients` as they are, whatever a backward within adds to parameters: that is forgotten."""
        gradients = [slot.parameter.grad for slot in self.slots]
        for slot in self.slots:
            slot.parameter.grad = None
        try:
            yield
        finally:
            for slot, gradient in zip(self.slots, gradients, strict=True):
                slot.parameter.grad = gradient


def digest(buffer: Tensor) -> int:
    """Return 64 bits that are equal where the bits of a flat float32 buffer are equal.

    A hash of the sums of DIGEST_ROW words each: every change of a single value changes it.
    """
    words = buffer.view(torch.int64) if buffer.numel() % 2 == 0 else buffer.view(torch.int32)
    num_whole = words.numel() // DIGEST_ROW * DIGEST_ROW
    sums = words[:num_whole].view(-1, DIGEST_ROW).sum(1, dtype=torch.int64)
    hashed = hashlib.blake2b(sums.cpu().numpy().data, digest_size=8)
    hashed.update(words[num_whole:].cpu().contiguous().numpy().data)
    return int.from_bytes(hashed.digest(), "little")


def square_norm(buffer: Tensor) -> float:
    """Return the sum of squares of a flat float32 buffer; not finite exactly if a value is not."""
    num_whole = buffer.numel() // DIGEST_ROW * DIGEST_ROW
    norms = torch.linalg.vector_norm(buffer[:num_whole].view(-1, DIGEST_ROW), dim=1)
    total = float(norms.double().square().sum() + buffer[num_whole:].double().square().sum())
    if math.isfinite(total):
        return total
    # The squares of large values overflow in float32; those of no float32 do in float64.
    return float(buffer.double().square().sum())
