"""A run with a model of the user's own, on machines that do not all allow it."""

from __future__ import annotations

from zswarm.audit import audit
from zswarm.cli.family import free_port
from zswarm.errors import REFUSED

MODEL = """
from pathlib import Path

from stages.transformer import gpt

Path("imported").touch()

def build(**arguments):
    return gpt(**arguments)
"""


def test_one_bad_machine_does_not_stop_the_run(zswarm):
    """It imports nothing, and both users read machine, module and cure; the run goes on with those that allow it."""
    run_file = zswarm.folder / "run.toml"
    run_file.write_text(run_file.read_text().replace('factory = "gpt"', 'factory = "lab_models:build"'))
    (zswarm.folder / "lab_models.py").write_text(MODEL)
    address = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
    trainer = zswarm.start_any(
        *("train", "run.toml", "--listen", address, "--workers", "1", "--brokers", "1", "--out", "out"),
        *("--set", "pipeline.stages=1", "--set", "run.steps=2"),
    )
    trainer.wait_for_word("out")
    (zswarm.folder / "imported").unlink()
    bad = zswarm.start_any("worker", "--coordinator", address, "--name", "bad")
    code, errors = bad.wait()
    assert code == REFUSED, errors
    last = errors.splitlines()[-1]
    assert last.startswith("zswarm: bad: model.factory = 'lab_models:build' is code of the module lab_models")
    assert f"`zswarm worker --coordinator {address} --name bad --allow lab_models`" in last
    assert not (zswarm.folder / "imported").exists()
    good = [zswarm.start_any("worker", "--coordinator", address, "--allow", "lab_models")]
    good.append(zswarm.start_any("broker", "--coordinator", address))
    code, errors = trainer.wait()
    assert code == 0, errors
    assert [command.wait()[0] for command in good] == [0, 0]
    assert "bad (stage 0) is gone: it takes no part: model.factory = 'lab_models:build'" in errors
    assert "--allow lab_models" in errors
    assert all(check.is_passed for check in audit(trainer.folder))
