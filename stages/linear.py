"""Linear layers whose backward hands out the input's gradient before it works on the parameters'.

    autograd:   g -> dx, dW, db of the last layer -> dx, dW, db of the one before -> ...    then dx leaves
    here:       g -> dx of the last layer -> dx of the one before -> ... -> dx leaves       then dW, db of all

The stage before waits for dx alone, so a pipeline's backward takes half as long, as in zero-bubble
schedules (Qi et al., arXiv:2401.10241); other jobs may even come first. The deferred products are added straight
onto the parameters' gradients, without a temporary of their own. Only modules whose type is exactly `nn.Linear` are changed;
all others are left to autograd, which may also add to the same gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stages.kernels import Kernels, TorchKernels

OTHER_KERNELS = TorchKernels()
"""For what is not float32."""
_Product = tuple[nn.Parameter, nn.Parameter | None, Tensor, Tensor]
"""Weight, bias, g [N, O] and x [N, I] of one linear layer."""


@dataclass(slots=True)
class DeferredGradients:
    """Products that are still to be added to parameters' gradients.

    With `is_deferring` false they are added at once: nobody waits for the gradient of tokens.
    """

    kernels: Kernels
    is_deferring: bool
    is_wanted: bool = True
    """False while a backward is for dx alone."""
    _waiting: list[_Product] = field(default_factory=list)

    def kernels_of(self, dtype: torch.dtype) -> Kernels:
        """Return what multiplies matrices of a dtype."""
        return self.kernels if dtype == torch.float32 else OTHER_KERNELS

    def put(self, weight: nn.Parameter, bias: nn.Parameter | None, g: Tensor, x: Tensor) -> None:
        """Take g [N, O] and x [N, I] of one linear layer."""
        if not self.is_wanted or not (weight.requires_grad or (bias is not None and bias.requires_grad)):
            return
        if self.is_deferring:
            self._waiting.append((weight, bias, g, x))
        else:
            self._add(weight, bias, g, x)

    def rest(self) -> Iterator[None]:
        """Take all that waits; whoever iterates adds it, one product after the other in the order of the backward."""
        waiting, self._waiting = self._waiting, []
        return self._each(waiting)

    def _each(self, products: list[_Product]) -> Iterator[None]:
        products.reverse()
        while products:
            self._add(*products.pop())
            yield

    def clear(self) -> None:
        """Forget all that waits."""
        self._waiting = []

    @torch.no_grad()
    def _add(self, weight: nn.Parameter, bias: nn.Parameter | None, g: Tensor, x: Tensor) -> None:
        if weight.requires_grad and weight.grad is not None:
            self.kernels_of(g.dtype).add_weight_gradient(weight.grad, g, x)
        if bias is not None and bias.requires_grad and bias.grad is not None:
            bias.grad.add_(g.sum(0, dtype=bias.grad.dtype))


def install(layers: Iterable[nn.Module], deferred: DeferredGradients) -> int:
    """Let every `nn.Linear` of the layers use `deferred`; return how many there are."""
    linears = [module for layer in layers for module in layer.modules() if type(module) is nn.Linear]
    for linear in linears:
        linear.forward = partial(_forward, linear, deferred)  # type: ignore[method-assign]
    return len(linears)


def _forward(linear: nn.Linear, deferred: DeferredGradients, x: Tensor) -> Tensor:
    weight, bias = linear.weight, linear.bias
    if not _is_usual(x, weight, bias):
        return functional.linear(x, weight, bias)
    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    if torch.is_grad_enabled():
        y_NO: Tensor = _Linear.apply(x_NI, weight, bias, deferred)  # type: ignore[no-untyped-call]
    else:
        y_NO = deferred.kernels_of(_product_dtype(x)).forward(x_NI, weight, bias)
    return y_NO.view(*x.shape[:-1], weight.shape[0])


def _is_usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Is this what `_Linear` is made for: float32 parameters with a gradient of their own, and an input that fits them?"""
    return (
        (x.dtype == torch.float32 or (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)))
        and x.numel() > 0
        and x.shape[-1] == weight.shape[1]
        and all(
            isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device == x.device
            for tensor in (weight, bias)
            if tensor is not None
        )
    )


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return in what the products are to be computed: x's own, or what autocast says."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Linear(torch.autograd.Function):
    """y = x W^T + b; its backward returns dx and puts the rest into `deferred`.

    Under autocast, products are of its dtype, and their sums of the parameters', as autograd has it.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight: nn.Parameter, bias: nn.Parameter | None, deferred: DeferredGradients
    ) -> Tensor:
        # Parameters are constant within a step: the graph needs no copy of them, nor a version check.
        ctx.dtype = x_NI.dtype
        x_NI = x_NI.to(_product_dtype(x_NI))
        ctx.save_for_backward(x_NI)
        ctx.weight = weight
        ctx.bias = bias
        ctx.deferred = deferred
        return deferred.kernels_of(x_NI.dtype).forward(x_NI, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NO: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x_NI,) = ctx.saved_tensors
        g_NO = g_NO.contiguous().to(x_NI.dtype)
        deferred: DeferredGradients = ctx.deferred
        deferred.put(ctx.weight, ctx.bias, g_NO, x_NI)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx_NI = deferred.kernels_of(g_NO.dtype).input_gradient(g_NO, ctx.weight.to(g_NO.dtype))
        return dx_NI.to(ctx.dtype), None, None, None
