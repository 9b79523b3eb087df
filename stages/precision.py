"""On what, and in what arithmetic, layers compute: a device, and the run's `pipeline.precision`.

    float32    all of it
    tf32       matrix products and convolutions of a card with 10 bits of mantissa and the range of float32
    bfloat16   torch's autocast: matrix products with 7 bits of mantissa, what needs more in float32

Parameters, gradients and the optimizer are float32 in each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from zswarm.compression import CPU


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """See the module."""

    device: torch.device = CPU
    precision: str = "float32"

    def set_up(self, *, is_exact: bool) -> None:
        """Tell this process's torch; `is_exact`: it has to give the same bits each time, or raise where it cannot."""
        if self.device.type != "cpu":
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
            torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
            torch.use_deterministic_algorithms(is_exact)
            # Else each buffer for a payload would be filled before it is filled.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def context(self) -> AbstractContextManager[object]:
        """Return that in which layers and losses are called."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
