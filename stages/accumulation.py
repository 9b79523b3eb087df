"""How the gradients of a step's microbatches add up, at a worker and between the workers of a stage.

    float32   the backward adds to the gradients' own buffer                              contributes float32
    exact     each microbatch's gradient, rounded to fixed point, is added as int64       contributes int64

Sums of floats depend on their order, those of integers do not: with `exact` neither who computed a microbatch nor
when changes a bit of the result. It is as exact as the gradient of one microbatch, which has to come out the same
wherever it is computed: on equal processors, with as many threads for one operation, of a model cut into the same
stages, in layers without a state of their own that a forward changes.

Fixed point here is int64 with SCALE_BITS bits behind the point: what a float32 of at least 2^-24 = 6e-8 says is kept
to its last bit, a smaller one to 1.8e-15, far below the epsilon of AdamW, 1e-8. Gradients are those of the mean over
all targets of a step. A step's sum is below 2^63 as long as each of its `num_microbatches` gradients is below
2^(63 - SCALE_BITS) / num_microbatches in every value: 2048 with 16 microbatches, far beyond what can be trained with.
A gradient with a value that is not, or that is not finite, is left out and counted: one more integer behind the
others, which adds up like them. Where it is not zero the whole result is NaN, so that the step is skipped.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.flat import FlatParameters
from zswarm.compression import to_host

SCALE_BITS = 48
ADDED = 1 << 22
"""Values of another worker that are brought to the device at once."""
BLOCK = 1 << 16
"""Values that are rounded at once: what that needs for a while stays in the cache."""


class Accumulator(Protocol):
    """What has been counted in a step, and what becomes of all workers' sums."""

    dtype: torch.dtype
    """Of contributions and of their sums."""
    num_values: int
    """In a contribution."""
    is_exclusive: bool
    """Must a microbatch be taken before the backward of another one begins?"""

    def take(self) -> None:
        """Count a microbatch: its backward is done, the gradients' buffer is complete."""

    def contribution(self) -> NDArray[Any]:
        """Return a copy of what has been counted, on the host, flat."""

    def add(self, contribution: Tensor) -> None:
        """Count what another worker has counted: its contribution, on the host, of a dtype with no more digits."""

    def reduced(self, sums: Tensor) -> Tensor:
        """Return the float32 gradient that the sum of all contributions stands for; both are on the host."""

    def alone(self) -> Tensor:
        """Return a copy, float32 on the device, of the gradient that results if nobody else contributes."""

    def clear(self) -> None:
        """Count from nothing again; the gradients' buffer is cleared elsewhere."""


class FloatAccumulator:
    """`float32`: see the module."""

    dtype = torch.float32
    is_exclusive = False

    def __init__(self, parameters: FlatParameters) -> None:
        self._parameters = parameters
        self.num_values = parameters.gradients.numel()

    def take(self) -> None:
        """Do nothing: it was added by the backward."""

    def contribution(self) -> NDArray[Any]:
        """Return a copy of the gradients."""
        self._parameters.attach_gradients()
        # Memory of its own each time: the frames may still be on their way when the next one is made.
        copied: NDArray[Any] = to_host(self._parameters.gradients).numpy()
        return copied

    def add(self, contribution: Tensor) -> None:
        """Add to the gradients."""
        self._parameters.attach_gradients()
        _add(self._parameters.gradients, contribution)

    def reduced(self, sums: Tensor) -> Tensor:
        """Return the sums, which are the gradient."""
        return sums

    def alone(self) -> Tensor:
        """Return a copy of the gradients, which leave the device for nobody."""
        self._parameters.attach_gradients()
        return self._parameters.gradients.clone()

    def clear(self) -> None:
        """Do nothing: the gradients' buffer is all there is."""


class ExactAccumulator:
    """`exact`: see the module. Between two microbatches the gradients' buffer is zero."""

    dtype = torch.int64
    is_exclusive = True

    def __init__(self, parameters: FlatParameters, num_microbatches: int) -> None:
        self._parameters = parameters
        self.num_values = parameters.gradients.numel() + 1
        self._sums = torch.zeros(self.num_values, dtype=torch.int64, device=parameters.gradients.device)
        self._bound = 2.0 ** (63 - SCALE_BITS) / num_microbatches

    def take(self) -> None:
        """Add the gradients to the sums and set them to zero."""
        self._parameters.attach_gradients()
        gradients = self._parameters.gradients
        low, high = (float(value) for value in torch.aminmax(gradients))
        # False as well where one of them is NaN, as they are if any value is.
        if -self._bound < low and high < self._bound:
            for begin in range(0, len(gradients), BLOCK):
                scaled = gradients[begin : begin + BLOCK].double().mul_(2.0**SCALE_BITS)
                self._sums[begin : begin + len(scaled)] += scaled.round_().long()
        else:
            self._sums[-1] += 1
        gradients.zero_()

    def contribution(self) -> NDArray[Any]:
        """Return a copy of the sums."""
        copied: NDArray[Any] = to_host(self._sums).numpy()
        return copied

    def add(self, contribution: Tensor) -> None:
        """Add to the sums."""
        _add(self._sums, contribution)

    def reduced(self, sums: Tensor) -> Tensor:
        """Return the sums as float32, each rounded once; all NaN if a microbatch could not be counted."""
        gradient = torch.empty(self.num_values - 1)
        if sums[-1] != 0:
            return gradient.fill_(torch.nan)
        values = gradient.numpy()
        values[:] = sums[:-1].numpy()
        # No second rounding: a power of two, and what is not zero stays far above the smallest float32.
        values *= np.float32(2.0**-SCALE_BITS)
        return gradient

    def alone(self) -> Tensor:
        """Return the sums as float32, rounded on the host as those of several workers are."""
        return self.reduced(to_host(self._sums)).to(self._sums.device)

    def clear(self) -> None:
        """Set the sums to zero."""
        self._sums.zero_()


def _add(total: Tensor, contribution: Tensor) -> None:
    """Add block by block: a card in the middle of a step has no room for a second gradient."""
    for begin in range(0, len(total), ADDED):
        total[begin : begin + ADDED] += contribution[begin : begin + ADDED].to(total.device)


def accumulator_named(name: str, parameters: FlatParameters, num_microbatches: int) -> Accumulator:
    """Return the accumulator that `batch.accumulation` names, for steps of so many microbatches."""
    return ExactAccumulator(parameters, num_microbatches) if name == "exact" else FloatAccumulator(parameters)
