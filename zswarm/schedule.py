"""The learning rate of each step."""

from __future__ import annotations

import math

from zswarm.config import OptimizerSection


def learning_rate(optimizer: OptimizerSection, step: int, steps: int) -> float:
    """Return the learning rate of `step`, counted from 0, of a run of `steps`.

    It rises in a straight line over the first `warmup_steps`, the last of which has the full rate; then it
    stays (constant), or falls to zero at `steps` in a straight line (linear) or half a cosine (cosine).
    """
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    match optimizer.schedule:
        case "constant":
            return optimizer.lr
        case "linear":
            return optimizer.lr * max(0.0, 1.0 - done)
        case "cosine":
            return optimizer.lr * (1.0 + math.cos(math.pi * min(1.0, done))) / 2.0
