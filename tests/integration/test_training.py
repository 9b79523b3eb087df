"""A swarm of real processes trains what one process would train."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from safetensors.numpy import load_file

from tests.integration.commands import commands_in
from zswarm.audit import audit
from zswarm.benchmarks.equality import relative_difference

SGD = ("--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.1")
SWARM = ("--workers", "2", "--brokers", "2")
CLIPPED = (*SGD, "--set", "optimizer.grad_clip=0.1", "--set", "optimizer.momentum=0.9")


def parameters(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return a function that trains in one process, once for the same options; returns the summary and the run folder.

    How the model is cut, wired and encoded is of no account to one process.
    """

    @cache
    def train(*options: str):
        with commands_in(tmp_path_factory.mktemp("reference")) as zswarm:
            return zswarm.run("reference", *options), zswarm.folder / "out"

    return train


@pytest.mark.parametrize(
    ("of_both", "of_the_swarm"),
    [
        (SGD, ()),
        (CLIPPED, ()),
        (SGD, ("--set", "pipeline.recompute=always", "--set", "pipeline.wiring=iwrr")),
        (
            SGD,
            ("--set", "pipeline.stages=4", "--set", "pipeline.recompute=never", "--set", "pipeline.wiring=fixed"),
        ),
    ],
    ids=["plain", "clipped", "recomputed", "four-stages"],
)
def test_final_parameters_equal_those_of_one_process(zswarm, reference, of_both, of_the_swarm):
    """Codec none and SGD: the swarm's parameters are the reference's but for the order of summation."""
    swarm = zswarm.run("local", *SWARM, *of_both, *of_the_swarm, out="swarm")
    one, folder = reference(*of_both)
    assert relative_difference(parameters(zswarm.folder / "swarm"), parameters(folder)) < 1e-6
    assert swarm["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert swarm["held_out_loss"] == pytest.approx(one["held_out_loss"], abs=1e-5)
    assert swarm["held_out_loss_before"] == pytest.approx(one["held_out_loss_before"], abs=1e-5)
    assert swarm["loss"][-1] < swarm["loss"][0]


@pytest.mark.parametrize(("codec", "tolerance"), [("none", 1e-3), ("bf16", 0.02), ("int8", 0.02), ("bnb8", 0.05)])
def test_adamw_follows_the_reference_with_every_codec(zswarm, reference, codec, tolerance):
    """Every step's loss stays near the reference's; the lossier the codec, the wider."""
    swarm = zswarm.run("local", *SWARM, "--set", f"wire.codec={codec}", out="swarm")
    one, _ = reference()
    assert swarm["loss"] == pytest.approx(one["loss"], abs=tolerance)


def test_every_commit_is_in_the_log_and_the_audit_agrees(zswarm):
    """The event log has one commit per step, each microbatch in it once per stage."""
    summary = zswarm.run("local", *SWARM)
    command = zswarm.running[-1]
    commits = [event for event in command.events() if event["event"] == "commit"]
    assert [commit["step"] for commit in commits] == list(range(summary["steps"]))
    for stage in itertools.chain.from_iterable(commit["stages"] for commit in commits):
        counted = sorted(itertools.chain.from_iterable(stage["contributions"].values()))
        assert counted == [0, 1, 2, 3]
    assert all(check.is_passed for check in audit(command.folder))
    assert summary["workers"] == 4
    assert summary["stages"] == 2
    assert summary["wire_bytes"] > 0
