"""Clipping by the norm of the whole model's gradient, of which each stage knows its part."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORM_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`, so that clipping equals that of a plain loop."""


def clip_scale(square_norms: Sequence[float], grad_clip: float) -> tuple[float, float]:
    """Return what each gradient is multiplied by, and the norm before that.

    `square_norms` are those of the stages, all finite; `grad_clip` is the largest norm, 0 does not clip. Equal numbers
    give equal bits, in whatever order they come.
    """
    norm = math.sqrt(math.fsum(square_norms))
    scale = min(1.0, grad_clip / (norm + NORM_EPSILON)) if grad_clip > 0 else 1.0
    return scale, norm
