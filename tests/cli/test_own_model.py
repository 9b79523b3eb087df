from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def folder(tmp_path):
    for name, content in re.findall(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL):
        (tmp_path / name).write_text(content)
    return tmp_path


def zswarm(folder, *arguments):
    result = subprocess.run(
        [sys.executable, "-m", "zswarm", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readmes_own_model_trains_in_a_swarm_as_in_one_process(folder):
    """The readers' first own run: a swarm of 2 x 2 workers, its audit, a text, and the same losses in one process."""
    settings = ["--set", "run.steps=3", "--set", "wire.codec=none"]
    zswarm(folder, "local", "own.toml", *settings, "--workers", "2", "--brokers", "2", "--out", "swarm")
    zswarm(folder, "reference", "own.toml", *settings, "--out", "one")
    swarm, one = (json.loads((folder / out / "summary.json").read_text()) for out in ("swarm", "one"))
    assert swarm["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert swarm["held_out_loss"] == pytest.approx(one["held_out_loss"], rel=1e-4)
    assert (swarm["steps"], swarm["stages"], swarm["workers"]) == (3, 2, 4)
    assert "24 contributions = 3 steps x 2 stages x 4 microbatches" in zswarm(folder, "audit", "swarm")
    assert zswarm(folder, "generate", "swarm", "--prompt", "def ", "--length", "5").startswith("def ")
