from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zswarm.config import RunConfig


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_models(monkeypatch):
    """`own_models:<function>` names a model factory, as a user's own would be."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def make_config():
    """Return a function that makes a small run's configuration; sections given are merged over it."""

    def make(**sections) -> RunConfig:
        tree = {
            "run": {"steps": 3, "seed": 7},
            "model": {"factory": "gpt", "d_model": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 12},
            "batch": {"global_batch": 8, "microbatch": 2},
            "data": {"held_out_microbatches": 2},
            "pipeline": {"stages": 1},
            "wire": {"codec": "none"},
            "optimizer": {"name": "sgd", "lr": 0.1, "grad_clip": 0.5},
        }
        for name, section in sections.items():
            tree[name] = section if name == "model" and "factory" in section else tree[name] | section
        return RunConfig.model_validate(tree)

    return make


class RandomBytes:
    """Samples that depend on (step, microbatch) alone."""

    def __init__(self, config: RunConfig) -> None:
        self._shape = (config.batch.microbatch, config.sequence_length + 1)

    def samples(self, step: int, microbatch: int):
        return self._draw(step + 1, microbatch)

    def held_out(self, microbatch: int):
        return self._draw(0, microbatch)

    def _draw(self, *key: int):
        windows = np.random.default_rng(key).integers(97, 107, self._shape, dtype=np.uint8)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


@pytest.fixture
def make_source():
    return RandomBytes
