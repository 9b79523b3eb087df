"""The three matrix products of a linear layer, by the faster of the libraries that torch brings.

torch multiplies float32 matrices by MKL, which on processors that are not Intel's leaves AVX-512 unused;
oneDNN, which torch also brings, does not: 245 against 110 GFLOP/s on one core of an AMD EPYC (Zen 5).
Which one is faster is measured once per process, on products of a usual size. Results differ in rounding.

    N rows of activations, I inputs, O outputs: x [N, I], weight [O, I], y and its gradient g [N, O]
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

PROBE_SHAPE = (256, 512, 512)
PROBE_REPEATS = 5
NEEDED_SPEEDUP = 1.2
"""oneDNN is chosen where it is faster by this factor: on Intel's processors the two are equal."""


class Kernels(Protocol):
    """The products of one library."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y = x weight^T + bias."""

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """Return g weight."""

    def add_weight_gradient(self, total: Tensor, g: Tensor, x: Tensor) -> None:
        """Add g^T x to `total`, [O, I]."""


class TorchKernels:
    """What torch itself uses."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y = x weight^T + bias."""
        return functional.linear(x, weight, bias)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """Return g weight."""
        return g @ weight

    def add_weight_gradient(self, total: Tensor, g: Tensor, x: Tensor) -> None:
        """Add g^T x to `total`."""
        total.addmm_(g.t(), x)


class OneDnnKernels:
    """oneDNN's inner product, which takes transposed matrices as they lie. float32 on a CPU only."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return y = x weight^T + bias."""
        return _inner_product(x, weight, bias)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """Return g weight."""
        return _inner_product(g, weight.t(), None)

    def add_weight_gradient(self, total: Tensor, g: Tensor, x: Tensor) -> None:
        """Add g^T x to `total`."""
        total.add_(_inner_product(g.t(), x.t(), None))


def fastest_kernels(device: torch.device) -> Kernels:
    """Return the kernels to use on a device."""
    if device.type == "cpu" and _is_onednn_faster():
        return OneDnnKernels()
    return TorchKernels()


def _inner_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator behind torch.compile's linear layers; it has no public name.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
    return product


@functools.cache
def _is_onednn_faster() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call]
        return False
    num_rows, num_inputs, num_outputs = PROBE_SHAPE
    x, weight, g = (
        torch.ones(num_rows, num_inputs),
        torch.ones(num_outputs, num_inputs),
        torch.ones(num_rows, num_outputs),
    )

    def forward_and_backward(kernels: Kernels) -> Tensor:
        total = torch.zeros_like(weight)
        kernels.add_weight_gradient(total, kernels.forward(x, weight, None), kernels.input_gradient(g, weight))
        return total

    try:
        is_right = torch.equal(forward_and_backward(OneDnnKernels()), forward_and_backward(TorchKernels()))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    onednn_s = _fastest_s(functools.partial(forward_and_backward, OneDnnKernels()))
    torch_s = _fastest_s(functools.partial(forward_and_backward, TorchKernels()))
    return is_right and onednn_s * NEEDED_SPEEDUP < torch_s


def _fastest_s(call: Callable[[], object]) -> float:
    times = []
    for _ in range(PROBE_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
