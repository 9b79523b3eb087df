from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stages.optimizer import FlatOptimizer
from zswarm.config import OptimizerSection

ADAMW = {"name": "adamw", "betas": (0.8, 0.9), "weight_decay": 0.1}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}


def torch_optimizer(section, parameters):
    if section.name == "adamw":
        return torch.optim.AdamW(parameters, betas=section.betas, weight_decay=section.weight_decay)
    return torch.optim.SGD(parameters, momentum=section.momentum, weight_decay=section.weight_decay)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("settings", [ADAMW, SGD, {"name": "sgd"}, {"name": "adamw"}], ids=str)
def test_it_steps_as_torch_optim_does(monkeypatch, settings, is_fused):
    """Over several steps with changing rates and gradients, values are those of torch.optim's classes."""
    if not is_fused:
        monkeypatch.setattr("stages.optimizer.FUSED_DEVICES", ())
    section = OptimizerSection.model_validate(settings)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, generator=generator)
    parameters = [torch.nn.Parameter(part.clone()) for part in (values[:15], values[15:])]
    expected = torch_optimizer(section, parameters)
    optimizer = FlatOptimizer(section, values)
    for lr in (0.1, 0.01, 0.05, 0.0):
        gradient = torch.randn(40, generator=generator)
        for group in expected.param_groups:
            group["lr"] = lr
        for parameter, part in zip(parameters, (gradient[:15], gradient[15:]), strict=True):
            parameter.grad = part * 0.5
        expected.step()
        optimizer.step(gradient, lr=lr, scale=0.5)
        assert torch.allclose(values, torch.cat([p.detach() for p in parameters]), rtol=1e-5, atol=1e-7)


def test_the_compiler_is_not_imported():
    """A worker is ready a second earlier without torch's compiler, which making a torch.optim class imports."""
    code = """
import sys, torch
from stages.optimizer import FlatOptimizer
from zswarm.config import OptimizerSection
values = torch.ones(300)
FlatOptimizer(OptimizerSection(), values).step(torch.ones(300), lr=0.1, scale=1.0)
assert values[0] < 1
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
