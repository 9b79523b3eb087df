from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from zswarm.cli import main
from zswarm.config import load_run_file
from zswarm.data import open_source

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """A folder with the model and the run file of one's own that the README shows."""
    for name, content in re.findall(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL):
        (tmp_path / name).write_text(content)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("".join(f"{number} bottles of beer. " for number in range(2000)))
    return tmp_path


RAISE_IN_TRAINING = 'if self.training and not x.is_leaf: raise ValueError("no more today")'


def command(*arguments):
    return [sys.executable, "-c", "from zswarm.cli.main import main; main()", *arguments]


def zswarm(folder, *arguments):
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_readmes_own_model_trains_in_one_process(folder):
    result = zswarm(folder, "reference", "own.toml", "--set", "run.steps=3", "--set", "data.source=corpus/*.txt")
    assert (result.returncode, re.sub(r"\d+\.\d+", "x", result.stderr)) == (
        0,
        "zswarm: runs/own-1\nheld-out loss after 0 steps: x\nheld-out loss after 3 steps: x\n",
    )
    out = folder / "runs" / "own-1"
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in shown] == [0, 1, 2]
    assert [{key: line[key] for key in shown[0]} for line in metrics] == shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["loss"] == [line["loss"] for line in shown]
    assert summary["steps"] == 3
    assert summary["loss"][-1] < summary["loss"][0]
    assert summary["held_out_loss"] < summary["held_out_loss_before"]
    assert (out / "run.toml").read_text() == (folder / "own.toml").read_text()
    assert json.loads((out / "run.json").read_text())["run"]["steps"] == 3
    tensors = load_file(out / "model.safetensors")
    assert tensors["layers.0.weight"].shape == (256, 64)
    assert {name.split(".")[1] for name in tensors} == {"0", "1", "2", "3"}


def test_with_exact_accumulation_it_computes_as_a_swarm_does(folder):
    """Through stages and codec: the losses are nearly those of a plain loop, whatever is recomputed changes no bit."""
    files, losses = [], []
    for name, settings in (
        ("plain", []),
        ("always", ["batch.accumulation=exact", "pipeline.recompute=always"]),
        ("never", ["batch.accumulation=exact", "pipeline.recompute=never"]),
    ):
        overrides = [f"--set={override}" for override in ("run.steps=2", "data.source=corpus/*.txt", *settings)]
        result = zswarm(folder, "reference", "own.toml", *overrides, "--out", name)
        assert result.returncode == 0, result.stderr
        files.append((folder / name / "model.safetensors").read_bytes())
        losses.append(json.loads((folder / name / "summary.json").read_text())["loss"])
    plain, always, never = files
    assert always == never != plain
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_readmes_run_file_of_text_trains(folder):
    small = [f"model.{name}" for name in ("d_model=32", "num_layers=2", "num_heads=2", "sequence_length=32")]
    overrides = [f"--set={override}" for override in ("run.steps=2", *small)]
    result = zswarm(folder, "reference", "run.toml", *overrides, "--out", "here")
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "here" / "summary.json").read_text())["steps"] == 2


def test_the_loss_is_the_one_of_the_samples_of_the_run_file(folder):
    """A model that knows nothing but how often each byte comes has that entropy as its loss."""
    (folder / "mymodel.py").write_text(
        "import torch\n"
        "class Bias(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.logits = torch.nn.Parameter(torch.arange(256) / 256)\n"
        "    def forward(self, tokens):\n"
        "        return self.logits.expand(*tokens.shape, 256)\n"
        "def build(sequence_length): return [Bias]\n"
    )
    text = (folder / "own.toml").read_text().replace("width = 64\ndepth = 2\n", "").replace("stages = 2", "stages = 1")
    (folder / "own.toml").write_text(text)
    result = zswarm(folder, "reference", "own.toml", "--set", "run.steps=1", "--set", "data.source=corpus/*.txt")
    assert result.returncode == 0, result.stderr
    config = load_run_file(folder / "own.toml", ["run.steps=1"])
    source = open_source(
        config.model_copy(
            update={"data": config.data.model_copy(update={"source": (str(folder / "corpus" / "a.txt"),)})}
        )
    )
    labels = np.concatenate([source.samples(0, index)[1] for index in range(config.num_microbatches)])
    logits = np.arange(256) / 256
    expected = (np.log(np.exp(logits).sum()) - logits[labels]).mean()
    assert json.loads(result.stdout)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["own.toml", "--set", "model.factory=mymodel:bild"], 2, "mymodel"),
        (["own.toml", "--set", "model.factory=nowhere:build"], 2, "nowhere"),
        (["own.toml", "--set", "model.widht=3"], 2, "widht"),
        (["own.toml", "--set", "data.source=missing.txt"], 2, "no file at"),
        (["own.toml", "--out", "corpus"], 2, "the folder is not empty"),
        (["own.toml", "--set", "model.width=-1"], 2, "negative dimension"),
        (["broken.toml"], 1, "the model raised ValueError: no more today"),
        (["broken.toml", "--set", "batch.accumulation=exact"], 1, "(Residual) raised ValueError: no more today"),
    ],
)
def test_everything_that_goes_wrong_is_one_message(folder, monkeypatch, capsys, arguments, code, says):
    broken = (
        (folder / "mymodel.py")
        .read_text()
        .replace("        return x +", f"        {RAISE_IN_TRAINING}\n        return x +")
    )
    (folder / "brokenmodel.py").write_text(broken)
    (folder / "broken.toml").write_text((folder / "own.toml").read_text().replace("mymodel", "brokenmodel"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    try:
        assert main.run(["reference", *arguments]) == code
    finally:
        for name in ("mymodel", "brokenmodel"):
            sys.modules.pop(name, None)
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown
    of_the_file = code == 2 and "--out" not in arguments
    assert shown.startswith("zswarm: own.toml: ") is of_the_file


def test_ctrl_c_leaves_a_valid_run_folder(folder):
    with subprocess.Popen(
        command("reference", "own.toml", "--set", "run.steps=100000"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert json.loads(process.stdout.readline())["step"] == 0
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    summary = json.loads((folder / "runs" / "own-1" / "summary.json").read_text())
    metrics = (folder / "runs" / "own-1" / "metrics.jsonl").read_text().splitlines()
    assert summary["steps"] == len(metrics) == len(summary["loss"]) >= 1
