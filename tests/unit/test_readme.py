from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from zswarm.cli.main import app
from zswarm.config import load_run_file

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()


def blocks():
    """The code blocks of the README that a reader is told to save, by file name."""
    return dict(re.findall(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in blocks().items():
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("mymodel", None)


def test_the_run_files_are_valid(folder):
    assert load_run_file(folder / "run.toml").data.source == (str(folder / "corpus" / "*.txt"),)
    assert load_run_file(folder / "own.toml").model.factory == "mymodel:build"


def test_every_command_that_it_shows_exists():
    shown = set(re.findall(r"zswarm ([a-z]+)", README))
    shown -= {"trains"}
    assert shown
    assert shown <= set(app.commands)


def test_every_option_that_it_shows_exists():
    for command, options in re.findall(r"zswarm ([a-z]+) [^\n]*?((?: --[a-z]+[^\n#]*)+)", README):
        known = {name for parameter in app.commands[command].params for name in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_to_a_file_leads_somewhere(name):
    assert (TOP / name).is_file()


def test_the_commands_are_those_of_the_makefile():
    makefile = (TOP / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}: " in makefile
