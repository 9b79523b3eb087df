"""Models as users write them, right and wrong."""

from __future__ import annotations

import random
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.model import Model

WIDTH = 8


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)

    def forward(self, tokens):
        return self.embedding(tokens)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.linear(x).relu())


class Odd(nn.Module):
    """Layers that are not linear, a parameter used twice, one frozen, one never used, one shared within."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        x = self.second(self.first(x).tanh()) * self.scale + self.scale
        x = self.frozen(x) + functional.linear(x, self.first.weight)
        return self.normed(self.conv(x.transpose(1, 2)).transpose(1, 2))


class Raising(nn.Module):
    def __init__(self, where: str):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.where = where

    def forward(self, x):
        if x.shape[0] == 1 and self.where == "forward":
            raise ValueError("the sky\nis falling")
        if x.shape[0] == 1 and self.where == "exit":
            sys.exit(3)
        y = self.linear(x)
        if self.where == "backward" and y.requires_grad:
            y.register_hook(self._fall)
        return y

    def _fall(self, gradient):
        raise ValueError("the sky is falling backwards")


class Checkpointed(nn.Module):
    """Dropout that runs again in the backward, and a convolution, which is not deferred."""

    def __init__(self, is_reentrant):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)
        self.drop = nn.Dropout(0.5)
        self.is_reentrant = is_reentrant

    def forward(self, x):
        if not torch.is_grad_enabled():
            return x + self._dropped(x)
        return x + checkpoint(self._dropped, x, use_reentrant=self.is_reentrant)

    def _dropped(self, x):
        return self.drop(self.conv(self.linear(x).transpose(1, 2)).transpose(1, 2).tanh())


class Descending(nn.Module):
    """A step down an energy, whose gradient it takes itself."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(z).square().sum(), z)
        return self.out(x - 0.1 * gradient)


class Noisy(nn.Module):
    """Noise on the gradient."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.linear(x)
        if y.requires_grad:
            y.register_hook(lambda g: g + torch.randn_like(g))
        return y


class Overwriting(nn.Module):
    """What autograd forbids: the result of a sigmoid is needed for its gradient."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.sigmoid(self.linear(x)).mul_(3.0)


class Remembering(nn.Module):
    """Keeps what it has seen, in each place that there is; `common` is another layer's, too."""

    def __init__(self, common):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(WIDTH))
        self.mean = nn.Parameter(torch.ones(WIDTH), requires_grad=False)
        self.made, self.num_seen, self.common = None, 0, common

    def forward(self, x):
        self.seen += x.detach().mean((0, 1))
        self.mean.data.mul_(0.5)
        self.made = self.made or nn.Identity()
        self.num_seen += 1
        self.common.append(x.shape)
        return self.linear(x)


class Initialising(nn.Module):
    """Sets its scale by the first numbers that it sees, as normalising flows do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.is_set = False

    def forward(self, x):
        if not self.is_set:
            self.scale.data.copy_(1.0 / (1.0 + x.detach().std()))
            self.is_set = True
        return x * self.scale


def head():
    return nn.Linear(WIDTH, 256)


def initialising(sequence_length):
    return [Tokens, Initialising, head]


def remembering(sequence_length):
    common = []
    return [Tokens, *[lambda: Remembering(common)] * 2, head]


def checkpointed(sequence_length, is_reentrant):
    return [Tokens, lambda: Checkpointed(is_reentrant), head]


def descending(sequence_length):
    return [Tokens, Descending, head]


def noisy(sequence_length):
    return [Tokens, Noisy, head]


def overwriting(sequence_length):
    return [Tokens, Overwriting, head]


def dropping(sequence_length):
    return [Tokens, Dropping, Dropping, head]


def odd(sequence_length):
    return [Tokens, Odd, Odd, head]


def in_place(sequence_length):
    return [Tokens, lambda: nn.ReLU(inplace=True), nn.Identity, head]


def raising(sequence_length, where):
    return [Tokens, lambda: Raising(where), head]


def unchained(sequence_length):
    return [Tokens, lambda: nn.Linear(WIDTH, WIDTH), lambda: nn.Linear(WIDTH + 1, 256)]


def regression(sequence_length):
    """A model with a loss of its own: the squared distance from a number to the label."""

    def loss(output, labels):
        return (output.squeeze(-1) - labels / 256).square().sum()

    return Model(layers=[Tokens, lambda: nn.Linear(WIDTH, 1)], loss=loss)


def mean_loss(sequence_length):
    return Model(layers=[Tokens, head], loss=lambda output, labels: output.mean(-1))


def bad_loss(sequence_length):
    return Model(layers=[Tokens, head], loss=lambda output, labels: output.nothing())


def sharing(sequence_length):
    layer = nn.Linear(WIDTH, WIDTH)
    return [Tokens, lambda: layer, lambda: layer, head]


class Tied(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight


def tied(sequence_length):
    weight = nn.Parameter(torch.ones(WIDTH, WIDTH))
    return [Tokens, lambda: Tied(weight), lambda: Tied(weight), head]


def half(sequence_length):
    return [lambda: nn.Embedding(256, WIDTH, dtype=torch.bfloat16)]


def batch_norm(sequence_length):
    return [Tokens, lambda: nn.BatchNorm1d(sequence_length), head]


def instance_norm(sequence_length):
    return [Tokens, lambda: nn.InstanceNorm1d(sequence_length, track_running_stats=True), head]


class Drawn(nn.Module):
    """A projection by numbers of other generators than torch's."""

    def __init__(self):
        super().__init__()
        projection = np.random.randn(WIDTH, WIDTH) + random.random()  # noqa: NPY002 - what users do
        self.register_buffer("projection", torch.from_numpy(projection).float())

    def forward(self, x):
        return x @ self.projection


def drawn(sequence_length):
    return [Tokens, Drawn, head]


class Stateful(nn.Linear):
    """Has a number beside its tensors."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)

    def get_extra_state(self):
        return {"scale": 1.0}


def extra_state(sequence_length):
    return [Tokens, Stateful, head]


def lazy(sequence_length):
    return [Tokens, lambda: nn.LazyLinear(WIDTH), head]


class Growing(nn.Linear):
    """Its mask is registered when the shape is known."""

    def __init__(self, mask):
        super().__init__(WIDTH, WIDTH)
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.mask = torch.ones(x.shape[1], 1)
        return super().forward(x) * self.mask


def growing(sequence_length):
    return [Tokens, lambda: Growing(None), head]


def resizing(sequence_length):
    return [Tokens, lambda: Growing(torch.ones(0)), head]


def compiled(sequence_length):
    """Compiled by somebody who has no time for it now."""

    def compile_it(graph, inputs):
        raise RuntimeError("compiled")

    return [Tokens, lambda: torch.compile(nn.Linear(WIDTH, WIDTH), backend=compile_it), head]


def pair(sequence_length):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    return [Tokens, Pair]


def integers(sequence_length):
    class Integers(nn.Module):
        def forward(self, x):
            return x.long()

    return [Tokens, Integers]


def deep(sequence_length):
    class Deep(nn.Module):
        def forward(self, x):
            return x[None, None]

    return [Tokens, Deep]


def modules(sequence_length):
    return [Tokens()]


def no_module(sequence_length):
    return [Tokens, lambda: "no module"]


def failing_layer(sequence_length):
    return [Tokens, lambda: nn.Linear(-3, 4)]


def nothing(sequence_length):
    return []


def number(sequence_length):
    return 3


def falling(sequence_length):
    raise KeyError("width")


def wide(sequence_length, width):
    return [lambda: nn.Embedding(256, width), lambda: nn.Linear(width, 256)]


text = "no function"


def exploding(sequence_length):
    return Model(layers=[Tokens, head], loss=lambda output, labels: output.sum() * torch.nan)


def few_tokens(sequence_length):
    """Nothing for the last bytes."""
    return [lambda: nn.Embedding(200, 8), lambda: nn.Linear(8, 256)]


def few_logits(sequence_length):
    """No logits for the last bytes."""
    return [lambda: nn.Embedding(256, 8), lambda: nn.Linear(8, 200)]


def leaving(sequence_length):
    """As a factory that reads command-line options does."""
    sys.exit(3)
