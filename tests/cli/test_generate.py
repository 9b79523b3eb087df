from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import zswarm.cli.generate
from stages.model import build_layer, load_model
from zswarm.cli import main
from zswarm.config import RunConfig
from zswarm.trainer.run_folder import open_run_folder

CONFIG = RunConfig.model_validate(
    {
        "run": {"steps": 1},
        "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 8, "vocab_size": 256},
        "batch": {"global_batch": 4, "microbatch": 2},
    }
)


@pytest.fixture
def trained(tmp_path):
    """A run folder with a fresh model."""
    with open_run_folder(CONFIG, out=tmp_path / "run") as folder:
        model = load_model("gpt", CONFIG.model.arguments)
        tensors = {}
        for index in range(len(model.layers)):
            layer = build_layer(model, index, 0)
            tensors |= {f"layers.{index}.{name}": tensor for name, tensor in layer.state_dict().items()}
        save_file(tensors, folder.model_path)
    return folder.path


def test_the_same_seed_gives_the_same_text_and_another_one_another(trained, capsysbinary):
    texts = []
    for seed in ("1", "1", "2"):
        arguments = ["--prompt", "def ", "--length", "20", "--temperature", "1", "--seed", seed]
        assert main.run(["generate", str(trained), *arguments]) == 0
        texts.append(capsysbinary.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith(b"def ") and text.endswith(b"\n") for text in texts)


def test_a_prompt_may_be_any_bytes(trained, capsysbinary):
    """One that was no UTF-8 ended as a bug of ours."""
    assert main.run(["generate", str(trained), "--prompt", "caf\udce9", "--length", "1"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"caf\xe9")


def test_without_chance_the_likeliest_byte_is_taken(trained, capsysbinary):
    texts = []
    for arguments in (["--temperature", "0"], ["--temperature", "0", "--seed", "5"], ["--top-k", "1", "--seed", "6"]):
        assert main.run(["generate", str(trained), "--length", "10", *arguments]) == 0
        texts.append(capsysbinary.readouterr().out)
    assert len(set(texts)) == 1


def test_control_characters_do_not_reach_the_terminal(trained, capsys, monkeypatch):
    """A model can put out any byte, an escape sequence that takes over the terminal too."""
    monkeypatch.setattr(zswarm.cli.generate, "generate", lambda *_, **__: "a\x1b[2J\x9b\tb\n\x07é\u202ec")
    assert main.run(["generate", str(trained)]) == 0
    assert capsys.readouterr().out == "a\ufffd[2J\ufffd\tb\n\ufffdé\ufffdc\n"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "run.json").unlink(), "is no run folder: No such file"),
        (lambda folder: (folder / "run.json").write_text("{}"), "run.json: the run's configuration is not valid"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there is no such model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 20), "not a model that can be read"),
        (
            lambda folder: save_file({"x": torch.zeros(1)}, folder / "model.safetensors"),
            "not a model of this configuration",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_told(trained, capsys, damage, says):
    damage(trained)
    assert main.run(["generate", str(trained)]) == 2
    assert says in capsys.readouterr().err
