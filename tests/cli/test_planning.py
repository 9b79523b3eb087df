from __future__ import annotations

import pytest

from stages.allowed import NotHere
from tests.cli.test_main import GOOD
from zswarm.cli.planning import prepare_run
from zswarm.config import load_run_file
from zswarm.errors import UserError


@pytest.mark.parametrize(
    ("override", "kind", "says"),
    [
        ("data.source=missing.txt", UserError, "data.source: no file at "),
        ("model.num_layer=3", UserError, "[model] does not fit gpt: "),
        ("model.d_model=9", UserError, "model.num_heads = 2 does not divide model.d_model = 9: write num_heads = "),
        ("model.factory=nowhere:build", NotHere, "model.factory = 'nowhere:build': cannot import nowhere "),
        ("pipeline.stages=200", UserError, "pipeline.stages = 200 and the model has 4 layers: write stages = 4 or "),
        ("pipeline.split=[1, 1]", UserError, "pipeline.split = [1, 1] adds up to 2 layers and the model has 4: "),
    ],
)
def test_what_only_the_model_and_the_data_show_is_told_with_the_run_file(tmp_path, override, kind, says):
    """What the run file says of them was refused without a word on which file says so."""
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    config = load_run_file(path, [override])
    with pytest.raises(UserError) as raised:
        prepare_run(config, path)
    assert type(raised.value) is kind
    assert str(raised.value).startswith(f"{path}: {says}")


def test_a_run_that_can_be_trained_has_its_plan_and_its_samples(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    plan, source = prepare_run(load_run_file(path), path)
    assert sum(plan.layers_per_stage) == 4
    assert source.size_bytes > 0
