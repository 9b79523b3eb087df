from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from stages.optimizer import EPSILON, FlatOptimizer, power
from zswarm.config import OptimizerSection

ADAMW = {"name": "adamw", "betas": (0.8, 0.9), "weight_decay": 0.1}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}


def torch_optimizer(section, parameters):
    if section.name == "adamw":
        return torch.optim.AdamW(parameters, betas=section.betas, weight_decay=section.weight_decay)
    return torch.optim.SGD(parameters, momentum=section.momentum, weight_decay=section.weight_decay)


@pytest.mark.parametrize("settings", [ADAMW, SGD, {"name": "sgd"}, {"name": "adamw"}], ids=str)
def test_it_steps_as_torch_optim_does(settings):
    """Over several steps with changing rates and gradients, values are those of torch.optim's classes."""
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


@pytest.mark.parametrize("settings", [ADAMW, SGD, {"name": "sgd"}], ids=str)
def test_a_layer_alone_steps_as_all_do(settings):
    """To the bit, a layer without parameters too, and however late it takes its steps."""
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


def test_every_operation_is_rounded_on_its_own():
    """So the bits are those of any device: numpy's scalars, one operation at a time, give the same."""
    section = OptimizerSection.model_validate(ADAMW)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(70_000, generator=generator)
    expected = [values.numpy().copy()] + [np.zeros(70_000, np.float32) for _ in range(2)]
    optimizer = FlatOptimizer(section, values, [slice(0, 70_000)])
    beta1, beta2 = section.betas
    for step in (1, 2, 3):
        gradient = torch.randn(70_000, generator=generator) * 1e-3
        optimizer.step(gradient.clone(), lr=0.01, scale=0.5)
        g = gradient.numpy() * np.float32(0.5)
        value, mean, square = expected
        value = value * np.float32(1.0 - 0.01 * section.weight_decay)
        mean = mean * np.float32(beta1) + g * np.float32(1.0 - beta1)
        square = square * np.float32(beta2) + g * g * np.float32(1.0 - beta2)
        correction = math.sqrt(1.0 - power(beta2, step))
        root = np.sqrt(square) + np.float32(EPSILON * correction)
        value = value - mean / root * np.float32(0.01 * correction / (1.0 - power(beta1, step)))
        expected = [value, mean, square]
    found = [values, optimizer.state["exp_avg"], optimizer.state["exp_avg_sq"]]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("base", [0.9, 0.999])
def test_a_power_is_that_number(base):
    for exponent in (0, 1, 2, 3, 10, 1000, 123_456):
        exact = Fraction(base) ** exponent if exponent < 2000 else None
        assert power(base, exponent) == pytest.approx(float(exact) if exact is not None else base**exponent, rel=1e-12)


LEAN = """
import sys, torch
from stages.engine import Place, StageEngine
from stages.model import build_layer, load_model
from stages.precision import Arithmetic
from stages.optimizer import FlatOptimizer
from zswarm.config import OptimizerSection
model = load_model("gpt", {"d_model": 8, "num_layers": 1, "num_heads": 2, "sequence_length": 4})
tokens = torch.zeros(1, 4, dtype=torch.uint8)
first, second = (
    StageEngine(
        [build_layer(model, index, 0) for index in own],
        first_layer=own[0], loss=model.loss if own[0] else None, step_targets=4, seed=0, arithmetic=Arithmetic(),
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
