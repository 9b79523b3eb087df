from __future__ import annotations

import math
from random import Random

import pytest
import torch

from stages.exact_reference import exact_reference
from stages.reference import reference
from stages.tasks import Apply, Reset, WasReset
from tests.stages.computing import Swarm, key, only
from zswarm.compression import decode_untrusted, encode
from zswarm.errors import RunFailed, UserError
from zswarm.ids import JobKind, JobStatus, Round, Step
from zswarm.trainer.samples import pack

NUM_MICROBATCHES = 6


class Chaos:
    """A swarm in which chance says who does what and when, and whose accumulator is lost in the middle of a step."""

    def __init__(self, config, source, seed, *, workers=2):
        self.swarm = Swarm(config, workers)
        self.config = config
        self._source = source
        self._random = Random(seed)
        self.norms = []
        self.num_redone = 0

    def run(self):
        for step in range(self.config.run.steps):
            self._train(step)
            orders = [self._random.sample(range(len(workers)), len(workers)) for workers in self.swarm.stages]
            self.norms.append(self.swarm.commit(step, orders=orders))
        return self.swarm.state()

    def _train(self, step):
        microbatches = range(self.config.num_microbatches)
        gradients = [None] * len(microbatches)
        inputs = [[pack(*self._source.samples(step, microbatch)) for microbatch in microbatches]]
        for stage in range(self.swarm.num_stages - 1):
            outputs = {}
            for microbatch in self._shuffled(microbatches):
                job = {"x": inputs[stage][microbatch]}
                ran, _ = self.swarm.run(self._worker(stage), JobKind.FORWARD, key(step, microbatch), **job)
                outputs[microbatch] = ran.y
            inputs.append([outputs[microbatch] for microbatch in microbatches])
        for stage in reversed(range(self.swarm.num_stages)):
            gradients = self._backwards(stage, step, inputs[stage], gradients)

    def _backwards(self, stage, step, inputs, gradients):
        """Count every microbatch at a stage; half way, one worker forgets all and what it had is done by another."""
        kind = JobKind.BACKWARD if stage < self.swarm.num_stages - 1 else JobKind.FUSED
        counted = {}
        found = [None] * len(inputs)

        def do(microbatch, worker, **how):
            job = {"x": inputs[microbatch], "dy": gradients[microbatch]}
            ran, dx = self.swarm.run(self.swarm.stages[stage][worker], kind, key(step, microbatch), **job, **how)
            assert ran.status is JobStatus.DONE
            return dx

        for number, microbatch in enumerate(self._shuffled(range(len(inputs)))):
            counted[microbatch] = self._random.randrange(len(self.swarm.stages[stage]))
            found[microbatch] = do(microbatch, counted[microbatch])
            # What somebody else has counted is done for dx alone in between: it must leave no trace.
            assert self._same(do(microbatch, self._random.randrange(2), accumulate=False), found[microbatch])
            if number == len(inputs) // 2:
                lost = counted[microbatch]
                assert only(self.swarm.stages[stage][lost].perform(Reset())) == WasReset()
                for again in self._shuffled(other for other, worker in counted.items() if worker == lost):
                    counted[again] = 1 - lost
                    assert do(again, 1 - lost, emit=False) is None
                    self.num_redone += 1
        return found

    def _same(self, first, second):
        return (first and bytes(first.frames[0])) == (second and bytes(second.frames[0]))

    def _worker(self, stage):
        return self._random.choice(self.swarm.stages[stage])

    def _shuffled(self, items):
        items = list(items)
        self._random.shuffle(items)
        return items


def config_of(make_config, accumulation="exact", **sections):
    sections["batch"] = {"global_batch": 2 * NUM_MICROBATCHES, "accumulation": accumulation}
    sections["pipeline"] = {"stages": 2} | sections.get("pipeline", {})
    return make_config(**sections)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.5, "grad_clip": 0.3},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "grad_clip": 0.3},
}


@pytest.mark.parametrize("recompute", ["always", "never"])
@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_swarm_in_chaos_ends_with_the_bits_of_the_reference(make_config, make_source, optimizer, codec, recompute):
    """Random workers in random order, one accumulator lost per step and stage: not a bit differs after 3 steps."""
    config = config_of(
        make_config,
        optimizer=OPTIMIZERS[optimizer],
        wire={"codec": codec},
        pipeline={"stages": 2, "recompute": recompute},
    )
    source = make_source(config)
    steps = []
    # The reference keeps as it likes: that must not matter.
    expected = exact_reference(
        config_of(make_config, optimizer=OPTIMIZERS[optimizer], wire={"codec": codec}), source, steps.append
    )
    for seed in range(2):
        chaos = Chaos(config, source, seed)
        assert_equal(chaos.run(), expected.state)
        assert chaos.norms == [step.gradient_norm for step in steps]
        assert chaos.num_redone >= 2 * config.run.steps
        assert min(chaos.norms) > config.optimizer.grad_clip


@pytest.mark.parametrize("model", ["dropping", "odd"])
def test_own_models_in_three_stages_do_as_well(make_config, make_source, model):
    """Dropout, convolutions, parameters that are used twice, frozen and unused ones, a stage in the middle."""
    config = config_of(
        make_config,
        model={"factory": f"own_models:{model}", "sequence_length": 12},
        optimizer=OPTIMIZERS["adamw"],
        pipeline={"stages": 3, "recompute": "never"},
    )
    source = make_source(config)
    expected = exact_reference(config, source, lambda _: None)
    assert_equal(Chaos(config, source, 5).run(), expected.state)


def test_floats_do_differ(make_config, make_source):
    """The same chaos without `exact` does not end with equal bits: the tests above are about something."""
    config = config_of(make_config, "float32", optimizer=OPTIMIZERS["sgd"])
    source = make_source(config)
    first, second = (Chaos(config, source, seed).run() for seed in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stages", [1, 2])
def test_it_trains_as_a_plain_loop_does(make_config, make_source, stages):
    """Losses, norms, held-out loss and parameters are those of the plain loop, but for rounding."""
    config = config_of(make_config, optimizer=OPTIMIZERS["sgd"], pipeline={"stages": stages})
    source = make_source(config)
    steps, plain_steps = [], []
    found = exact_reference(config, source, steps.append)
    plain = reference(config, source, plain_steps.append)
    assert found.loss == pytest.approx(plain.loss, rel=1e-5)
    assert found.loss == [step.loss for step in steps]
    for name in ("step", "lr", "gradient_norm"):
        assert [getattr(step, name) for step in steps] == pytest.approx(
            [getattr(s, name) for s in plain_steps], rel=1e-5
        )
    assert found.held_out_loss_before == pytest.approx(plain.held_out_loss_before, rel=1e-5)
    assert found.held_out_loss == pytest.approx(plain.held_out_loss, rel=1e-5)
    assert found.state.keys() == plain.state.keys()
    assert all(torch.allclose(found.state[name], plain.state[name], atol=1e-5) for name in plain.state)


@pytest.mark.parametrize("spoil", [math.nan, 1e30])
def test_a_swarm_skips_what_is_not_finite_or_too_large(make_config, make_source, spoil):
    """One microbatch that no fixed point can hold, at one worker: nobody's result is finite; the next step is clean."""
    config = config_of(make_config)
    swarm = Swarm(config, 2)
    source = make_source(config)
    swarm.train(0, 0, source.samples(0, 0))
    x = pack(*source.samples(0, 1))
    ran, _ = swarm.run(swarm.worker(0, 1), JobKind.FORWARD, key(0, 1), x=x)
    dy = torch.ones_like(decode_untrusted(ran.y)[0])
    dy[0, 0, 0] = spoil
    swarm.run(swarm.worker(0, 1), JobKind.BACKWARD, key(0, 1), dy=encode([dy], "none"))
    first, last = (swarm.reduce(workers, Round(1), range(2)) for workers in swarm.stages)
    assert (first.finite, first.square_norm) == (False, 0.0)
    assert last.finite
    for worker in (worker for workers in swarm.stages for worker in workers):
        only(worker.perform(Apply(step=Step(0), round=Round(1), scale=1.0, lr=0.1, apply=False, snapshot=False)))
    swarm.train(1, 0, source.samples(1, 0))
    assert all(swarm.reduce(workers, Round(2), range(2)).finite for workers in swarm.stages)


def test_the_reference_skips_such_a_step(make_config, make_source):
    """No stage takes the optimizer step; the norm is NaN, as a swarm's record says nil."""
    config = config_of(make_config, model={"factory": "own_models:exploding", "sequence_length": 12})
    steps = []
    found = exact_reference(config, make_source(config), steps.append)
    assert all(math.isnan(step.gradient_norm) and math.isnan(step.loss) for step in steps)
    start = reference(config, make_source(config), lambda _: None)
    assert_equal(found.state, start.state)


def test_evaluations_leave_no_trace(make_config, make_source):
    """A swarm that evaluates in between ends with the same bits, and its held-out loss is the reference's."""
    config = config_of(make_config, model={"factory": "own_models:dropping", "sequence_length": 12})
    source = make_source(config)
    expected = exact_reference(config, source, lambda _: None)
    swarm = Swarm(config, 2)
    for step in range(config.run.steps):
        for microbatch in range(config.num_microbatches):
            swarm.train(step, microbatch, source.samples(step, microbatch))
            swarm.evaluate(source.held_out(microbatch), microbatch)
        swarm.commit(step)
    assert_equal(swarm.state(), expected.state)
    held_out = [swarm.evaluate(source.held_out(microbatch), microbatch) for microbatch in range(2)]
    assert sum(held_out) / 2 == pytest.approx(expected.held_out_loss, rel=1e-12)


def test_what_is_wrong_with_a_model_is_said(make_config, make_source):
    """A model that does not chain is the user's to mend; a layer that raises is named."""
    config = config_of(make_config, model={"factory": "own_models:unchained", "sequence_length": 12})
    with pytest.raises(UserError, match="does not take what"):
        exact_reference(config, make_source(config), lambda _: None)
    model = {"factory": "own_models:raising", "sequence_length": 12, "where": "backward"}
    config = config_of(make_config, model=model)
    with pytest.raises(RunFailed, match="backward raised ValueError: the sky is falling backwards"):
        exact_reference(config, make_source(config), lambda _: None)
