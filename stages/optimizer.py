"""The optimizer step on a stage's flat parameters: AdamW or SGD with momentum, with the same bits on every device.

All workers of a stage take the same step and end with the same parameters, to the bit, or the trainer says that they are not
to be trusted. So what torch.optim does is not used: its kernels contract products and sums as each processor likes,
and round differently on a GPU, on another GPU and on each kind of CPU. Here every operation is one that IEEE 754 rounds
correctly (sum, difference, product, quotient, square root), each on its own, so that a stage may have cards and processors
of any kind. On a processor it takes three to four times as long as torch's fused step, in one thread: 2 ms for a million parameters, of
a step that many microbatches go into.

The formulas are those of torch.optim, and so are the names of the state. Each layer counts its own steps, so that one that
came late can take those that it lacks. The weight decay is on all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zswarm.config import OptimizerSection

EPSILON = 1e-8
STEP = "step"
CPU_BLOCK = 1 << 15
"""Values that are worked on at once: all that belongs to them stays in the cache."""
GPU_BLOCK = 1 << 24
HOST_OPERATIONS: tuple[Callable[..., Any], ...] = (np.multiply, np.add, np.subtract, np.divide, np.sqrt)
"""On a CPU numpy's, whose roots are right to the last bit; torch's are not."""
TORCH_OPERATIONS: tuple[Callable[..., Any], ...] = (torch.mul, torch.add, torch.sub, torch.div, torch.sqrt)


def num_states(section: OptimizerSection) -> int:
    """Return how many values an optimizer keeps beside each parameter."""
    return 2 if section.name == "adamw" else int(section.momentum > 0.0)


class FlatOptimizer:
    """AdamW or SGD with momentum over the flat float32 tensor `values`, which it changes in place.

    `regions` are those of the layers, in their order.
    """

    def __init__(self, section: OptimizerSection, values: Tensor, regions: Sequence[slice]) -> None:
        self._section = section
        self._values = values
        self._regions = tuple(regions)
        most = max((region.stop - region.start for region in self._regions), default=0)
        self._is_on_host = values.device.type == "cpu"
        self._operations = HOST_OPERATIONS if self._is_on_host else TORCH_OPERATIONS
        self._block = min(CPU_BLOCK if self._is_on_host else GPU_BLOCK, max(1, most))
        self._scratch = torch.empty(self._block, device=values.device)
        self.state: dict[str, Tensor] = {}
        """Named as in torch.optim, each flat like `values`, but for STEP: one number per layer, on the host. SGD may have
        none."""
        if section.name == "adamw":
            self.state["exp_avg"] = torch.zeros_like(values)
            self.state["exp_avg_sq"] = torch.zeros_like(values)
            self.state[STEP] = torch.zeros(len(regions))
        elif section.momentum:
            self.state["momentum_buffer"] = torch.zeros_like(values)

    def step(self, gradient: Tensor, *, lr: float, scale: float) -> None:
        """Update the values by `gradient * scale`; `gradient` is changed where `scale` is not 1."""
        if scale != 1.0:
            gradient.mul_(scale)
        for index, region in enumerate(self._regions):
            self.step_layer(index, gradient[region], lr=lr)

    @torch.no_grad()
    def step_layer(self, index: int, gradient: Tensor, *, lr: float) -> None:
        """Update one layer's values alone; `gradient` has the size of its region."""
        region, step = self._regions[index], 0
        if STEP in self.state:
            self.state[STEP][index] += 1.0
            step = int(self.state[STEP][index])
        flat = [self._values, *(tensor for name, tensor in self.state.items() if name != STEP)]
        for block in self._blocks(len(gradient)):
            values, *states = (self._view(tensor[region][block]) for tensor in flat)
            if self._section.name == "adamw":
                self._adamw(values, self._view(gradient[block]), states, step=step, lr=lr)
            else:
                self._sgd(values, self._view(gradient[block]), states, lr=lr)

    def _blocks(self, num_values: int) -> Iterator[slice]:
        return (slice(begin, begin + self._block) for begin in range(0, num_values, self._block))

    def _view(self, tensor: Tensor) -> Any:
        """Return what the operations work on."""
        return tensor.numpy() if self._is_on_host else tensor

    def _adamw(self, values: Any, gradient: Any, states: Sequence[Any], *, step: int, lr: float) -> None:
        multiply, add, subtract, divide, root = self._operations
        (mean, square), scratch = states, self._view(self._scratch[: len(values)])
        beta1, beta2 = self._section.betas
        multiply(values, 1.0 - lr * self._section.weight_decay, out=values)
        multiply(gradient, 1.0 - beta1, out=scratch)
        add(multiply(mean, beta1, out=mean), scratch, out=mean)
        multiply(multiply(gradient, gradient, out=scratch), 1.0 - beta2, out=scratch)
        add(multiply(square, beta2, out=square), scratch, out=square)
        # What corrects the square's bias is a factor of the whole quotient: one product less.
        correction = math.sqrt(1.0 - power(beta2, step))
        add(root(square, out=scratch), EPSILON * correction, out=scratch)
        divide(mean, scratch, out=scratch)
        subtract(values, multiply(scratch, lr * correction / (1.0 - power(beta1, step)), out=scratch), out=values)

    def _sgd(self, values: Any, gradient: Any, states: Sequence[Any], *, lr: float) -> None:
        multiply, add, subtract, *_ = self._operations
        scratch = self._view(self._scratch[: len(values)])
        add(multiply(values, self._section.weight_decay, out=scratch), gradient, out=scratch)
        change = scratch
        if states:
            # A buffer of zeros is what torch starts from: without dampening, its first buffer is the gradient.
            (change,) = states
            add(multiply(change, self._section.momentum, out=change), scratch, out=change)
        subtract(values, multiply(change, lr, out=scratch), out=values)


def power(base: float, exponent: int) -> float:
    """Return base ** exponent, by products alone: what C's pow returns depends on the library."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base, exponent = base * base, exponent >> 1
    return result
