from __future__ import annotations

import itertools
import math

import pytest

from zswarm.clipping import clip_scale


@pytest.mark.parametrize(
    ("square_norms", "grad_clip", "scale", "norm"),
    [
        ([9.0, 16.0], 0.0, 1.0, 5.0),
        ([9.0, 16.0], 10.0, 1.0, 5.0),
        ([9.0, 16.0], 1.0, 1.0 / (5.0 + 1e-6), 5.0),
        ([0.0], 1.0, 1.0, 0.0),
    ],
)
def test_a_gradient_is_scaled_down_to_the_largest_norm(square_norms, grad_clip, scale, norm):
    """Shorter ones, and all of them where 0 says so, stay as they are."""
    assert clip_scale(square_norms, grad_clip) == (scale, norm)


def test_the_order_of_stages_changes_no_bit():
    """Whoever sums what the stages say comes to the same scale."""
    square_norms = [0.1, 1e16, 0.3, -0.0, 1e-9]
    assert len({clip_scale(order, 1.0) for order in itertools.permutations(square_norms)}) == 1
    assert len({math.sqrt(sum(order)) for order in itertools.permutations([0.1, 0.2, 0.3, 1e16, 1.0])}) > 1
