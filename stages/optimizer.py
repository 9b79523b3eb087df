"""The optimizer step on a stage's flat parameters.

torch's own AdamW and SGD, as functions over one flat tensor each for values, gradient and state, layer by layer: one pass
over memory where the fused version exists. Each layer counts its own steps, so that one that came late can take those that
it lacks. (The classes of torch.optim do the same; making one imports
torch's compiler, a second at the start of each worker.) The weight decay is on all parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from zswarm.config import OptimizerSection

EPSILON = 1e-8
STEP = "step"
FUSED_DEVICES = ("cpu", "cuda")


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
        self._is_fused = values.device.type in FUSED_DEVICES
        self.state: dict[str, Tensor] = {}
        """Named as in torch.optim, each flat like `values`, but for STEP: one number per layer. SGD may have none."""
        if section.name == "adamw":
            self.state["exp_avg"] = torch.zeros_like(values)
            self.state["exp_avg_sq"] = torch.zeros_like(values)
            self.state[STEP] = torch.zeros(len(regions), device=values.device if self._is_fused else None)
        elif section.momentum:
            self.state["momentum_buffer"] = torch.zeros_like(values)

    @torch.no_grad()
    def step(self, gradient: Tensor, *, lr: float, scale: float) -> None:
        """Update the values by `gradient * scale`; `gradient` is changed where `scale` is not 1."""
        if scale != 1.0:
            gradient.mul_(scale)
        self._step(range(len(self._regions)), [gradient[region] for region in self._regions], lr)

    @torch.no_grad()
    def step_layer(self, index: int, gradient: Tensor, *, lr: float) -> None:
        """Update one layer's values alone; `gradient` has the size of its region."""
        self._step([index], [gradient], lr)

    def _step(self, layers: Sequence[int], gradients: Sequence[Tensor], lr: float) -> None:
        filled = [layer for layer, gradient in zip(layers, gradients, strict=True) if gradient.numel()]
        gradients = [gradient for gradient in gradients if gradient.numel()]
        if self._section.name == "adamw":
            for layer in set(layers).difference(filled):
                self.state[STEP][layer] += 1.0
            self._adamw(filled, gradients, lr)
        else:
            self._sgd(filled, gradients, lr)

    def _of(self, layers: Sequence[int], tensor: Tensor) -> list[Tensor]:
        return [tensor[self._regions[layer]] for layer in layers]

    def _adamw(self, layers: Sequence[int], gradients: Sequence[Tensor], lr: float) -> None:
        beta1, beta2 = self._section.betas
        adamw(
            self._of(layers, self._values),
            list(gradients),
            self._of(layers, self.state["exp_avg"]),
            self._of(layers, self.state["exp_avg_sq"]),
            [],
            [self.state[STEP][layer] for layer in layers],
            fused=self._is_fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=self._section.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def _sgd(self, layers: Sequence[int], gradients: Sequence[Tensor], lr: float) -> None:
        buffer = self.state.get("momentum_buffer")
        # A buffer of zeros is what torch starts from: without dampening, its first buffer is the gradient.
        sgd(
            self._of(layers, self._values),
            list(gradients),
            list(self._of(layers, buffer)) if buffer is not None else [None] * len(layers),
            fused=self._is_fused,
            weight_decay=self._section.weight_decay,
            momentum=self._section.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
