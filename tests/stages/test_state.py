from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from stages.tasks import Adopt, Adopted, Apply, Failed, Import, Imported, Reset, WasReset
from tests.stages.computing import Swarm, export, only, send
from zswarm.ids import STATE_FILES, Round, StatePart, Step
from zswarm.wire import parcelled

PARAMETERS, OPTIMIZER, GRADIENT = StatePart.PARAMETERS, StatePart.OPTIMIZER, StatePart.GRADIENT
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.5}
ODD = {"factory": "own_models:odd", "sequence_length": 12}


def trained(config, source, steps=2, **how):
    swarm = Swarm(config)
    train(swarm, source, range(steps), **how)
    return swarm


def train(swarm, source, steps, **how):
    for step in steps:
        for microbatch in range(swarm.config.num_microbatches):
            swarm.train(step, microbatch, source.samples(step, microbatch))
        swarm.commit(step, **how)


def files_of(swarm, **how):
    """Return every layer's files, stage by stage, layers named as in the whole model."""
    found = {}
    layer = 0
    for (worker,) in swarm.stages:
        while not isinstance(content := export(worker, layer, **how), Failed):
            found[PARAMETERS, layer] = content
            found[OPTIMIZER, layer] = export(worker, layer, OPTIMIZER, **how)
            layer += 1
    return found


def adopt(swarm, files):
    for (worker,) in swarm.stages:
        engine = worker._built.engine
        for layer in range(engine.first_layer, engine.first_layer + len(engine.layers)):
            for part in STATE_FILES:
                assert send(worker, layer, part, files[part, layer]) == []
        adopted = only(worker.perform(Adopt()))
        assert isinstance(adopted, Adopted), adopted


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM, {"name": "sgd", "lr": 0.1}], ids=["adamw", "momentum", "sgd"])
@pytest.mark.parametrize(
    ("model", "before", "after"), [("gpt", 1, 4), ("gpt", 4, 1), ("gpt", 2, 3), ("odd", 3, 3), ("odd", 2, 3)]
)
def test_a_run_goes_on_with_another_split(make_config, make_source, model, optimizer, before, after):
    """Exported by stages, adopted by others, trained on: the parameters of a run that was never cut off."""
    sections = {"optimizer": optimizer | {"grad_clip": 0.0}, "batch": {"accumulation": "exact"}}
    sections |= {"model": ODD} if model == "odd" else {}
    config = make_config(**sections, pipeline={"stages": before})
    source = make_source(config)
    cut_off = trained(config, source, 2)
    swarm = Swarm(make_config(**sections, pipeline={"stages": after}))
    adopt(swarm, files_of(cut_off))
    assert files_of(swarm) == files_of(cut_off)
    train(swarm, source, [2])
    expected = trained(config, source, 3)
    if model == "gpt" or before == after:
        assert files_of(swarm) == files_of(expected)
    # A parameter that is used twice gets its two gradients in another order in stage 0.
    found, wanted = swarm.state(), expected.state()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_what_the_files_say(make_config, make_source):
    """Names and shapes: state_dict; the optimizer's by parameter, its count of steps once; frozen ones have none."""
    swarm = trained(make_config(model=ODD, optimizer=ADAMW), make_source(make_config(model=ODD)))
    ((worker,),) = swarm.stages
    layer = worker._built.engine.layers[1]
    parameters, optimizer = load(export(worker, 1)), load(export(worker, 1, OPTIMIZER))
    assert {name: tensor.shape for name, tensor in parameters.items()} == {
        name: tensor.shape for name, tensor in layer.state_dict().items()
    }
    trainable = {name: one.shape for name, one in layer.named_parameters() if one.requires_grad}
    assert "frozen.weight" in parameters
    assert "frozen.weight" not in trainable
    assert optimizer.pop("step") == 2.0
    assert {name: tensor.shape for name, tensor in optimizer.items()} == {
        f"{state}.{name}": shape for state in ("exp_avg", "exp_avg_sq") for name, shape in trainable.items()
    }
    assert all(optimizer[f"exp_avg.{name}"].count_nonzero() > 0 for name in trainable if "unused" not in name)
    plain = Swarm(make_config(optimizer={"name": "sgd", "momentum": 0.0}))
    assert load(export(plain.worker(0, 0), 1, OPTIMIZER)) == {}


@pytest.mark.parametrize("model", ["gpt", "odd"])
def test_a_copy_stays_as_it_was(make_config, make_source, model):
    """Training goes on, a reset comes, other state is adopted: the copy is that of its step until the next one."""
    sections = {"model": ODD} if model == "odd" else {}
    config = make_config(optimizer=ADAMW, pipeline={"stages": 2}, **sections)
    source = make_source(config)
    swarm = trained(config, source, 1)
    assert "no copy" in export(swarm.worker(0, 0), 0, from_snapshot=True).text
    train(swarm, source, [1], snapshot=True)
    copied = files_of(swarm, from_snapshot=True)
    assert copied == files_of(swarm)
    train(swarm, source, [2])
    present = files_of(swarm)
    assert files_of(swarm, from_snapshot=True) == copied
    assert all(present[key] != copied[key] for key in copied)
    for (worker,) in swarm.stages:
        assert only(worker.perform(Reset())) == WasReset()
    adopt(swarm, files_of(trained(config, source, 1)))
    assert files_of(swarm, from_snapshot=True) == copied
    train(swarm, source, [3], snapshot=True)
    again = files_of(swarm, from_snapshot=True)
    assert again == files_of(swarm)
    assert all(again[key] != copied[key] for key in copied)


@pytest.mark.parametrize("part", STATE_FILES)
def test_an_export_is_never_old(make_config, make_source, part):
    """What was exported before a step, or before other state was adopted, is not what is exported after it."""
    config = make_config(optimizer=ADAMW)
    source = make_source(config)
    swarm = trained(config, source, 1)
    files = files_of(swarm)
    worker = swarm.worker(0, 0)
    assert export(worker, 1, part) == files[part, 1]
    train(swarm, source, [1])
    assert export(worker, 1, part) != files[part, 1]
    adopt(swarm, files)
    assert export(worker, 1, part) == files[part, 1]


def test_two_askers_are_served_from_two_files(make_config, make_source, monkeypatch):
    """One pulls a copy while another pulls the present state: each file is made once."""
    swarm = trained(make_config(optimizer=ADAMW), make_source(make_config()), 1, snapshot=True)
    made = []
    monkeypatch.setattr("stages.state.save", lambda tensors: made.append(1) or save(tensors))
    worker = swarm.worker(0, 0)
    for _ in range(3):
        export(worker, 1)
        export(worker, 1, from_snapshot=True)
    assert len(made) == 2


def test_buffers_are_carried_over(make_config, make_source, monkeypatch):
    """What a layer has besides parameters is in its file and is adopted, and a copy does not change with it."""
    config = make_config()
    first, second = trained(config, make_source(config), 1), Swarm(config)
    for swarm in (first, second):
        layer = swarm.worker(0, 0)._built.engine.layers[1]
        layer.register_buffer("table", torch.zeros(3))
    layer = first.worker(0, 0)._built.engine.layers[1]
    layer.table += 5.0
    train(first, make_source(config), [1], snapshot=True)
    layer.table += 1.0
    assert load(export(first.worker(0, 0), 1, from_snapshot=True))["table"].tolist() == [5.0] * 3
    train(first, make_source(config), [2])
    adopt(second, files_of(first))
    assert second.worker(0, 0)._built.engine.layers[1].table.tolist() == [6.0] * 3


def test_adopting_begins_the_step_anew(make_config, make_source):
    """What was counted on other parameters is gone: the next step is as if the process had just begun."""
    config = make_config(optimizer=ADAMW)
    source = make_source(config)
    files = files_of(trained(config, source, 1))
    swarm = Swarm(config)
    swarm.train(0, 0, source.samples(0, 0))
    adopt(swarm, files)
    train(swarm, source, [1])
    assert files_of(swarm) == files_of(trained(config, source, 2))


@pytest.fixture
def pair(make_config, make_source):
    """A swarm that has just begun, of two stages, and the files of one that has trained."""
    config = make_config(optimizer=ADAMW, pipeline={"stages": 2, "split": [2, 2]})
    return Swarm(config), files_of(trained(config, make_source(config)))


def changed(content, **changes):
    """Return a file with some tensors replaced; None leaves one out."""
    tensors = load(content) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(
    ("part", "spoil", "says"),
    [
        (OPTIMIZER, lambda file: changed(file, step=None), "layer 3 (Head), optimizer: missing or unknown: step"),
        (PARAMETERS, lambda file: changed(file, more=torch.ones(2)), "parameters: missing or unknown: more"),
        (PARAMETERS, lambda file: changed(file, out__bias=torch.ones(3)), "out.bias is torch.float32 [3] instead of"),
        (
            OPTIMIZER,
            lambda file: changed(file, exp_avg__out__bias=torch.ones(256, dtype=torch.float64)),
            "layer 3 (Head), optimizer: exp_avg.out.bias is torch.float64 [256] instead of torch.float32 [256]",
        ),
        (PARAMETERS, lambda _: b"no such thing" * 3, "layer 3 (Head), parameters: not a safetensors file"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(pair, part, spoil, says):
    """The text says which file, and why; the layer is as it was, and may come again."""
    swarm, files = pair
    worker = swarm.worker(1, 0)
    before = files_of(swarm)
    said = [
        outcome
        for one in STATE_FILES
        for outcome in send(worker, 3, one, spoil(files[one, 3]) if one is part else files[one, 3])
    ]
    (failed,) = said
    assert isinstance(failed, Failed)
    assert says in failed.text
    assert files_of(swarm) == before
    adopt(swarm, files)
    assert files_of(swarm) == files


def test_layers_that_have_taken_different_numbers_of_steps_are_no_state(pair):
    swarm, files = pair
    worker = swarm.worker(1, 0)
    for part in STATE_FILES:
        send(worker, 3, part, files[part, 3])
    failed = only(worker.perform(Adopt()))
    assert "layer 3 (Head), optimizer: step is 2.0 and that of layer 2 is 0.0" in failed.text


# -- over a commit -----------------------------------------------------------------------------------


def given(worker, layer, part, **of):
    """Fetch a kept file."""
    content = export(worker, layer, part, **of)
    assert isinstance(content, bytes), content
    return content


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM, {"name": "sgd", "lr": 0.1}], ids=["adamw", "momentum", "sgd"])
@pytest.mark.parametrize("model", ["gpt", "odd"])
def test_layers_that_come_at_different_steps_end_with_the_givers_bits(make_config, make_source, model, optimizer):
    """Each takes the steps that it lacks; one of them was given in two halves, before and after a commit."""
    sections = {"optimizer": optimizer | {"grad_clip": 0.1}} | ({"model": ODD} if model == "odd" else {})
    config = make_config(**sections)
    source = make_source(config)
    giver, taker = trained(config, source, 1), Swarm(config)
    ((old,),), ((new,),) = giver.stages, taker.stages
    num_layers = len(old._built.engine.layers)
    send(new, 0, PARAMETERS, given(old, 0, PARAMETERS))
    train(giver, source, [1], retained=((0, Step(1)),), gradients=(Step(1),))
    send(new, 0, OPTIMIZER, given(old, 0, OPTIMIZER, step=Step(1)))
    for layer in range(1, num_layers - 1):
        for part in STATE_FILES:
            send(new, layer, part, given(old, layer, part))
    train(giver, source, [2], gradients=(Step(1), Step(2)))
    for part in STATE_FILES:
        send(new, num_layers - 1, part, given(old, num_layers - 1, part))
    for layer in range(num_layers - 1):
        for step in range(1 if layer == 0 else 2, 3):
            assert send(new, layer, GRADIENT, given(old, layer, GRADIENT, step=Step(step))) == []
    assert only(new.perform(Adopt())).parameter_digest == giver.digests[0]
    assert files_of(taker) == files_of(giver)
    train(giver, source, [3])
    train(taker, source, [3])
    assert files_of(taker) == files_of(giver)


def test_a_step_that_was_skipped_changes_nothing(make_config, make_source):
    config = make_config(optimizer=ADAMW)
    swarm = trained(config, make_source(config), 1)
    worker = swarm.worker(0, 0)
    only(
        worker.perform(
            Apply(step=Step(1), round=Round(9), scale=1.0, lr=0.1, apply=False, snapshot=False, gradients=(Step(1),))
        )
    )
    before = files_of(swarm)
    assert send(worker, 1, GRADIENT, given(worker, 1, GRADIENT, step=Step(1))) == []
    assert files_of(swarm) == before


def test_what_is_no_longer_wanted_is_forgotten(make_config, make_source):
    config = make_config()
    source = make_source(config)
    swarm = trained(config, source, 1)
    worker = swarm.worker(0, 0)
    train(swarm, source, [1], retained=((0, Step(1)),), gradients=(Step(1),))
    given(worker, 0, GRADIENT, step=Step(1))
    train(swarm, source, [2])
    assert "not kept" in export(worker, 0, PARAMETERS, step=Step(1)).text
    assert "not kept" in export(worker, 0, GRADIENT, step=Step(1)).text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: changed(file, lr=None), "layer 1 (Block), gradient: missing or unknown: lr"),
        (lambda file: changed(file, lr=torch.ones(2)), "layer 1 (Block), gradient: lr is torch.float32 [2] instead of"),
        (lambda _: b"no such thing" * 3, "layer 1 (Block), gradient: not a safetensors file"),
    ],
)
def test_a_step_that_does_not_fit_changes_nothing(make_config, make_source, spoil, says):
    config = make_config(optimizer=ADAMW)
    source = make_source(config)
    swarm = trained(config, source, 1)
    train(swarm, source, [1], gradients=(Step(1),))
    worker, before = swarm.worker(0, 0), files_of(swarm)
    (failed,) = send(worker, 1, GRADIENT, spoil(given(worker, 1, GRADIENT, step=Step(1))))
    assert says in failed.text
    assert files_of(swarm) == before


def piece(offset_bytes, total_bytes, size_bytes, layer=2):
    return Import(
        part=PARAMETERS,
        layer=layer,
        offset_bytes=offset_bytes,
        total_bytes=total_bytes,
        load=parcelled(bytes(size_bytes), ()),
    )


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([piece(0, 100, 50), piece(60, 100, 40)], "a range from byte 60 of 100 after 50 of 100 bytes"),
        ([piece(0, 100, 50), piece(40, 100, 40)], "a range from byte 40 of 100 after 50 of 100 bytes"),
        ([piece(50, 100, 50)], "a range from byte 50 of 100 after 0 of 100 bytes"),
        ([piece(0, 100, 50), piece(50, 110, 60)], "a range from byte 50 of 110 after 50 of 100 bytes"),
        ([piece(0, 100, 50), piece(50, 100, 51)], "goes beyond the file's 100 bytes"),
        ([piece(0, 100, 101)], "goes beyond the file's 100 bytes"),
        ([piece(0, 100, 50, layer=1)], "layer 1 is not one of this stage's"),
    ],
)
def test_ranges_follow_each_other(pair, pieces, says):
    """A gap, an overlap, another file's range, more than the file: each is refused, with the layer's name."""
    swarm, _ = pair
    worker = swarm.worker(1, 0)
    *good, bad = pieces
    assert [said for one in good for said in worker.perform(one)] == [Imported(part=PARAMETERS)] * len(good)
    failed = only(worker.perform(bad))
    assert isinstance(failed, Failed)
    assert says in failed.text
    assert "layer" in failed.text


def test_a_file_may_begin_anew(pair):
    """Another donor's file from offset 0 takes the place of the first one's half."""
    swarm, files = pair
    worker = swarm.worker(1, 0)
    assert list(worker.perform(piece(0, 100, 50))) == [Imported(part=PARAMETERS)]
    adopt(swarm, files)
    assert files_of(swarm) == files
