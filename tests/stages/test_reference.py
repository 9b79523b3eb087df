from __future__ import annotations

import math

import pytest
import torch

from stages.reference import reference
from zswarm.errors import UserError


def test_training_is_reproducible_and_learns(make_config, make_source):
    """The same configuration gives the same numbers; the loss falls; every step is reported."""
    config = make_config(run={"steps": 12}, optimizer={"name": "adamw", "lr": 0.02})
    steps = []
    result = reference(config, make_source(config), steps.append)
    again = reference(config, make_source(config), lambda _: None)
    assert result.loss == again.loss == [step.loss for step in steps]
    assert [step.step for step in steps] == list(range(12))
    assert result.held_out_loss_before == pytest.approx(math.log(256), rel=0.02)
    assert result.held_out_loss < result.held_out_loss_before - 1
    assert result.loss[-1] < result.loss[0] - 1
    assert all(torch.equal(result.state[name], again.state[name]) for name in result.state)
    assert min(result.state) == "layers.0.position.weight"


def test_one_step_is_what_the_formula_says(make_config, make_source):
    """SGD: the parameters move by the learning rate times the gradient of the mean loss, clipped to its norm."""
    config = make_config(run={"steps": 1}, optimizer={"lr": 0.5, "grad_clip": 0.01})
    found = []
    moved = reference(config, make_source(config), found.append).state
    resting = make_config(run={"steps": 1}, optimizer={"lr": 1e-30, "grad_clip": 0.01})
    start = reference(resting, make_source(resting), lambda _: None).state
    distance = math.sqrt(sum(float((moved[name] - start[name]).square().sum()) for name in moved))
    assert found[0].gradient_norm > 0.01
    assert distance == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_microbatch_does_not_matter(make_config, make_source):
    """A step cut into more microbatches is the same step: the denominator is fixed."""

    class Same:
        def __init__(self, config):
            self._source = make_source(make_config())
            self._size = config.batch.microbatch

        def samples(self, step, microbatch):
            first = microbatch * self._size
            tokens, labels = self._source.samples(step, first // 2)
            return tokens[first % 2 :][: self._size], labels[first % 2 :][: self._size]

        def held_out(self, microbatch):
            return self._source.held_out(microbatch)

    config = make_config()
    halves = make_config(batch={"microbatch": 1})
    whole = reference(config, Same(config), lambda _: None)
    parts = reference(halves, Same(halves), lambda _: None)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert all(torch.allclose(parts.state[name], whole.state[name], atol=1e-6) for name in whole.state)


def test_the_rate_follows_the_schedule(make_config, make_source):
    """Each step has the learning rate of its schedule."""
    config = make_config(run={"steps": 4}, optimizer={"lr": 0.1, "schedule": "linear", "warmup_steps": 2})
    steps = []
    reference(config, make_source(config), steps.append)
    assert [step.lr for step in steps] == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_a_gradient_that_is_not_finite_changes_nothing(make_config, make_source):
    """A step whose gradient is not finite is skipped, as a swarm skips it."""
    config = make_config(model={"factory": "own_models:exploding", "sequence_length": 12}, run={"steps": 2})
    result = reference(config, make_source(config), lambda _: None)
    assert all(math.isnan(loss) for loss in result.loss)
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())


def test_a_model_that_does_not_chain_is_refused(make_config, make_source):
    """The reference checks the model as a swarm does."""
    config = make_config(model={"factory": "own_models:unchained", "sequence_length": 12})
    with pytest.raises(UserError, match="does not take what"):
        reference(config, make_source(config), lambda _: None)
