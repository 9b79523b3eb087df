"""The same run in one process, as a plain PyTorch loop: the truth that a swarm is held against.

On purpose it shares with the swarm only what defines the run: the model's layers, the samples, the
learning rates. Accumulation, clipping and the optimizer step are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.model import Model, build_layer, load_model
from zswarm.config import OptimizerSection, RunConfig
from zswarm.schedule import learning_rate


class Samples(Protocol):
    """Where microbatches come from: tokens and labels [B, T], integers."""

    def samples(self, step: int, microbatch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a microbatch to train on."""

    def held_out(self, microbatch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a microbatch to evaluate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStep:
    """One optimizer step."""

    step: int
    loss: float
    """Mean over the step's predictions."""
    lr: float
    grad_norm: float


class Reference:
    """A run in one process. `UserError` for a wrong model."""

    def __init__(self, config: RunConfig, source: Samples) -> None:
        self._config = config
        self._source = source
        self._model: Model = load_model(config.model.factory, config.model.arguments)
        layers = [build_layer(self._model, index, config.run.seed) for index in range(len(self._model.layers))]
        self.layers = nn.Sequential(*layers)
        self._optimizer = make_optimizer(self.layers, config.optimizer)

    def steps(self) -> Iterator[ReferenceStep]:
        """Train, yielding after each optimizer step."""
        for step in range(self._config.run.steps):
            yield self._step(step)

    def _step(self, step: int) -> ReferenceStep:
        config = self._config
        targets = config.batch.global_batch * config.sequence_length
        self.layers.train()
        self._optimizer.zero_grad()
        loss_sum = 0.0
        for microbatch in range(config.num_microbatches):
            loss = self._loss(*self._source.samples(step, microbatch))
            (loss / targets).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
        clip = config.optimizer.grad_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.layers.parameters(), clip)
        lr = learning_rate(config.optimizer, step, config.run.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            self._optimizer.step()
        return ReferenceStep(step=step, loss=loss_sum / targets, lr=lr, grad_norm=norm.item())

    def held_out_loss(self) -> float:
        """Return the mean loss over all held-out microbatches."""
        self.layers.eval()
        count = self._config.data.held_out_microbatches
        with torch.no_grad():
            loss_sum = sum(self._loss(*self._source.held_out(index)).item() for index in range(count))
        return loss_sum / (count * self._config.batch.microbatch * self._config.sequence_length)

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters, named `layers.<index>.<parameter>` as in a swarm's model file."""
        return {f"layers.{name}": tensor.detach() for name, tensor in self.layers.state_dict().items()}

    def _loss(self, tokens: NDArray[Any], labels: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(tokens).to(torch.int64)
        return self._model.loss(self.layers(x), torch.from_numpy(labels).to(torch.int64))


def make_optimizer(layers: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """Return PyTorch's optimizer of that name over all parameters."""
    if section.name == "sgd":
        return torch.optim.SGD(
            layers.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(layers.parameters(), lr=section.lr, betas=section.betas, weight_decay=section.weight_decay)


def run_reference(
    config: RunConfig,
    source: Samples,
    *,
    on_step: Callable[[ReferenceStep], None],
    on_held_out: Callable[[int, float], None],
) -> dict[str, Tensor]:
    """Train from the first step to the last, telling each step and the held-out losses; returns the parameters."""
    reference = Reference(config, source)
    on_held_out(0, reference.held_out_loss())
    for done in reference.steps():
        on_step(done)
    on_held_out(config.run.steps, reference.held_out_loss())
    return reference.parameters()
