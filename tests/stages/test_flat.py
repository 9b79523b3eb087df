from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stages.flat import ALIGNMENT, FlatParameters, digest, square_norm
from zswarm import limits
from zswarm.errors import UserError

CPU = torch.device("cpu")


def make_layers():
    torch.manual_seed(0)
    return [nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 40)]


def test_parameters_keep_their_values_and_live_in_one_buffer():
    """Moving into the buffer changes no value; writing to the buffer changes the parameters."""
    layers, twins = make_layers(), make_layers()
    flat = FlatParameters(layers, 0, CPU)
    for layer, twin in zip(layers, twins, strict=True):
        for mine, its in zip(layer.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine, its)
            assert mine.data_ptr() % (4 * ALIGNMENT) == flat.values.data_ptr() % (4 * ALIGNMENT)
    assert flat.num_parameters == 18 + 6 + 160
    flat.values.fill_(2.0)
    assert all((parameter == 2.0).all() for layer in layers for parameter in layer.parameters())


def test_autograd_adds_into_the_buffer():
    """Two backwards add up in `gradients`, and the gaps between parameters stay zero."""
    layers = make_layers()
    flat = FlatParameters(layers, 0, CPU)
    for _ in range(2):
        nn.Sequential(*layers)(torch.ones(2, 5)).sum().backward()
    total = sum(parameter.grad.sum() for layer in layers for parameter in layer.parameters())
    assert torch.allclose(flat.gradients.sum(), total, rtol=1e-4)
    assert torch.allclose(layers[2].bias.grad, torch.full((40,), 4.0))
    assert flat.gradients.count_nonzero() <= flat.num_parameters


def test_gradients_that_were_put_elsewhere_are_taken_back():
    """A layer that clears or replaces its gradients does not lose the buffer."""
    layers = make_layers()
    flat = FlatParameters(layers, 0, CPU)
    layers[0].bias.grad = torch.full((3,), 7.0)
    layers[1].bias.grad = None
    flat.attach_gradients()
    layers[0].bias.grad.add_(1.0)
    layers[1].bias.grad.add_(1.0)
    assert flat.gradients.sum() == 3 * 8.0 + 3 * 1.0


def test_a_small_stage_fills_every_shard():
    """Even with one parameter, or none, an all-reduce among the most participants has something for each."""
    for layers in ([nn.Linear(1, 1)], [nn.ReLU()]):
        assert len(FlatParameters(layers, 0, CPU).values) >= limits.MAX_PARTICIPANTS


def test_layers_cannot_share_parameters():
    """Sharing within a layer is fine; between layers it is refused, since stages are separate processes."""
    layer = nn.Linear(2, 2)
    pair = nn.ModuleList([layer, layer])
    assert FlatParameters([pair], 0, CPU).num_parameters == 6
    with pytest.raises(UserError, match=r"layer 4 \(Linear\), parameter weight is also layer 3"):
        FlatParameters([pair, layer], 3, CPU)


@pytest.mark.parametrize("size", [256, 257, 1000, 4096, 100_000, 100_001])
def test_every_changed_value_changes_the_digest(size):
    """Equal bits give equal digests; the change of any one value, or the swap of two, gives another one."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected = digest(values)
    assert digest(values.clone()) == expected
    assert 0 <= expected < 2**64
    for index in (0, 1, size // 2, size - 2, size - 1):
        changed = values.clone()
        changed[index] = torch.nextafter(changed[index], torch.tensor(9.0))
        assert digest(changed) != expected
    swapped = values.clone()
    swapped[[0, size - 1]] = swapped[[size - 1, 0]]
    assert digest(swapped) != expected
    nan = values.clone()
    nan[3] = torch.nan
    assert digest(nan) == digest(nan.clone())


@pytest.mark.parametrize("size", [256, 1000, 4096, 100_001])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e35])
def test_the_square_norm_is_the_sum_of_squares(size, scale):
    """Also where the squares of the values are beyond float32."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(0)) * scale
    expected = float(values.double().square().sum())
    assert square_norm(values) == pytest.approx(expected, rel=1e-5, abs=1e-40)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("index", [0, 1023, 1024, 2999])
def test_the_square_norm_tells_what_is_not_finite(poison, index):
    """One value that is not finite, anywhere, is enough."""
    values = torch.ones(3000)
    values[index] = poison
    assert not math.isfinite(square_norm(values))
