from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.model import load_model
from stages.partition import layers_of_stage, plan, split_evenly
from stages.trace import trace
from zswarm import limits
from zswarm.compression import encode
from zswarm.errors import UserError


def cuts(num_layers, num_stages):
    for inner in itertools.combinations(range(1, num_layers), num_stages - 1):
        yield [0, *inner, num_layers]


@settings(max_examples=150)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.data())
def test_no_cut_has_a_cheaper_costliest_stage(costs, data):
    """Against all cuts there are: the largest stage is as small as can be, and then the cut as even."""
    num_stages = data.draw(st.integers(1, len(costs)))

    def value(edges):
        stages = [sum(costs[a:b]) for a, b in itertools.pairwise(edges)]
        return max(stages), sum(stage * stage for stage in stages)

    counts = split_evenly(costs, num_stages)
    assert len(counts) == num_stages
    assert min(counts) >= 1
    assert value([0, *itertools.accumulate(counts)]) == min(value(edges) for edges in cuts(len(costs), num_stages))


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
def test_units_are_what_payloads_take(make_config, codec):
    """A broker that reserves unit_bytes has room for a stage's input with labels, and for its gradient."""
    partition = plan(make_config(pipeline={"stages": 2, "split": [2, 2]}, wire={"codec": codec}))
    labels = torch.zeros(2, 12, dtype=torch.uint8)
    activation = torch.zeros(2, 12, 16)
    assert partition.layers_per_stage == (2, 2)
    assert partition.targets_per_sample == 12
    assert [stage.first_layer for stage in partition.stages] == [0, 2]
    assert partition.unit_bytes == (
        encode([activation], codec).parcel.size_bytes,
        encode([activation, labels], codec).parcel.size_bytes,
    )
    assert partition.stages[0].input_dtype == torch.uint8
    assert partition.stages[1].input_shape == (2, 12, 16)
    assert plan(make_config()).unit_bytes == (2 * 2 * 12,)


def test_all_parameters_are_somewhere(make_config):
    """The stages' parameters are those of the whole model, however it is cut."""
    whole = plan(make_config()).stages[0].num_parameters
    assert whole == 256 * 16 + 12 * 16 + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16 + 17 * 256
    for stages in (2, 3, 4):
        assert sum(stage.num_parameters for stage in plan(make_config(pipeline={"stages": stages})).stages) == whole


def test_the_users_split_is_taken(make_config):
    """A list of layer counts is the cut, and each stage knows its layers from it."""
    config = make_config(pipeline={"stages": 2, "split": [1, 3]})
    assert plan(config).layers_per_stage == (1, 3)
    model = load_model("gpt", config.model.arguments)
    assert [layers_of_stage(config, model, stage) for stage in (0, 1)] == [range(1), range(1, 4)]
    automatic = make_config(pipeline={"stages": 2})
    assert [layers_of_stage(automatic, model, stage) for stage in (0, 1)] == [range(3), range(3, 4)]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"pipeline": {"stages": 5}}, "pipeline.stages = 5 and the model has 4 layers: write stages = 4 or fewer"),
        (
            {"pipeline": {"stages": 2, "split": [2, 3]}},
            "pipeline.split = [2, 3] adds up to 5 layers and the model has 4: write 2 numbers that add up to 4",
        ),
        (
            {
                "model": {"factory": "own_models:wide", "width": 1 << 17, "sequence_length": 64},
                "pipeline": {"stages": 2},
            },
            "makes 64.0 MiB of each microbatch at stage 0, and 32 MiB can travel: write microbatch = 1 or less",
        ),
    ],
)
def test_what_does_not_fit_is_said(make_config, sections, says):
    """Stages, split and microbatch are held against the model before anything starts."""
    with pytest.raises(UserError) as caught:
        plan(make_config(**sections))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unchained", "layer 2 (Linear) does not take what layer 1 (Linear) returns, float32 [2, 12, 8]: RuntimeError"),
        ("pair", "layer 1 (Pair) returns a tuple: a layer must return one tensor"),
        ("integers", "layer 1 (Integers) returns int64 [2, 12, 8]: it must be of a floating-point dtype"),
        ("deep", "returns float32 [1, 1, 2, 12, 8]: at most 4 dimensions travel"),
        ("batch_norm", "layer 1 (BatchNorm1d) has a BatchNorm1d, whose running statistics"),
        ("instance_norm", "layer 1 (InstanceNorm1d) has a InstanceNorm1d, whose running statistics"),
        (
            "extra_state",
            "layer 1 (Stateful) has '_extra_state' in its state_dict, which is a dict: only tensors are saved",
        ),
        ("lazy", "layer 1 (LazyLinear), parameter weight has no shape before a forward: use a module that is not lazy"),
        (
            "growing",
            "layer 1 (Growing) has another state_dict after its first forward (mask), and workers that come late",
        ),
        (
            "resizing",
            "layer 1 (Growing) has another state_dict after its first forward (mask), and workers that come late",
        ),
        ("sharing", "layer 2 (Linear), parameter weight is also layer 1 (Linear), parameter weight"),
        ("tied", "parameter weight is also layer 1 (Tied), parameter weight: layers live in"),
        ("half", "parameter weight is torch.bfloat16: parameters must be torch.float32"),
        ("few_tokens", "layer 0 (Embedding) does not take the tokens, int64 [2, 12] of 0 to 255: IndexError"),
        (
            "few_logits",
            "the loss does not take the output, float32 [2, 12, 200], and labels, int64 [2, 12]: IndexError",
        ),
        ("failing_layer", "layer 1 cannot be built: RuntimeError"),
        ("no_module", "layer 1: its factory returned a str"),
        ("mean_loss", "the loss returns float32 [2, 12]: it must be one number"),
        ("bad_loss", "the loss does not take the output, float32 [2, 12, 256], and labels, int64 [2, 12]: Attribute"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(make_config, name, says):
    """What would go wrong in a worker goes wrong before, in one line that names the layer."""
    config = make_config(model={"factory": f"own_models:{name}", "sequence_length": 12})
    with pytest.raises(UserError) as caught:
        plan(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compiled_layers_are_looked_at_as_they_are_written(make_config):
    """Nobody waits for a compiler, which compiled the meter, too, and refused a layer that was right."""
    compiled = plan(
        make_config(model={"factory": "own_models:compiled", "sequence_length": 12}, pipeline={"stages": 3})
    )
    assert [stage.input_shape for stage in compiled.stages] == [(2, 12), (2, 12, 8), (2, 12, 8)]


def test_meta_and_real_layers_cost_the_same(monkeypatch):
    """Whether a layer is built for real or on the meta device, the plan is the same."""
    model = load_model("gpt", {"d_model": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 12})
    real = trace(model, batch_size=2, sequence_length=12, seed=0)
    monkeypatch.setattr("stages.trace.REAL_PARAMETERS", -1)
    on_meta = trace(model, batch_size=2, sequence_length=12, seed=0)
    for first, second in zip(real, on_meta, strict=True):
        assert (first.output_shape, first.output_dtype, first.flops) == (
            second.output_shape,
            second.output_dtype,
            second.flops,
        )


def test_a_plan_leaves_the_number_of_threads_alone(make_config):
    """Tracing uses one thread, since the process may fork afterwards, and then goes back."""
    torch.set_num_threads(2)
    try:
        plan(make_config())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_model_of_too_many_layers_is_told(make_config, monkeypatch):
    monkeypatch.setattr(limits, "MAX_LAYERS", 3)
    with pytest.raises(UserError, match="the model has 4 layers, and a run may have 3"):
        plan(make_config(pipeline={"stages": 2}))
