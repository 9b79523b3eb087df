"""The optimizer step on a stage's flat parameters.

torch's own AdamW and SGD, as functions over one flat tensor each for values, gradient and state: one pass
over memory where the fused version exists. (The classes of torch.optim do the same; making one imports
torch's compiler, a second at the start of each worker.) The weight decay is on all parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from zswarm.config import OptimizerSection

EPSILON = 1e-8
FUSED_DEVICES = ("cpu", "cuda")


class FlatOptimizer:
    """AdamW or SGD with momentum over the flat float32 tensor `values`, which it changes in place."""

    def __init__(self, section: OptimizerSection, values: Tensor) -> None:
        self._section = section
        self._values = values
        self._is_fused = values.device.type in FUSED_DEVICES
        self.state: dict[str, Tensor] = {}
        """Named as in torch.optim, each flat like `values`; empty where the optimizer has none."""
        if section.name == "adamw":
            self.state["exp_avg"] = torch.zeros_like(values)
            self.state["exp_avg_sq"] = torch.zeros_like(values)
            self.state["step"] = torch.zeros((), device=values.device if self._is_fused else None)
        elif section.momentum:
            self.state["momentum_buffer"] = torch.zeros_like(values)

    @torch.no_grad()
    def step(self, gradient: Tensor, *, lr: float, scale: float) -> None:
        """Update the values by `gradient * scale`; `gradient` is changed where `scale` is not 1."""
        if scale != 1.0:
            gradient.mul_(scale)
        if self._section.name == "adamw":
            self._adamw(gradient, lr)
        else:
            self._sgd(gradient, lr)

    def _adamw(self, gradient: Tensor, lr: float) -> None:
        beta1, beta2 = self._section.betas
        adamw(
            [self._values],
            [gradient],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state["step"]],
            fused=self._is_fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=self._section.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def _sgd(self, gradient: Tensor, lr: float) -> None:
        buffer = self.state.get("momentum_buffer")
        # A buffer of zeros is what torch starts from: without dampening, its first buffer is the gradient.
        sgd(
            [self._values],
            [gradient],
            [buffer],
            fused=self._is_fused,
            weight_decay=self._section.weight_decay,
            momentum=self._section.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
