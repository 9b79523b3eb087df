"""What has to hold on a card as on the processor, and between the two. On a machine without a card half of it is skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.exact_reference import exact_reference
from stages.optimizer import TORCH_OPERATIONS, FlatOptimizer
from stages.precision import Arithmetic
from stages.reference import reference
from stages.tasks import Build, Built, Unfit
from tests.stages.computing import Swarm, built, commissioned, is_untouched, only
from zswarm.compression import CPU, decode_untrusted, encode
from zswarm.config import OptimizerSection
from zswarm.ids import Stage

CARD = pytest.param(
    "cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no card on this machine")
)
DEVICES = ["cpu", CARD]
ADAMW = {"name": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.1}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}


def random_tensors(count, size, seed=0):
    """Of magnitudes from 1e-20 to 1e3, as squares of gradients may have."""
    generator = torch.Generator().manual_seed(seed)
    exponents = (torch.rand(size, generator=generator) * 23 - 20 for _ in range(count))
    return [torch.randn(size, generator=generator) * 10**exponent for exponent in exponents]


@pytest.mark.parametrize("device", [CARD])
@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_an_optimizer_step_has_the_bits_of_the_processor(settings, device):
    assert_same_bits(settings, torch.device(device))


@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_torchs_operations_have_the_bits_of_numpys(monkeypatch, settings):
    """As far as that can be seen without a card: all but the root, which torch does not round right on a processor."""

    def root(tensor, *, out):
        return out.copy_(torch.from_numpy(np.sqrt(tensor.numpy())))

    original = FlatOptimizer.__init__

    def init(self, *arguments):
        original(self, *arguments)
        if len(made) == 1:
            self._is_on_host, self._operations = False, (*TORCH_OPERATIONS[:-1], root)
        made.append(self)

    made = []
    monkeypatch.setattr(FlatOptimizer, "__init__", init)
    assert_same_bits(settings, CPU)
    assert [optimizer._is_on_host for optimizer in made] == [True, False]


def assert_same_bits(settings, device):
    size = 100_000
    first, *gradients = random_tensors(5, size)
    section = OptimizerSection.model_validate(settings)
    here, there = first.clone(), first.to(device, copy=True)
    optimizers = [FlatOptimizer(section, values, [slice(0, size)]) for values in (here, there)]
    for gradient, lr in zip(gradients, (1e-3, 1e-2, 3e-4, 1e-3), strict=True):
        for optimizer, on in zip(optimizers, (CPU, device), strict=True):
            optimizer.step(gradient.to(on, copy=True), lr=lr, scale=0.37)
    assert torch.equal(here, there.cpu())
    for name, tensor in optimizers[0].state.items():
        assert torch.equal(tensor, optimizers[1].state[name].cpu()), name


@pytest.mark.parametrize("device", [CARD])
@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "bnb8"])
def test_what_a_device_encodes_any_other_decodes(codec, device):
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(2, 50, 128, generator=generator), torch.arange(100).reshape(2, 50).to(torch.uint8)
    here, there = (encode([values.to(on), labels.to(on)], codec) for on in (CPU, device))
    if codec != "bnb8":
        assert b"".join(map(bytes, here.frames)) == b"".join(map(bytes, there.frames))
    expected, expected_labels = decode_untrusted(here)
    for load, on in ((here, torch.device(device)), (there, CPU)):
        found, found_labels = decode_untrusted(load, on)
        assert found.device.type == on.type
        assert torch.equal(found_labels.cpu(), expected_labels)
        assert float((found.cpu() - expected).abs().max()) < (0.1 if codec == "bnb8" else 1e-6), "a step of the map"


def train(config, source, **swarm):
    """Train with a swarm; return it and its losses."""
    swarm, losses = Swarm(config, **swarm), []
    for step in range(config.run.steps):
        sums = [swarm.train(step, index, source.samples(step, index)) for index in range(config.num_microbatches)]
        losses.append(sum(loss for loss, _ in sums) / sum(count for _, count in sums))
        swarm.commit(step, snapshot=step == 0)
    return swarm, losses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_swarm_trains_as_one_process_does(make_config, make_source, precision, device):
    sections = {
        "pipeline": {"stages": 2, "precision": precision, "recompute": "never"},
        "optimizer": {"grad_clip": 0.0},
    }
    config = make_config(**sections)
    source = make_source(config)
    _, losses = train(config, source, workers=2, devices=(device,))
    expected = reference(config, source, lambda _: None, torch.device(device))
    assert losses == pytest.approx(expected.loss, rel=1e-4 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("device", [CARD])
def test_workers_of_one_stage_may_have_devices_of_different_kinds(make_config, make_source, device):
    """After each commit they hold the same parameters to the bit, which `Swarm.commit` sees to."""
    sections = {"optimizer": {"name": "adamw", "lr": 1e-3}, "wire": {"codec": "int8"}}
    config = make_config(run={"steps": 5}, pipeline={"stages": 2}, **sections)
    source = make_source(config)
    swarm, losses = train(config, source, workers=2, devices=("cpu", device))
    assert losses[-1] < losses[0]
    assert len(swarm.digests) == 2


@pytest.mark.parametrize("device", DEVICES)
def test_exact_runs_end_with_the_same_bits_whoever_computed_what(make_config, make_source, device):
    config = make_config(batch={"accumulation": "exact"}, pipeline={"stages": 2})
    source = make_source(config)
    swarm, _ = train(config, source, workers=2, devices=(device,))
    expected = exact_reference(config, source, lambda _: None, torch.device(device)).state
    found = swarm.state()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_that_of_the_microbatch_wherever_it_is_computed(make_config, make_source, device):
    """Dropout on a card is another draw than on the processor, and the same each time."""
    config = make_config(model={"factory": "own_models:dropping", "sequence_length": 12}, pipeline={"stages": 1})
    source = make_source(config)
    first, again = (train(config, source, workers=workers, devices=(device,))[1] for workers in (1, 2))
    assert first == pytest.approx(again, rel=1e-6)


@pytest.mark.parametrize("device", [CARD])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_float32_is_float32(precision, device):
    """CuDNN has a switch of its own for convolutions and recurrent layers, which is on unless told otherwise."""
    Arithmetic(torch.device(device), precision).set_up(is_exact=False)
    is_tf32 = precision == "tf32"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (is_tf32, is_tf32)


@pytest.mark.parametrize("device", [CARD])
@pytest.mark.parametrize("codec", ["int8", "bnb8"])
@pytest.mark.parametrize(
    ("precision", "accumulation"), [("float32", "exact"), ("tf32", "float32"), ("bfloat16", "float32")]
)
def test_a_card_rehearses(make_config, precision, accumulation, codec, device):
    sections = {"pipeline": {"stages": 2, "precision": precision}, "batch": {"accumulation": accumulation}}
    commission = commissioned(make_config(**sections, wire={"codec": codec}))
    for stage in (0, 1):
        compute, outcome = built(commission, stage, device)
        assert min(outcome.job_s, outcome.round_s) > 0.0
        assert is_untouched(compute)


@pytest.mark.parametrize("device", [CARD])
def test_a_stage_whose_jobs_do_not_fit_into_the_cards_memory_is_refused(make_config, device):
    """Its parameters fit: that a job does not was found out with real ones, one after the other. With memory it is built."""
    batch = {"global_batch": 16384, "microbatch": 16384}
    commission = commissioned(make_config(batch=batch, pipeline={"stages": 2, "recompute": "never"}))
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(100e6 / total_bytes)
    try:
        compute, outcome = built(commission, 1, device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert isinstance(outcome, Unfit)
    assert "does not fit into the device's memory" in outcome.text
    build = Build(stage=Stage(1), num_stages=2, configuration=commission.canonical_json())
    assert isinstance(only(compute.perform(build)), Built)
