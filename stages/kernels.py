"""The three matrix products of a linear layer, by the library that suits the processor.

torch multiplies float32 matrices by MKL, which on processors that are not Intel's leaves AVX-512 unused;
oneDNN, which torch also brings, does not: 245 against 110 GFLOP/s on one core of an AMD EPYC (Zen 5). Zen 4 carries out
AVX-512 in two halves: there oneDNN is 6 to 10 % faster where a weight is multiplied, and MKL 4 to 30 % where two activations
are. On Intel's own the two are equal. Results differ in rounding, so the choice follows from the hardware alone:
workers on equal machines, and a microbatch that is run again, get the same bits.

    N rows of activations, I inputs, O outputs: x [N, I], weight [O, I], y and its gradient g [N, O]
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

CPUINFO = Path("/proc/cpuinfo")
INTEL, AMD = "GenuineIntel", "AuthenticAMD"
ZEN_4 = 0x19
"""AMD's family of processors whose AVX-512 is no faster than AVX2; families before it have none."""
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


class MixedKernels(OneDnnKernels):
    """oneDNN's products with a weight, torch's of two activations. float32 on a CPU only."""

    def add_weight_gradient(self, total: Tensor, g: Tensor, x: Tensor) -> None:
        """Add g^T x to `total`."""
        TorchKernels().add_weight_gradient(total, g, x)


class Processor(NamedTuple):
    """What a processor says of itself: a vendor such as `AuthenticAMD`, and a number. Neither where it says nothing."""

    vendor: str = ""
    family: int = 0


def kernels_for(device: torch.device) -> Kernels:
    """Return the kernels to use on a device; equal hardware and equal torch give equal ones."""
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return TorchKernels()
    processor = _processor()
    # MKL uses the AVX-512 of Intel's; who does not say what it is is taken for one of them.
    if processor.vendor in ("", INTEL) or not _is_onednn_right():
        return TorchKernels()
    return MixedKernels() if processor == (AMD, ZEN_4) else OneDnnKernels()


@functools.cache
def _processor() -> Processor:
    """Return what the first processor says of itself."""
    try:
        first, *_ = CPUINFO.read_text().split("\n\n", 1)
    except OSError:
        return Processor()
    says = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    family = says.get("cpu family", "")
    return Processor(says.get("vendor_id", ""), int(family) if family.isdecimal() else 0)


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
