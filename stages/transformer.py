"""A byte-level GPT as a list of layers: embedding, pre-norm blocks, head.

Shapes: B sequences, T tokens of a sequence, D model width, V vocabulary, H heads of width K.
Initialised like GPT-2: weights N(0, 0.02), the projections that end on the residual stream divided by
sqrt(2 * num_layers), biases zero, norms one.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.model import Model
from zswarm.errors import UserError

INIT_STD = 0.02
MLP_RATIO = 4


class Embedding(nn.Module):
    """Token and position embedding: integer tokens [B, T] to [B, T, D]."""

    def __init__(self, vocab_size: int, sequence_length: int, d_model: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(sequence_length, d_model)
        nn.init.normal_(self.token.weight, std=INIT_STD)
        nn.init.normal_(self.position.weight, std=INIT_STD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Embed; T is at most `sequence_length`."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        embedded: Tensor = self.token(tokens_BT) + self.position(positions_T)
        return embedded


class Attention(nn.Module):
    """Causal multi-head self-attention, [B, T, D] to [B, T, D]."""

    def __init__(self, d_model: int, num_heads: int, residual_std: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        init_linear(self.qkv, INIT_STD)
        init_linear(self.out, residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Let each token look at itself and the ones before it."""
        # Split along the features: the backward then puts the three gradients together with one copy.
        q_BHTK, k_BHTK, v_BHTK = (
            part_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BTD in self.qkv(x_BTD).split(x_BTD.shape[-1], -1)
        )
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        projected: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block: attention and a GELU MLP, each added to the residual stream."""

    def __init__(self, d_model: int, num_heads: int, residual_std: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, num_heads, residual_std)
        self.mlp_norm = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, MLP_RATIO * d_model)
        self.down = nn.Linear(MLP_RATIO * d_model, d_model)
        init_linear(self.up, INIT_STD)
        init_linear(self.down, residual_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform [B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        out_BTD: Tensor = x_BTD + self.down(functional.gelu(self.up(self.mlp_norm(x_BTD))))
        return out_BTD


class Head(nn.Module):
    """Final norm and projection to logits, [B, T, D] to [B, T, V]."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.out = nn.Linear(d_model, vocab_size)
        init_linear(self.out, INIT_STD)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Score each token of the vocabulary as the next one."""
        logits_BTV: Tensor = self.out(self.norm(x_BTD))
        return logits_BTV


def init_linear(linear: nn.Linear, std: float) -> None:
    """Draw the weight from N(0, std), set the bias to zero."""
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)


def gpt(*, d_model: int, num_layers: int, num_heads: int, sequence_length: int, vocab_size: int = 256) -> Model:
    """Return a GPT of 1 embedding, `num_layers` blocks and 1 head: num_layers + 2 layers.

    Raises:
        UserError: an argument is no whole number above 0, or `num_heads` does not divide `d_model`.

    """
    arguments = {
        "d_model": d_model,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "sequence_length": sequence_length,
        "vocab_size": vocab_size,
    }
    for name, number in arguments.items():
        if type(number) is not int or number < 1:
            raise UserError(f"model.{name} must not be {number!r}: write a whole number above 0")
    if d_model % num_heads:
        divisors = [heads for heads in range(1, d_model + 1) if d_model % heads == 0]
        nearest = min(divisors, key=lambda heads: abs(heads - num_heads))
        raise UserError(
            f"model.num_heads = {num_heads} does not divide model.d_model = {d_model}: write num_heads = {nearest}"
        )
    block = partial(Block, d_model, num_heads, INIT_STD / math.sqrt(2 * num_layers))
    return Model(
        layers=(
            partial(Embedding, vocab_size, sequence_length, d_model),
            *(block for _ in range(num_layers)),
            partial(Head, d_model, vocab_size),
        )
    )
