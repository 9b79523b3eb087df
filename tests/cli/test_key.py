"""`zswarm key push` and `rotate`, with an ssh that runs its command on this machine in another home; `zswarm init`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zswarm.config import load_run_file
from zswarm.swarm_key import make_key_file, read_key_file

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "tiny.toml"

SSH = """#!/bin/sh
# ssh MACHINE COMMAND
case "$1" in
    down) echo "ssh: connect to host down port 22: No route to host" >&2; exit 255;;
esac
mkdir -p "{homes}/$1"
HOME="{homes}/$1" XDG_CONFIG_HOME= exec sh -c "$2"
"""


@pytest.fixture
def zswarm(tmp_path):
    """Return a function that runs a command as a user whose home is `tmp_path / "me"`."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "ssh").write_text(SSH.format(homes=tmp_path))
    (binaries / "ssh").chmod(0o755)

    def run(*arguments):
        environment = dict(
            os.environ,
            PATH=f"{binaries}:{os.environ['PATH']}",
            HOME=str(tmp_path / "me"),
            XDG_CONFIG_HOME="",
            PYTHONPATH=str(Path(__file__).parents[2]),
        )
        return subprocess.run(
            [sys.executable, "-m", "zswarm", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def key_of(tmp_path, who):
    return tmp_path / who / ".config" / "zswarm" / "key"


def test_init_makes_a_key_and_a_run_file_and_touches_neither_again(zswarm, tmp_path):
    made = zswarm("init")
    assert made.returncode == 0, made.stderr
    key = read_key_file(key_of(tmp_path, "me"))
    content = (tmp_path / "run.toml").read_text()
    assert "[model]" in content
    (tmp_path / "run.toml").write_text(content + "# mine\n")
    again = zswarm("init")
    assert again.returncode == 0
    assert again.stdout.count("is there already") == 2
    assert read_key_file(key_of(tmp_path, "me")) == key
    assert (tmp_path / "run.toml").read_text().endswith("# mine\n")


@pytest.mark.parametrize(
    ("run_file", "name", "shown"),
    [
        ("run.toml", "run", "run.toml"),
        ("prose-2.toml", "prose-2", "prose-2.toml"),
        ("my prose.toml", "run", "'my prose.toml'"),
        ("prose\n2.toml", "run", "RUN.toml"),
    ],
)
def test_init_makes_a_run_file_of_the_users_own(zswarm, tmp_path, run_file, name, shown):
    """It began with the path of an example that is not there, and the run was called "tiny". The rest is the example."""
    assert zswarm("init", run_file).returncode == 0
    path = tmp_path / os.fsdecode(run_file)
    content = path.read_text()
    assert "tiny" not in content
    assert f"#     zswarm train {shown} " in content
    made, example = load_run_file(path), load_run_file(EXAMPLE)
    assert made == example.model_copy(update={"run": example.run.model_copy(update={"name": name})})
    named = f'name = "{name}"'.ljust(25)
    assert f"\n{named}# names the run folder: runs/{name}-1, runs/{name}-2, ...\n" in content


def test_push_copies_the_key_for_its_owner_alone_and_names_who_has_not_got_it(zswarm, tmp_path):
    make_key_file(key_of(tmp_path, "me"))
    pushed = zswarm("key", "push", "lab2", "down", "lab3")
    assert pushed.returncode == 2
    assert "No route to host" in pushed.stdout
    assert "has not reached down" in pushed.stderr
    for machine in ("lab2", "lab3"):
        assert read_key_file(key_of(tmp_path, machine)) == read_key_file(key_of(tmp_path, "me"))
        assert stat.S_IMODE(key_of(tmp_path, machine).parent.stat().st_mode) == 0o700


def test_push_without_a_key_says_how_to_make_one(zswarm):
    pushed = zswarm("key", "push", "lab2")
    assert pushed.returncode == 2
    assert "zswarm key init" in pushed.stderr


def test_an_option_is_no_machine(zswarm, tmp_path):
    make_key_file(key_of(tmp_path, "me"))
    assert zswarm("key", "push", "--", "-oProxyCommand=true").returncode == 2


def test_rotate_makes_another_key_keeps_the_old_one_and_pushes(zswarm, tmp_path):
    make_key_file(key_of(tmp_path, "me"))
    old = read_key_file(key_of(tmp_path, "me"))
    for _ in range(2):
        rotated = zswarm("key", "rotate", "lab2")
        assert rotated.returncode == 0, rotated.stderr
        new = read_key_file(key_of(tmp_path, "me"))
        assert new != old
        assert read_key_file(key_of(tmp_path, "me").with_name("key.old")) == old
        assert read_key_file(key_of(tmp_path, "lab2")) == new
        old = new
