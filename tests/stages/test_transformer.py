from __future__ import annotations

import math

import pytest
import torch

from stages.model import build_layer, load_model
from stages.transformer import INIT_STD

ARGUMENTS = {"d_model": 64, "num_layers": 3, "num_heads": 4, "sequence_length": 16}


@pytest.fixture
def layers():
    model = load_model("gpt", ARGUMENTS)
    return [build_layer(model, index, 0) for index in range(len(model.layers))]


def scores(layers, tokens):
    x = tokens
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
    return x


def test_it_scores_every_byte_after_every_byte(layers):
    """Tokens [B, T] become scores [B, T, 256], also for sequences shorter than the longest."""
    assert scores(layers, torch.zeros(2, 16, dtype=torch.int64)).shape == (2, 16, 256)
    assert scores(layers, torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 256)


def test_no_token_sees_a_later_one(layers):
    """Changing a token changes the scores at its place and after it, none before."""
    tokens = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    difference = (scores(layers, tokens) - scores(layers, changed)).abs().amax(-1)[0]
    assert difference[:9].max() == 0
    assert (difference[9:] > 0).all()


def test_places_differ(layers):
    """The same token at another place has other scores."""
    found = scores(layers, torch.full((1, 16), 65))[0]
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_first_parameters_are_those_of_gpt2(layers):
    """Residual projections are scaled down by the root of twice the depth; the first loss is that of guessing."""
    block = layers[1]
    assert block.up.weight.std().item() == pytest.approx(INIT_STD, rel=0.05)
    for linear in (block.down, block.attention.out):
        assert linear.weight.std().item() == pytest.approx(INIT_STD / math.sqrt(6), rel=0.05)
        assert linear.bias.abs().max() == 0
    tokens = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(1))
    loss = load_model("gpt", ARGUMENTS).loss(scores(layers, tokens), tokens) / tokens.numel()
    assert loss.item() == pytest.approx(math.log(256), rel=0.02)
