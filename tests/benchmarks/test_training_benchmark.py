from __future__ import annotations

import json

import pytest

from zswarm.benchmarks import training
from zswarm.benchmarks.baselines import Assignment, Shape
from zswarm.benchmarks.figures import Figure
from zswarm.benchmarks.training import (
    LIMIT,
    ONE_F_ONE_B_2,
    SIZES,
    SWARM_2X1,
    SWARM_4X2,
    Measurement,
    even_split,
    figures_of,
    run_text,
)
from zswarm.config import load_run_file
from zswarm.errors import UserError

ROUNDS = 3


def _rounds(speeds):
    """Make rounds in which every system has the speed given, a machine twice as fast in each next round."""
    return [
        {
            system: Measurement(
                system=system,
                samples_per_s=speed * 2**number,
                others_cores=0.0,
                time_to_first_step_s=5.0 + number if system == SWARM_4X2 else None,
            )
            for system, speed in speeds.items()
        }
        for number in range(ROUNDS)
    ]


def _figures(**changed):
    speeds = dict.fromkeys(training._systems(SIZES["tiny"]), 20.0) | changed
    return {figure.name: figure for figure in figures_of(_rounds(speeds), SIZES["tiny"])}


def test_figures_are_medians_of_ratios_within_rounds():
    """The machine's drift is in every speed and in no ratio."""
    figures = _figures(**{SWARM_2X1: 18.5, SWARM_4X2: 15.5})
    assert figures[f"{SWARM_2X1}, samples/s"].values == [18.5, 37.0, 74.0]
    assert figures[f"{SWARM_2X1} / {LIMIT}"].values == [0.925] * ROUNDS
    assert figures[f"{SWARM_2X1} / {LIMIT}"].is_met is True
    assert figures[f"{SWARM_4X2} / {LIMIT}"].is_met is False
    assert figures[f"{SWARM_2X1} / {ONE_F_ONE_B_2}"].is_met is False
    assert figures[f"{SWARM_4X2}, s to the first step"].median == 6.0
    assert figures[f"{ONE_F_ONE_B_2} / {LIMIT}"].is_met is None


@pytest.mark.parametrize(
    ("values", "bounds", "is_met"),
    [
        ([0.8, 0.9, 1.0], {"at_least": 0.9}, True),
        ([0.8, 0.89, 1.0], {"at_least": 0.9}, False),
        ([7.0, 7.9, 20.0], {"below": 8.0}, True),
        ([7.0, 8.0, 8.1], {"below": 8.0}, False),
        ([1.0], {}, None),
    ],
)
def test_a_target_is_held_against_the_median(values, bounds, is_met):
    assert Figure(name="f", values=values, **bounds).is_met is is_met


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "split"),
    [(8, 1, (10,)), (8, 2, (5, 5)), (8, 4, (3, 2, 2, 3)), (4, 4, (2, 1, 1, 2))],
)
def test_all_pipelines_are_cut_alike(num_blocks, num_stages, split):
    """Blocks evenly, the embedding and the head on top."""
    assert even_split(num_blocks, num_stages) == split


@pytest.mark.parametrize("name", SIZES)
def test_the_swarm_trains_the_same_model(tmp_path, name):
    """The run file is valid and says what the baselines are told."""
    size = SIZES[name]
    file = tmp_path / "run.toml"
    file.write_text(run_text(size, num_stages=4))
    config = load_run_file(file)
    arguments = dict(config.model.arguments)
    shape = Shape(**arguments, microbatch=config.batch.microbatch, global_batch=config.batch.global_batch)
    assert shape == size.shape
    assert config.pipeline.split == even_split(size.shape.num_layers, 4)
    assert (config.wire.codec, config.pipeline.recompute, config.optimizer.name) == ("int8", "never", "adamw")


def test_a_baseline_s_command_is_an_assignment():
    """What the parent says is what the child understands."""
    command = training._baseline(SIZES["tiny"], num_steps=2, split=(5, 5), rank=1, rendezvous="r")
    assignment = Assignment(**json.loads(command[-1]))
    assert Shape(**assignment.shape) == SIZES["tiny"].shape
    assert (assignment.num_steps, assignment.rank, tuple(assignment.split)) == (2, 1, (5, 5))


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="write tiny or mid"):
        training.main(model="huge")


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        training.main(json_file=tmp_path / "no such folder" / "found.json")


def test_everything_is_printed_and_written(tmp_path, monkeypatch, capsys):
    """Each figure stands beside its target, and the file has every measurement."""
    monkeypatch.setattr(training, "_side_by_side", lambda *_, **__: (30.0, None))
    monkeypatch.setattr(training, "_pipeline", lambda *_, **__: (26.0, None))
    monkeypatch.setattr(training, "_swarm", lambda *_, **__: (28.0, 6.5))
    file = tmp_path / "found.json"
    training.main(pairs=2, json_file=file)
    printed = capsys.readouterr().out
    assert ">= 0.90" in printed
    assert "met" in printed
    found = json.loads(file.read_text())
    assert [len(measured) for measured in found["measurements"]] == [7, 7]
    (ratio,) = [figure for figure in found["figures"] if figure["name"] == f"{SWARM_2X1} / {LIMIT}"]
    assert ratio["values"] == [28 / 30] * 2
    assert ratio["is_met"] is True
