"""On what, and in what arithmetic, layers compute: a device, and the run's `pipeline.precision`.

    float32    all of it
    tf32       matrix products of a card with 10 bits of mantissa and the range of float32
    bfloat16   torch's autocast: matrix products with 7 bits of mantissa, what needs more in float32

Parameters, gradients and the optimizer are float32 in each.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """See the module."""

    device: torch.device = CPU
    precision: str = "float32"

    def set_up(self, *, is_exact: bool) -> None:
        """Tell this process's torch; `is_exact`: it has to give the same bits each time, or raise where it cannot."""
        if self.device.type != "cpu":
            # cuBLAS is deterministic only with a workspace of its own, and reads that before its first product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
            torch.use_deterministic_algorithms(is_exact)

    def context(self) -> AbstractContextManager[object]:
        """Return that in which layers and losses are called."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
