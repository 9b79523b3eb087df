from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stages.model import Model, build_layer, load_model
from zswarm.errors import UserError

ARGUMENTS = {"sequence_length": 12}
GPT = {"d_model": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 12}


def test_a_built_in_model_is_found_by_its_name():
    """`gpt` needs no import path."""
    assert len(load_model("gpt", GPT).layers) == 4


def test_a_list_of_factories_is_a_model():
    """A plain list ends in logits; a Model brings its own loss."""
    assert isinstance(load_model("own_models:odd", ARGUMENTS), Model)
    assert load_model("own_models:regression", ARGUMENTS).loss is not load_model("own_models:odd", ARGUMENTS).loss


@pytest.mark.parametrize(
    ("factory", "arguments", "says"),
    [
        ("gpd", GPT, "write 'gpt'"),
        ("own_models:", ARGUMENTS, "package.module:function"),
        ("own_modelz:odd", ARGUMENTS, "cannot import own_modelz"),
        ("own_models:odds", ARGUMENTS, "write own_models:odd"),
        ("own_models:xyzzy", ARGUMENTS, "write the name of a function of"),
        ("own_models:text", ARGUMENTS, "is a str: name a function"),
        ("own_models:number", ARGUMENTS, "returned a int"),
        ("own_models:nothing", ARGUMENTS, "returned no layers"),
        ("own_models:modules", ARGUMENTS, "layer 0 is a Tokens, not a callable"),
        ("own_models:falling", ARGUMENTS, "raised KeyError: 'width'"),
        ("own_models:leaving", ARGUMENTS, "raised SystemExit: 3"),
        ("own_models:odd", {"sequence_length": 12, "depth": 3}, "got an unexpected keyword argument 'depth'; it takes"),
        ("gpt", {"d_modl": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 12}, "write d_model, not d_modl"),
        ("gpt", GPT | {"num_heads": 3}, "model.num_heads = 3 does not divide model.d_model = 16: write num_heads = 2"),
        ("gpt", GPT | {"num_layers": 0}, "model.num_layers must not be 0"),
        ("gpt", GPT | {"d_model": "16"}, "model.d_model must not be '16'"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(factory, arguments, says):
    """Each mistake in [model] is one message that names the place and the cure."""
    with pytest.raises(UserError) as caught:
        load_model(factory, arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fresh_parameters_depend_on_seed_and_index_alone():
    """Building other layers before, or in another order, or drawing random numbers, changes nothing."""
    model = load_model("gpt", GPT)
    forwards = [build_layer(model, index, 3).state_dict() for index in range(4)]
    torch.rand(5)
    backwards = [build_layer(model, index, 3).state_dict() for index in reversed(range(4))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(forwards[1]["up.weight"], forwards[2]["up.weight"])
    assert not torch.equal(forwards[1]["up.weight"], build_layer(model, 1, 4).state_dict()["up.weight"])


def test_whatever_layers_draw_from_is_seeded():
    """Two workers of a stage had other buffers, of numpy's numbers, and nobody noticed."""
    model = load_model("own_models:drawn", ARGUMENTS)
    first, second = (build_layer(model, 1, 3).projection for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, build_layer(model, 1, 4).projection)


def test_building_leaves_the_generators_alone():
    """Whoever draws random numbers around a build gets the same ones."""
    drawn, model = [], load_model("own_models:drawn", ARGUMENTS)
    for between in (lambda: None, lambda: build_layer(model, 1, 3)):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        between()
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_a_factory_must_make_a_module():
    """What is no module is named with its layer."""
    with pytest.raises(UserError, match="layer 1: its factory returned a str"):
        build_layer(load_model("own_models:no_module", ARGUMENTS), 1, 0)
