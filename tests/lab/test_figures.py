"""`python -m tests.lab.figures` where it cannot measure anything."""

from __future__ import annotations

import sys

import pytest

from tests.lab import figures, ground


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["figures", *arguments])
        monkeypatch.setattr(figures.signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            figures.main()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", ["join", "shares", "churn"])
def test_without_root_it_says_why_it_cannot(run, monkeypatch, command):
    monkeypatch.setattr(ground.os, "geteuid", lambda: 1000)
    code, said = run(command)
    assert code == 2
    assert said == "figures: a laboratory needs root: it is made of network namespaces and control groups\n"


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(run, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "why_not", lambda: None)
    monkeypatch.setattr(figures, "site", lambda: pytest.fail("it measures"))
    code, said = run("join", "--json", str(tmp_path / "nowhere" / "file.json"))
    assert code == 2
    assert "cannot be written" in said


def test_an_option_that_makes_no_sense_is_told(run):
    assert run("churn", "--every", "0")[0] == 2
