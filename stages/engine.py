"""Forward and backward through the layers of one stage.

    forward        x -> y                                      nothing kept
    forward_graph  x -> Graph(x, y)                            autograd's graph, for a backward later
    backward       Graph, dy -> dx                             y's gradient in, x's gradient out
    backward_loss  Graph, labels -> loss, dx                   the last stage: forward, loss and backward in one
    rest           the weights' gradients that backward left   take it before the next backward, iterate once dx is out

Gradients add up in `parameters.gradients`. They are those of the loss sum divided by the targets of a
whole step, a number fixed beforehand, so who computes what does not change their scale.

Noise (dropout) is drawn from (seed, step, microbatch, layer), in a backward from its stage's first layer: running a
microbatch again, here or elsewhere, gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.flat import FlatParameters
from stages.kernels import kernels_for
from stages.linear import DeferredGradients, install
from stages.model import Loss, layer_name
from stages.precision import Arithmetic
from zswarm.errors import ZswarmError

MAX_ERROR_CHARS = 400


class LayerFailed(ZswarmError):
    """A layer or the loss raised: `layer` names it, the text is one line."""

    def __init__(self, layer: str, text: str) -> None:
        super().__init__(text)
        self.layer = layer


class Place(NamedTuple):
    """Which microbatch of the run this is: what its noise is drawn from."""

    step: int
    microbatch: int


@dataclass(slots=True)
class Graph:
    """A forward whose backward is still to come; good for one backward."""

    x: Tensor
    y: Tensor
    place: Place


class StageEngine:
    """Layers `first_layer` and following; `loss` is given at the last stage only.

    `step_targets` is the number of targets of a whole step.

    Raises:
        UserError: the layers' parameters are not float32 or are shared between layers.

    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        first_layer: int,
        loss: Loss | None,
        step_targets: int,
        seed: int,
        arithmetic: Arithmetic,
    ) -> None:
        device = arithmetic.device
        self.layers = [layer.to(device).train() for layer in layers]
        self.first_layer = first_layer
        self.device = device
        self.parameters = FlatParameters(self.layers, first_layer, device)
        self._loss = loss
        self._scale = 1.0 / step_targets
        self._seed = seed
        self._arithmetic = arithmetic
        self._is_training = True
        # Nobody waits for the gradient of tokens, so the first stage has nothing to hurry for.
        self._deferred = DeferredGradients(kernels_for(device), is_deferring=first_layer > 0)
        install(self.layers, self._deferred)

    def forward(self, x: Tensor, place: Place, *, training: bool = True) -> Tensor:
        """Return y; nothing is kept.

        Raises:
            LayerFailed: a layer raised.

        """
        if training:
            # With autograd's graph, though nobody keeps it: without, some kernels (oneDNN's convolutions)
            # round differently, and running again for the backward would not give the same bits.
            return self.forward_graph(x, place).y.detach()
        with torch.no_grad():
            return self._run(self._on_device(x), place, training=False)

    def forward_graph(self, x: Tensor, place: Place) -> Graph:
        """Return y with the graph that leads to it; raises as `forward`."""
        x = self._on_device(x)
        with torch.enable_grad():
            if self.first_layer == 0:
                return Graph(x, self._run(x, place, training=True), place)
            x = x.detach().requires_grad_()
            # A copy, because a layer may work in place, which autograd forbids on x itself.
            return Graph(x, self._run(x.clone(), place, training=True), place)

    def backward(self, graph: Graph, dy: Tensor, *, accumulate: bool, wants_dx: bool = True) -> Tensor | None:
        """Return the gradient of x, None at the first stage or where nobody wants it; `dy` is shaped like y.

        The parameters' gradients have the same bits in either case: what autograd computes for them together with dx
        it computes as if dx were wanted.

        Raises:
            LayerFailed: a layer's backward raised.

        """
        with torch.enable_grad():
            root: Tensor = _Seed.apply(graph.y, dy.to(self.device))  # type: ignore[no-untyped-call]
        return self._backward(graph, root, accumulate=accumulate, wants_dx=wants_dx)

    def backward_loss(
        self, graph: Graph, labels: Tensor, *, accumulate: bool, wants_dx: bool = True
    ) -> tuple[float, Tensor | None]:
        """Return the loss sum and the gradient of x; dx and errors are as of `backward`."""
        with torch.enable_grad():
            loss = self._loss_of(graph.y, labels)
            root = loss * self._scale
        dx = self._backward(graph, root, accumulate=accumulate, wants_dx=wants_dx)
        return float(loss.detach()), dx

    def evaluate(self, x: Tensor, labels: Tensor, place: Place) -> float:
        """Return the loss sum, with dropout off and nothing kept; raises as `forward`."""
        y = self.forward(x, place, training=False)
        with torch.no_grad():
            return float(self._loss_of(y, labels))

    def rest(self) -> Iterator[None]:
        """Take over what the last backward has put off; iterating does it, part by part."""
        return self._deferred.rest()

    def clear_gradients(self) -> None:
        """Begin a step."""
        self._deferred.clear()
        self.parameters.attach_gradients()
        self.parameters.gradients.zero_()

    def _run(self, x: Tensor, place: Place, *, training: bool) -> Tensor:
        self._set_mode(training=training)
        for index, layer in enumerate(self.layers, self.first_layer):
            if training:
                seed_noise(self._seed, place, index, self.device)
            try:
                with self._arithmetic.context():
                    x = layer(x)
            except (Exception, SystemExit) as error:
                raise LayerFailed(layer_name(layer, index), one_line(error)) from error
        return x

    def _set_mode(self, *, training: bool) -> None:
        if training != self._is_training:
            for layer in self.layers:
                layer.train(training)
            self._is_training = training

    def _loss_of(self, y: Tensor, labels: Tensor) -> Tensor:
        if self._loss is None:
            raise LayerFailed("loss", "this stage is not the last one and has no loss")
        try:
            with self._arithmetic.context():
                loss = self._loss(y, self._on_device(labels))
        except (Exception, SystemExit) as error:
            raise LayerFailed("loss", one_line(error)) from error
        if loss.dim() != 0:
            raise LayerFailed("loss", f"returned a tensor of shape {list(loss.shape)} instead of one number")
        return loss

    def _backward(self, graph: Graph, root: Tensor, *, accumulate: bool, wants_dx: bool) -> Tensor | None:
        wants_dx = wants_dx and self.first_layer > 0
        if (accumulate or wants_dx) and root.requires_grad:
            # Layers may work in a backward, too: they run again where activations are checkpointed, or draw noise.
            self._set_mode(training=True)
            seed_noise(self._seed, graph.place, -1 - self.first_layer, self.device)
            try:
                with self._deferred.backward(is_wanted=accumulate), self._adding(accumulate=accumulate):
                    torch.autograd.backward(root)
            except (Exception, SystemExit) as error:
                raise LayerFailed("backward", one_line(error)) from error
        if not wants_dx:
            return None
        dx = graph.x.grad
        return torch.zeros_like(graph.x) if dx is None else dx

    def _adding(self, *, accumulate: bool) -> AbstractContextManager[None]:
        # `torch.autograd.grad` would add nothing either, but layers that checkpoint activations may refuse it.
        return nullcontext() if accumulate else self.parameters.gradients_apart()

    def _on_device(self, tensor: Tensor) -> Tensor:
        # Tokens and labels travel in the fewest bytes; embeddings and losses want int64.
        return tensor.to(self.device, tensor.dtype if tensor.is_floating_point() else torch.int64)


class _Seed(torch.autograd.Function):
    """A number whose gradient with respect to y is dy.

    Handing dy to `torch.autograd.backward` does the same, and first imports a computer algebra system to
    compare the shapes: half a second and 40 MB for each worker.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor) -> Tensor:
        ctx.dy = dy
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:
        del one
        return ctx.dy, None


def seed_noise(seed: int, place: Place, layer: int, device: torch.device) -> None:
    """Seed torch's generators for one layer's work on one microbatch; `device` is this thread's.

    Negative `layer`: the backward of the stage whose first layer is -1 - `layer`.
    """
    text = f"noise {seed} {place.step} {place.microbatch} {layer}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def one_line(error: BaseException) -> str:
    """Describe an exception in one bounded line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 3] + "..."
