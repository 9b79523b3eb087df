from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from zswarm.cli import trainer
from zswarm.cli.resuming import advice
from zswarm.errors import INTERRUPTED
from zswarm.machine import Exit
from zswarm.overseer import NOBODY, Overseer


@pytest.mark.parametrize(
    ("typed", "folder", "command"),
    [
        (["local", "run.toml"], "runs/run-1", "zswarm local run.toml --out runs/run-1"),
        (
            ["train", "run.toml", "--out", "runs/run-1", "--workers", "2"],
            "runs/run-1",
            "zswarm train run.toml --workers 2 --out runs/run-1",
        ),
        (["local", "--out=my runs/1", "run.toml"], "my runs/1", "zswarm local run.toml --out 'my runs/1'"),
        (
            ["local", "run.toml", "--set", 'data.source=["a b.txt"]'],
            "runs/run-1",
            "zswarm local run.toml --set 'data.source=[\"a b.txt\"]' --out runs/run-1",
        ),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_was_typed_with_the_runs_folder(typed, folder, command):
    assert advice(typed, Path(folder)) == f"to go on with it: {command}"


class Systemd(Overseer):
    """Starts the same service again."""


@pytest.mark.parametrize(
    ("code", "overseer", "says"),
    [
        (INTERRUPTED, NOBODY, "zswarm: to go on with it: zswarm train run.toml --out runs/run-1\n"),
        (INTERRUPTED, Systemd(), ""),
        (0, NOBODY, ""),
        (1, NOBODY, ""),
    ],
)
def test_whoever_interrupts_a_trainer_is_told_how_to_go_on(monkeypatch, capsys, code, overseer, says):
    """Ctrl-C said nothing. A service has no command that its user has typed."""

    def serve(_config, _plan, options, **_):
        options.open_folder()
        return Exit(code=code, text="")

    config = SimpleNamespace(run=SimpleNamespace(name="run", steps=2))
    monkeypatch.setattr(trainer.sys, "argv", ["zswarm", "train", "run.toml"])
    monkeypatch.setattr(trainer, "prepare_run", lambda *_: (None, None))
    monkeypatch.setattr(trainer, "open_run_folder", lambda *_, **__: SimpleNamespace(path=Path("runs/run-1")))
    monkeypatch.setattr(trainer, "started_by", lambda: overseer)
    monkeypatch.setattr(trainer, "_announce", lambda *_: 0)
    monkeypatch.setattr(trainer, "serve_trainer", serve)
    command = trainer.TrainerCommand(
        run_file=Path("run.toml"),
        out=None,
        listen="tcp://127.0.0.1:4711",
        workers=1,
        brokers=1,
        place=SimpleNamespace(key=None),
        begun_s=0.0,
    )
    assert trainer.run_trainer(config, command).code == code
    assert capsys.readouterr().err == f"zswarm: runs/run-1\n{says}"
