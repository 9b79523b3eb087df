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
    optimizer = FlatOptimizer(section, values, [slice(0, 15), slice(15, 40)])
    for lr in (0.1, 0.01, 0.05, 0.0):
        gradient = torch.randn(40, generator=generator)
        for group in expected.param_groups:
            group["lr"] = lr
        for parameter, part in zip(parameters, (gradient[:15], gradient[15:]), strict=True):
            parameter.grad = part * 0.5
        expected.step()
        optimizer.step(gradient, lr=lr, scale=0.5)
        assert torch.allclose(values, torch.cat([p.detach() for p in parameters]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("settings", [ADAMW, SGD, {"name": "sgd"}], ids=str)
def test_a_layer_alone_steps_as_all_do(monkeypatch, settings, is_fused):
    """To the bit, a layer without parameters too, and however late it takes its steps."""
    if not is_fused:
        monkeypatch.setattr("stages.optimizer.FUSED_DEVICES", ())
    regions = [slice(0, 80), slice(80, 80), slice(80, 112)]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(112, generator=generator)
    section = OptimizerSection.model_validate(settings)
    together, apart = (FlatOptimizer(section, copy, regions) for copy in (values, values.clone()))
    gradients = [torch.randn(112, generator=generator) for _ in range(3)]
    for gradient, lr in zip(gradients, (0.1, 0.01, 0.05), strict=True):
        together.step(gradient, lr=lr, scale=0.5)
    for index, region in enumerate(regions):
        for gradient, lr in zip(gradients, (0.1, 0.01, 0.05), strict=True):
            apart.step_layer(index, gradient[region], lr=lr)
    assert torch.equal(together._values, apart._values)
    assert all(torch.equal(tensor, apart.state[name]) for name, tensor in together.state.items())


LEAN = """
import sys, torch
from stages.engine import Place, StageEngine
from stages.model import build_layer, load_model
from stages.optimizer import FlatOptimizer
from zswarm.config import OptimizerSection
model = load_model("gpt", {"d_model": 8, "num_layers": 1, "num_heads": 2, "sequence_length": 4})
cpu, tokens = torch.device("cpu"), torch.zeros(1, 4, dtype=torch.uint8)
first, second = (
    StageEngine(
        [build_layer(model, index, 0) for index in own],
        first_layer=own[0], loss=model.loss if own[0] else None, step_targets=4, seed=0, device=cpu,
    )
    for own in ((0, 1), (2,))
)
graph = first.forward_graph(tokens, Place(0, 0))
loss, dx = second.backward_loss(second.forward_graph(graph.y, Place(0, 0)), tokens, accumulate=True)
first.backward(graph, dx, accumulate=True)
flat = first.parameters
before = flat.values.clone()
FlatOptimizer(OptimizerSection(), flat.values, flat.regions).step(flat.gradients, lr=0.1, scale=1.0)
assert not torch.equal(before, flat.values)
print([name for name in ("torch._dynamo", "sympy", "bitsandbytes") if name in sys.modules])
"""


def test_a_worker_imports_no_compiler():
    """Torch's compiler and its computer algebra, which many roads lead to, would cost each worker a second."""
    done = subprocess.run([sys.executable, "-c", LEAN], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
