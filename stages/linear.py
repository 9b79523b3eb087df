"""Linear layers whose backward hands out the input's gradient before it works on the parameters'.

    autograd:   g -> dx, dW, db of the last layer -> dx, dW, db of the one before -> ...    then dx leaves
    here:       g -> dx of the last layer -> dx of the one before -> ... -> dx leaves       then dW, db of all

The stage before waits for dx alone, so a pipeline's backward takes half as long, as in zero-bubble
schedules (Qi et al., arXiv:2401.10241); other jobs may even come first. The deferred products are added straight
onto the parameters' gradients, without a temporary of their own. Only modules whose type is exactly `nn.Linear` are changed;
all others are left to autograd, which may also add to the same gradients.

Only a backward that `DeferredGradients.backward` knows of is treated so. One that a layer makes itself, inside its
forward or its backward, gets dW and db as from autograd, and so does one of a parameter that has hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.kernels import Kernels, TorchKernels

OTHER_KERNELS = TorchKernels()
"""For what is not float32."""


class _Product(NamedTuple):
    """Of one linear layer, what is to be added to the gradients of its parameters; None for one that gets nothing."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    g: Tensor
    """[N, O]"""
    x: Tensor
    """[N, I]"""

    @property
    def version(self) -> int:
        """It grows when somebody writes into g or x."""
        return self.g._version + self.x._version  # noqa: SLF001 - the one that autograd looks at


@dataclass(slots=True)
class DeferredGradients:
    """Products that are still to be added to parameters' gradients.

    With `is_deferring` false they are added at once: nobody waits for the gradient of tokens.
    """

    kernels: Kernels
    is_deferring: bool
    _is_open: bool = False
    _is_wanted: bool = True
    _waiting: list[tuple[_Product, int]] = field(default_factory=list)

    @contextmanager
    def backward(self, *, is_wanted: bool = True) -> Iterator[None]:
        """Take the products of the backward within; drop them if they are not wanted, or if it fails."""
        self._is_open, self._is_wanted = True, is_wanted
        try:
            yield
        except BaseException:
            self.clear()
            raise
        finally:
            self._is_open = False

    def takes(self, product: _Product) -> bool:
        """Is this for `put`? Else autograd is to add it."""
        if not self._is_open:
            return False
        for parameter in (product.weight, product.bias):
            if parameter is None:
                continue
            # There is no public way to know of hooks.
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # noqa: SLF001
                return False
            if parameter.grad is None and self._is_wanted:
                return False
        return True

    def kernels_of(self, dtype: torch.dtype) -> Kernels:
        """Return what multiplies matrices of a dtype."""
        return self.kernels if dtype == torch.float32 else OTHER_KERNELS

    def put(self, product: _Product, *, may_wait: bool) -> None:
        """Take a product; `may_wait`: nobody will write into it meanwhile."""
        if not self._is_wanted or (product.weight is None and product.bias is None):
            return
        if self.is_deferring and may_wait:
            self._waiting.append((product, product.version))
        else:
            self._add(product)

    def gradients(self, product: _Product) -> tuple[Tensor | None, Tensor | None]:
        """Return dW and db by themselves."""
        weight, bias, g, x = product
        dW, db = (None if one is None else torch.zeros_like(one) for one in (weight, bias))
        self._multiply(dW, db, g, x)
        return dW, db

    def rest(self) -> Iterator[None]:
        """Take all that waits; whoever iterates adds it, one product after the other in the order of the backward.

        Iterating raises RuntimeError where somebody has written into what waits.
        """
        waiting, self._waiting = self._waiting, []
        return self._each(waiting)

    def _each(self, waiting: list[tuple[_Product, int]]) -> Iterator[None]:
        waiting.reverse()
        while waiting:
            product, version = waiting.pop()
            if product.version != version:
                raise RuntimeError(
                    f"the input {list(product.x.shape)} of a linear layer, or its output's gradient, has been modified by "
                    "an inplace operation before the weight's gradient was computed; a clone of it would mend that"
                )
            self._add(product)
            yield

    def clear(self) -> None:
        """Forget all that waits."""
        self._waiting = []

    def _add(self, product: _Product) -> None:
        weight, bias, g, x = product
        self._multiply(None if weight is None else weight.grad, None if bias is None else bias.grad, g, x)

    @torch.no_grad()
    def _multiply(self, dW: Tensor | None, db: Tensor | None, g: Tensor, x: Tensor) -> None:
        """Add to dW and db."""
        if dW is not None:
            self.kernels_of(g.dtype).add_weight_gradient(dW, g, x)
        if db is not None:
            db.add_(g.sum(0, dtype=db.dtype))


def install(layers: Iterable[nn.Module], deferred: DeferredGradients) -> int:
    """Let every `nn.Linear` of the layers use `deferred`; return how many there are."""
    linears = [module for layer in layers for module in layer.modules() if type(module) is nn.Linear]
    for linear in linears:
        linear.forward = partial(_forward, linear, deferred)  # type: ignore[method-assign]
    return len(linears)


def _forward(linear: nn.Linear, deferred: DeferredGradients, x: Tensor) -> Tensor:
    weight, bias = linear.weight, linear.bias
    if torch.compiler.is_compiling() or not _is_usual(x, weight, bias):
        return functional.linear(x, weight, bias)
    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    dtype = _product_dtype(x)
    if torch.is_grad_enabled():
        y_NO: Tensor = _Linear.apply(x_NI.to(dtype), weight, bias, deferred)  # type: ignore[no-untyped-call]
    else:
        y_NO = deferred.kernels_of(dtype).forward(x_NI, weight, bias)
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
    """y = x W^T + b; its backward returns dx and puts the rest into `deferred`, unless that does not take it.

    Under autocast, products are of its dtype, which x has already, and their sums of the parameters', as autograd has it.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight: nn.Parameter, bias: nn.Parameter | None, deferred: DeferredGradients
    ) -> Tensor:
        # Parameters are constant within a step: the graph needs no copy of them, nor a version check.
        ctx.save_for_backward(x_NI)
        ctx.weight = weight
        ctx.bias = bias
        ctx.deferred = deferred
        return deferred.kernels_of(x_NI.dtype).forward(x_NI, weight, bias)

    @staticmethod
    def backward(ctx: Any, g_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x_NI,) = ctx.saved_tensors
        g_NO = g_NO.contiguous().to(x_NI.dtype)
        deferred: DeferredGradients = ctx.deferred
        weight, bias, has_dx = ctx.weight, ctx.bias, ctx.needs_input_grad[0]
        if torch.is_grad_enabled():
            # To be differentiated once more: by operations that autograd knows.
            dx_NI = g_NO @ weight.to(g_NO.dtype) if has_dx else None
            return dx_NI, g_NO.t() @ x_NI, None if bias is None else g_NO.sum(0), None
        dx_NI = deferred.kernels_of(g_NO.dtype).input_gradient(g_NO, weight.to(g_NO.dtype)) if has_dx else None
        fates = [_is_asked_for(node) for node, _ in ctx.next_functions[1:]]
        product = _Product(
            weight=None if fates[0] is None else weight, bias=None if fates[-1] is None else bias, g=g_NO, x=x_NI
        )
        if True not in fates and deferred.takes(product):
            # What was written into, or does not come from the stage's input, may be a buffer that is filled again.
            deferred.put(product, may_wait=has_dx and x_NI._version == 0)  # noqa: SLF001
            return dx_NI, None, None, None
        return dx_NI, *deferred.gradients(product), None


def _is_asked_for(node: Any) -> bool | None:
    """Does the present backward hand a parameter's gradient to its caller? False: it is added; None: it is neither."""
    if node is None:
        return None
    try:
        return False if torch._C._will_engine_execute_node(node) else None  # noqa: SLF001 - as torch's own hooks do
    except RuntimeError:
        return True  # An input of `torch.autograd.grad`: torch cannot say, and says so.
