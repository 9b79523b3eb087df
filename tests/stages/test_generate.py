from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from stages.generate import generate, load_layers
from stages.reference import reference
from zswarm.errors import UserError


@pytest.fixture
def trained(make_config, make_source, tmp_path):
    config = make_config(run={"steps": 1})
    state = reference(config, make_source(config), lambda _: None).state
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    return config, path, state


def test_a_model_is_read_as_it_was_written(trained):
    """All tensors of the file are in the layers."""
    config, path, state = trained
    layers = load_layers(config, path)
    assert all(torch.equal(state[f"layers.{name}"], tensor) for name, tensor in layers.state_dict().items())


def test_text_follows_from_the_seed(trained, make_config):
    """The same seed draws the same bytes, another one others; sequences may outgrow the model's length."""
    config, path, _ = trained
    layers = load_layers(config, path)
    first = generate(config, layers, prompt="def ", num_bytes=40, temperature=1.0, top_k=0)
    assert first == generate(config, layers, prompt="def ", num_bytes=40, temperature=1.0, top_k=0)
    other = make_config(run={"seed": 8})
    assert first != generate(other, layers, prompt="def ", num_bytes=40, temperature=1.0, top_k=0)
    assert generate(config, layers, num_bytes=0) == ""


class Fixed(torch.nn.Module):
    """Always the same scores."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, tokens):
        return self.scores.expand(*tokens.shape, 256)


def test_temperature_and_top_k_choose(make_config):
    """Temperature 0 takes the likeliest; top-k draws from the k likeliest; bytes outside UTF-8 are replaced."""
    config = make_config()
    scores = torch.full((256,), -5.0)
    scores[ord("a")], scores[ord("b")], scores[0xFF] = 3.0, 2.9, 2.8
    layers = torch.nn.ModuleList([Fixed(scores)])
    assert generate(config, layers, num_bytes=5, temperature=0) == "aaaaa"
    assert set(generate(config, layers, num_bytes=60, temperature=1.0, top_k=1)) == {"a"}
    assert set(generate(config, layers, num_bytes=60, temperature=1.0, top_k=2)) == {"a", "b"}
    assert set(generate(config, layers, num_bytes=60, temperature=0.5, top_k=3)) == {"a", "b", "\ufffd"}
    assert len(set(generate(config, layers, num_bytes=300, temperature=50.0, top_k=0))) > 20


def test_models_that_cannot_be_read_are_said_so(trained, make_config, tmp_path):
    """A missing file, another format, and another model each have their message."""
    config, path, state = trained
    with pytest.raises(UserError, match="there is no such model"):
        load_layers(config, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not a model that can be read"):
        load_layers(config, tmp_path / "text.safetensors")
    other = make_config(model={"d_model": 32})
    with pytest.raises(UserError, match="not a model of this configuration"):
        load_layers(other, path)
    save_file({"layers.0.token.weight": state["layers.0.token.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="not a model of this configuration"):
        load_layers(config, tmp_path / "part.safetensors")


def test_wrong_wishes_are_refused(make_config):
    """Negative numbers, and models without scores for bytes."""
    config = make_config()
    layers = torch.nn.ModuleList([Fixed(torch.zeros(256))])
    for wish in ({"temperature": -1.0}, {"top_k": -1}, {"num_bytes": -1}):
        with pytest.raises(UserError, match="must not be below 0"):
            generate(config, layers, **wish)
    with pytest.raises(UserError, match="scores"):
        generate(config, torch.nn.ModuleList([torch.nn.Identity()]))
