from __future__ import annotations

import pytest

from zswarm.config import OptimizerSection
from zswarm.schedule import learning_rate


def rates(steps, **section):
    optimizer = OptimizerSection.model_validate({"lr": 2.0} | section)
    return [learning_rate(optimizer, step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, [2.0] * 4),
        ({"warmup_steps": 2}, [1.0, 2.0, 2.0, 2.0]),
        ({"schedule": "linear"}, [2.0, 1.5, 1.0, 0.5]),
        ({"schedule": "linear", "warmup_steps": 2}, [1.0, 2.0, 2.0, 1.0]),
        ({"schedule": "cosine"}, [2.0, 1.7071067, 1.0, 0.2928932]),
        ({"schedule": "cosine", "warmup_steps": 4}, [0.5, 1.0, 1.5, 2.0]),
        ({"schedule": "linear", "warmup_steps": 3}, [2 / 3, 4 / 3, 2.0, 2.0]),
    ],
    ids=str,
)
def test_rates_of_four_steps(section, expected):
    """Each schedule, with and without warmup, drawn out."""
    assert rates(4, **section) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_end_it_is_zero(schedule):
    """A schedule that falls ends at zero and never goes below."""
    optimizer = OptimizerSection.model_validate({"lr": 2.0, "schedule": schedule})
    assert learning_rate(optimizer, 4, 4) == pytest.approx(0.0)
    assert learning_rate(optimizer, 9, 4) == pytest.approx(0.0)
