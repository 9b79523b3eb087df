"""The three matrix products of a linear layer, by the library that suits the processor.

torch multiplies float32 matrices by MKL, which on processors that are not Intel's leaves AVX-512 unused;
oneDNN, which torch also brings, does not: 245 against 110 GFLOP/s on one core of an AMD EPYC (Zen 5). On
Intel's own the two are equal. Results differ in rounding, so the choice follows from the hardware alone:
workers on equal machines, and a microbatch that is run again, get the same bits.

    N rows of activations, I inputs, O outputs: x [N, I], weight [O, I], y and its gradient g [N, O]
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
TRIED_SHAPE = (3, 5, 2)
"""N, I, O of the products by which the operators are tried: small integers, exact in any order."""


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
        """Add g^T x to `total`, whose dtype may have more digits."""
        if total.dtype == g.dtype:
            total.addmm_(g.t(), x)
        else:
            total.add_(g.t() @ x)


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


def kernels_for(device: torch.device) -> Kernels:
    """Return the kernels to use on a device; equal hardware and equal torch give equal ones."""
    if device.type == "cpu" and _leaves_avx512_unused(_cpu_vendor(), torch.backends.cpu.get_cpu_capability()):
        return OneDnnKernels() if _is_onednn_right() else TorchKernels()
    return TorchKernels()


def _leaves_avx512_unused(vendor: str, capability: str) -> bool:
    """Is this a processor with AVX-512 on which MKL does without? One whose vendor is unknown is taken for Intel's."""
    return capability == "AVX512" and vendor not in ("", INTEL)


@functools.cache
def _cpu_vendor() -> str:
    """Return what the processor calls itself, such as `AuthenticAMD`; empty where the system does not say."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _inner_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator behind torch.compile's linear layers; it has no public name.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
    return product


@functools.cache
def _is_onednn_right() -> bool:
    """Does this torch have oneDNN's operator, and does it give the products?"""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    num_rows, num_inputs, num_outputs = TRIED_SHAPE
    x = torch.arange(float(num_rows * num_inputs)).view(num_rows, num_inputs)
    weight = torch.arange(float(num_outputs * num_inputs)).view(num_outputs, num_inputs)
    g = torch.arange(float(num_rows * num_outputs)).view(num_rows, num_outputs)

    def products(kernels: Kernels) -> tuple[Tensor, ...]:
        total = torch.ones_like(weight)
        kernels.add_weight_gradient(total, g, x)
        return kernels.forward(x, weight, weight.sum(1)), kernels.input_gradient(g, weight), total

    try:
        return all(map(torch.equal, products(OneDnnKernels()), products(TorchKernels())))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
