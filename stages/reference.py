"""The same run in one process, in a plain PyTorch loop: what training by a swarm is held against.

No engine, no stages, no codec: modules called one after the other, `loss.backward()` for each microbatch,
`clip_grad_norm_`, an optimizer of torch.optim. It shares with the swarm where the first parameters, the
samples and the noise come from, and the learning rate. With `accumulation = "exact"` a swarm is held against
stages/exact_reference.py instead, which has its engine, stages and codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.engine import Place, seed_noise
from stages.model import Loss, build_layer, load_model
from stages.precision import Arithmetic
from stages.trace import trace
from zswarm.compression import CPU
from zswarm.config import OptimizerSection, RunConfig
from zswarm.schedule import learning_rate


class Samples(Protocol):
    """Where microbatches come from, as pairs of integer arrays: tokens and labels, both [B, T]."""

    def samples(self, step: int, microbatch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a microbatch to train on."""

    def held_out(self, microbatch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a microbatch that is never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStep:
    """What one step came to."""

    step: int
    loss: float
    """Mean over the targets of the step."""
    gradient_norm: float
    """Before clipping."""
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResult:
    """A whole run."""

    loss: list[float]
    """One mean per step."""
    held_out_loss_before: float
    held_out_loss: float
    state: dict[str, Tensor]
    """Named `layers.<index>.<parameter>`."""


def reference(
    config: RunConfig, source: Samples, on_step: Callable[[ReferenceStep], None], device: torch.device = CPU
) -> ReferenceResult:
    """Train on a device; `on_step` is called after each step.

    Raises:
        UserError: the model does not exist or does not chain.

    """
    model = load_model(config.model.factory, config.model.arguments)
    trace(model, batch_size=config.batch.microbatch, sequence_length=config.sequence_length, seed=config.run.seed)
    Arithmetic(device, config.pipeline.precision).set_up(is_exact=False)
    layers = nn.ModuleList(build_layer(model, index, config.run.seed) for index in range(len(model.layers)))
    layers.to(device)
    parameters = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    optimizer = _optimizer(config.optimizer, parameters)
    before = held_out_loss(config, source, layers, model.loss)
    losses = []
    for step in range(config.run.steps):
        # A parameter that a step does not reach has a gradient of zero, as it has in a swarm.
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss = _accumulate(config, source, layers, model.loss, step)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.grad_clip or float("inf"))
        lr = learning_rate(config.optimizer, step, config.run.steps)
        if torch.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        losses.append(loss)
        on_step(ReferenceStep(step=step, loss=loss, gradient_norm=float(norm), lr=lr))
    return ReferenceResult(
        loss=losses,
        held_out_loss_before=before,
        held_out_loss=held_out_loss(config, source, layers, model.loss),
        state={f"layers.{name}": tensor.detach().to("cpu", copy=True) for name, tensor in layers.state_dict().items()},
    )


@torch.no_grad()
def held_out_loss(config: RunConfig, source: Samples, layers: nn.ModuleList, loss: Loss) -> float:
    """Return the mean loss over all held-out targets, with dropout off."""
    total, num_targets = 0.0, 0
    layers.eval()
    for microbatch in range(config.data.held_out_microbatches):
        x, labels = _on_device(source.held_out(microbatch), layers)
        with _arithmetic(config, layers).context():
            for layer in layers:
                x = layer(x)
            total += float(loss(x, labels))
        num_targets += labels.numel()
    layers.train()
    return total / num_targets


def _accumulate(config: RunConfig, source: Samples, layers: nn.ModuleList, loss: Loss, step: int) -> float:
    """Add up the gradient of one step; return its mean loss."""
    num_targets = config.batch.global_batch * config.sequence_length
    total = 0.0
    for microbatch in range(config.num_microbatches):
        x, labels = _on_device(source.samples(step, microbatch), layers)
        with _arithmetic(config, layers).context():
            for index, layer in enumerate(layers):
                seed_noise(config.run.seed, Place(step, microbatch), index, x.device)
                x = layer(x)
            loss_sum = loss(x, labels)
        (loss_sum / num_targets).backward()  # type: ignore[no-untyped-call]
        total += float(loss_sum.detach())
    return total / num_targets


def _on_device(samples: tuple[NDArray[Any], NDArray[Any]], layers: nn.ModuleList) -> list[Tensor]:
    device = next(layers.parameters()).device
    return [torch.from_numpy(array).to(device, torch.int64) for array in samples]


def _arithmetic(config: RunConfig, layers: nn.ModuleList) -> Arithmetic:
    return Arithmetic(next(layers.parameters()).device, config.pipeline.precision)


def _optimizer(section: OptimizerSection, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if section.name == "adamw":
        return torch.optim.AdamW(parameters, lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)
    return torch.optim.SGD(parameters, lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay)
