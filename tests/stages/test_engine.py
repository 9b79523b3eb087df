from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.engine import LayerFailed, Place, StageEngine, one_line
from stages.model import build_layer, load_model
from stages.precision import Arithmetic
from tests.stages.computing import finish

SEED = 5
B, T = 2, 6
NUM_MICROBATCHES = 3
STEP_TARGETS = B * T * NUM_MICROBATCHES
MODELS = {
    "gpt": ("gpt", {"d_model": 8, "num_layers": 2, "num_heads": 2, "sequence_length": T}),
    "dropping": ("own_models:dropping", {"sequence_length": T}),
    "odd": ("own_models:odd", {"sequence_length": T}),
    "in_place": ("own_models:in_place", {"sequence_length": T}),
    "reentrant": ("own_models:checkpointed", {"sequence_length": T, "is_reentrant": True}),
    "checkpointed": ("own_models:checkpointed", {"sequence_length": T, "is_reentrant": False}),
    "descending": ("own_models:descending", {"sequence_length": T}),
    "noisy": ("own_models:noisy", {"sequence_length": T}),
    "regression": ("own_models:regression", {"sequence_length": T}),
}


def microbatches():
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randint(0, 256, (B, T), generator=generator, dtype=torch.uint8) for _ in range(2))
        for _ in range(NUM_MICROBATCHES)
    ]


def build(name):
    model = load_model(*MODELS[name])
    return model, [build_layer(model, index, SEED) for index in range(len(model.layers))]


def engines(name, counts):
    model, layers = build(name)
    assert sum(counts) == len(layers)
    made, first = [], 0
    for count in counts:
        last = first + count == len(layers)
        made.append(
            StageEngine(
                layers[first : first + count],
                first_layer=first,
                loss=model.loss if last else None,
                step_targets=STEP_TARGETS,
                seed=SEED,
                arithmetic=Arithmetic(),
            )
        )
        first += count
    return made


def plain(name):
    """Train one step the plain way; return losses and the gradients by layer."""
    from stages.engine import seed_noise

    model, layers = build(name)
    losses = []
    for microbatch, (tokens, labels) in enumerate(microbatches()):
        x = tokens.long()
        for index, layer in enumerate(layers):
            seed_noise(SEED, Place(0, microbatch), index, torch.device("cpu"))
            x = layer(x)
        loss = model.loss(x, labels.long())
        (loss / STEP_TARGETS).backward()
        losses.append(loss.item())
    return losses, [gradients(layer) for layer in layers]


def gradients(layer):
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in layer.named_parameters()
        if parameter.requires_grad
    }


def through(stages, microbatch, tokens, labels, *, keep, accumulate=True):
    """Send one microbatch forward and backward; `keep` says whether graphs are kept or made again."""
    place = Place(0, microbatch)
    x, inputs, graphs = tokens, [], []
    for stage in stages[:-1]:
        inputs.append(x)
        if keep:
            graphs.append(stage.forward_graph(x, place))
            x = graphs[-1].y.detach()
        else:
            x = stage.forward(x, place)
    loss, dx = stages[-1].backward_loss(stages[-1].forward_graph(x, place), labels, accumulate=accumulate)
    finish(stages[-1])
    for number in reversed(range(len(stages) - 1)):
        graph = graphs[number] if keep else stages[number].forward_graph(inputs[number], place)
        assert dx.shape == graph.y.shape
        dx = stages[number].backward(graph, dx, accumulate=accumulate)
        finish(stages[number])
    assert dx is None
    return loss


@pytest.mark.parametrize("keep", [True, False], ids=["graph", "recompute"])
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *(("gpt", counts) for counts in ((4,), (2, 2), (1, 1, 1, 1), (3, 1))),
        *(("dropping", counts) for counts in ((4,), (2, 2), (1, 1, 1, 1))),
        *(("odd", counts) for counts in ((4,), (2, 2), (1, 1, 1, 1))),
        *(("in_place", counts) for counts in ((2, 2), (1, 1, 1, 1))),
        *((name, counts) for name in ("reentrant", "checkpointed", "descending") for counts in ((3,), (1, 1, 1))),
        ("regression", (1, 1)),
    ],
    ids=str,
)
def test_stages_train_as_one_process_does(name, counts, keep):
    """Losses and every gradient are those of a plain loop, however the layers are cut and graphs are kept."""
    expected_losses, expected = plain(name)
    stages = engines(name, counts)
    losses = [
        through(stages, number, tokens, labels, keep=keep) for number, (tokens, labels) in enumerate(microbatches())
    ]
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    layers = [layer for stage in stages for layer in stage.layers]
    for layer, its in zip(layers, expected, strict=True):
        found = gradients(layer)
        assert found.keys() == its.keys()
        for parameter, gradient in found.items():
            assert torch.allclose(gradient, its[parameter], rtol=1e-4, atol=1e-6), parameter


@pytest.mark.parametrize("name", ["gpt", "dropping", "odd"])
def test_recomputing_gives_the_same_bits(name):
    """A forward without a graph, one with, and one after other work are equal bit for bit."""
    (stage, _) = engines(name, (3, 1))
    tokens = microbatches()[0][0]
    first = stage.forward(tokens, Place(4, 1))
    other = stage.forward(tokens, Place(4, 2))
    again = stage.forward_graph(tokens, Place(4, 1)).y.detach()
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name != "dropping")


def test_a_backward_for_dx_alone_adds_nothing():
    """With `accumulate` false dx is the same and no gradient moves, at any stage."""
    tokens, labels = microbatches()[0]
    stages = engines("odd", (1, 1, 2))
    loss = through(stages, 0, tokens, labels, keep=True, accumulate=False)
    assert all(stage.parameters.gradients.count_nonzero() == 0 for stage in stages)
    x = stages[1].forward(stages[0].forward(tokens, Place(0, 0)), Place(0, 0))
    found = []
    for accumulate in (False, True):
        graph = stages[2].forward_graph(x, Place(0, 0))
        again, dx = stages[2].backward_loss(graph, labels, accumulate=accumulate)
        assert again == loss
        found.append(dx)
    assert torch.equal(*found)


def middle(name):
    """Return the second layer as a stage, and an input and an output gradient for it."""
    _, stage, _ = engines(name, (1, 1, len(load_model(*MODELS[name]).layers) - 2))
    generator = torch.Generator().manual_seed(2)
    return stage, *(torch.randn(B, T, 8, generator=generator) for _ in range(2))


@pytest.mark.parametrize("name", ["reentrant", "checkpointed", "odd"])
def test_a_backward_for_dx_alone_leaves_what_was_counted(name):
    """A layer that checkpoints activations refused it: the death of a broker ended the run."""
    stage, x, dy = middle(name)
    dx = stage.backward(stage.forward_graph(x, Place(0, 0)), dy, accumulate=True)
    finish(stage)
    counted = stage.parameters.gradients.clone()
    again = stage.backward(stage.forward_graph(x, Place(0, 0)), dy, accumulate=False)
    finish(stage)
    assert torch.equal(again, dx)
    assert torch.equal(stage.parameters.gradients, counted)
    stage.backward(stage.forward_graph(x, Place(0, 0)), dy, accumulate=True)
    finish(stage)
    assert torch.allclose(stage.parameters.gradients, 2 * counted, atol=1e-5)


@pytest.mark.parametrize("name", ["reentrant", "checkpointed", "noisy", "descending"])
def test_what_comes_between_a_forward_and_its_backward_makes_no_difference(name):
    """After an evaluation, what runs again in the backward had no dropout; noise in a backward came from any state.

    An inner gradient of what came between was counted.
    """
    found = []
    for has_between in (False, True):
        stage, x, dy = middle(name)
        graph = stage.forward_graph(x, Place(0, 0))
        if has_between:
            stage.forward(2 * x, Place(0, 1), training=True)
            stage.forward(3 * x, Place(0, 2), training=False)
        dx = stage.backward(graph, dy, accumulate=True)
        finish(stage)
        found.append((dx, stage.parameters.gradients))
    assert all(map(torch.equal, *found))


def test_evaluation_has_no_dropout_and_leaves_no_trace():
    """The held-out loss is that of the whole network, and training goes on as before."""
    model, layers = build("dropping")
    tokens, labels = microbatches()[0]
    network = nn.Sequential(*layers).eval()
    expected = model.loss(network(tokens.long()), labels.long()).item()
    first, second = engines("dropping", (2, 2))
    trained = first.forward(tokens, Place(0, 0))
    y = first.forward(tokens, Place(0, 0), training=False)
    assert second.evaluate(y, labels, Place(0, 0)) == pytest.approx(expected, rel=1e-5)
    assert first.parameters.gradients.count_nonzero() == second.parameters.gradients.count_nonzero() == 0
    assert torch.equal(first.forward(tokens, Place(0, 0)), trained)


def test_clearing_begins_a_step():
    """After `clear_gradients` the same microbatch gives the same gradient again."""
    tokens, labels = microbatches()[0]
    (stage,) = engines("gpt", (4,))
    found = []
    for _ in range(2):
        stage.clear_gradients()
        through([stage], 0, tokens, labels, keep=True)
        found.append(stage.parameters.gradients.clone())
    assert torch.equal(*found)
    assert found[0].count_nonzero() > 0


def test_a_gradient_that_is_not_finite_stays_so():
    """NaN in a loss reaches the buffer: the commit must see it."""
    tokens, labels = microbatches()[0]
    first, second = engines("gpt", (2, 2))
    x = first.forward(tokens, Place(0, 0))
    x[0, 0, 0] = torch.nan
    _, dx = second.backward_loss(second.forward_graph(x, Place(0, 0)), labels, accumulate=True)
    finish(second)
    assert not torch.isfinite(second.parameters.gradients).all()
    assert not torch.isfinite(dx).all()


@pytest.mark.parametrize(
    ("where", "batch", "layer", "says"),
    [
        ("forward", 1, "layer 1 (Raising)", "ValueError: the sky is falling"),
        ("exit", 1, "layer 1 (Raising)", "SystemExit: 3"),
        ("backward", 2, "backward", "ValueError: the sky is falling backwards"),
    ],
)
def test_a_raising_layer_is_named(where, batch, layer, says):
    """The layer's name and one line of what it said; the engine can go on afterwards."""
    model = load_model("own_models:raising", {"sequence_length": T, "where": where})
    layers = [build_layer(model, index, SEED) for index in range(3)]
    stage = StageEngine(layers, first_layer=0, loss=model.loss, step_targets=1, seed=SEED, arithmetic=Arithmetic())
    tokens = torch.zeros(batch, T, dtype=torch.uint8)
    with pytest.raises(LayerFailed) as caught:
        stage.backward_loss(stage.forward_graph(tokens, Place(0, 0)), tokens, accumulate=True)
    assert (caught.value.layer, str(caught.value)) == (layer, says)


def test_a_loss_must_be_a_number():
    """Labels that do not fit, a loss of a wrong shape and a loss at a wrong stage are named as the loss."""
    first, second = engines("gpt", (2, 2))
    tokens, labels = microbatches()[0]
    x = first.forward(tokens, Place(0, 0))
    with pytest.raises(LayerFailed, match="no loss"):
        first.evaluate(tokens, labels, Place(0, 0))
    with pytest.raises(LayerFailed, match="ValueError: Expected input batch_size"):
        second.evaluate(x, labels[:1], Place(0, 0))
    second._loss = lambda output, labels: output
    with pytest.raises(LayerFailed, match=r"shape \[2, 6, 256\] instead of one number"):
        second.evaluate(x, labels, Place(0, 0))


def test_long_errors_are_cut_to_one_line():
    """What reaches the user fits into a message."""
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert len(one_line(ValueError("x" * 9999))) == 400
