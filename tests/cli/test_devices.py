from __future__ import annotations

import json
from pathlib import Path

import pytest

from zswarm.cli import devices, local
from zswarm.cli.devices import found_devices
from zswarm.cli.main import run
from zswarm.config import load_run_file
from zswarm.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "tiny.toml"
CARDS = {"cuda:0": "NVIDIA A", "cuda:1": "NVIDIA B"}


@pytest.fixture(params=[{}, CARDS], ids=["no card", "two cards"])
def cards(request, monkeypatch):
    monkeypatch.setattr(devices, "_cards", lambda: request.param)
    return request.param


def test_without_a_word_all_cards_are_used_or_the_processor(cards):
    expected = cards or {"cpu": "the processor"}
    assert found_devices(()) == found_devices(("auto",)) == expected


def test_the_processor_needs_no_look_for_cards(monkeypatch):
    monkeypatch.setattr(devices, "_cards", lambda: pytest.fail("cards were looked for"))
    assert found_devices(("cpu",)) == {"cpu": "the processor"}


def test_devices_are_named_and_each_is_one(cards):
    if cards:
        assert found_devices(("cuda:1", "cpu", "cuda")) == {
            "cuda:1": "NVIDIA B",
            "cpu": "the processor",
            "cuda:0": "NVIDIA A",
        }
        assert found_devices(("cuda", "cuda:0")) == {"cuda:0": "NVIDIA A"}
    with pytest.raises(UserError, match=r"--device cuda:7: (torch finds no card|cuda:0, cuda:1)"):
        found_devices(("cuda:7",))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:01", "CPU", "cuda:1000"])
@pytest.mark.parametrize("command", ["local run.toml", "join", "worker", "reference run.toml"])
def test_what_is_no_device_is_told_before_anything_starts(command, name, capsys):
    assert run([*command.split(), "--device", name]) == 2
    assert f"'{name}' is no device: write cpu, cuda:0" in capsys.readouterr().err


def test_a_driver_that_does_not_answer_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("zswarm.device_names.DRIVERS", (str(tmp_path),))
    monkeypatch.setattr(devices.sys, "executable", "/bin/false")
    with pytest.raises(
        UserError, match=r"cannot find out which cards there are: exit code 1; --device cpu does without"
    ):
        found_devices(())


def test_a_process_of_its_own_says_what_cards_torch_finds(monkeypatch, tmp_path):
    monkeypatch.setattr("zswarm.device_names.DRIVERS", (str(tmp_path),))
    asked = []
    original = devices.subprocess.run

    def run_and_note(command, **options):
        asked.append((command, original(command, **options)))
        return asked[-1][1]

    monkeypatch.setattr(devices.subprocess, "run", run_and_note)
    found = devices._cards()
    ((command, done),) = asked
    assert (command[1:], done.returncode) == (["-m", "stages.devices"], 0)
    assert found == {card["name"]: card["model"] for card in json.loads(done.stdout)}


def test_a_device_without_workers_is_refused(capsys):
    assert run(["join", "--workers", "0", "--device", "cpu", "--host", "127.0.0.1"]) == 2
    assert "no workers that would use it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codec", "names", "imported"),
    [
        ("bnb8", ("cpu",), ["bitsandbytes"]),
        ("bnb8", ("cpu", "cuda:0"), []),
        ("bnb8", ("cuda:0",), []),
        ("int8", ("cpu",), []),
    ],
)
def test_what_looks_for_cards_is_not_imported_for_workers_that_have_any(codec, names, imported, monkeypatch):
    """Importing bitsandbytes spoke to the driver: no worker that was forked after that could use its card."""
    found: list[str] = []
    monkeypatch.setattr(local.importlib, "import_module", found.append)
    local._preload(load_run_file(EXAMPLE, [f"wire.codec={codec}"]), names)
    assert found == imported
