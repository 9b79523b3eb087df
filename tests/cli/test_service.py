"""`zswarm service` into a folder, with a systemctl that only takes notes; tests/lab has the real one."""

from __future__ import annotations

import os
import re
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from zswarm.cli import installation, main
from zswarm.cli.installation import Machine
from zswarm.errors import UserError
from zswarm.swarm_key import make_key_file

SOURCE = Path(__file__).parents[2]
PROGRAM = Path("/opt/zswarm/bin/zswarm")
SYSTEMCTL = (
    f"#!{sys.executable}"
    """
import pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
root, verb, *names = [word for word in sys.argv[1:] if not word.startswith("--now")]
if verb == "--version":
    print("systemd", (folder / "version").read_text())
wants = pathlib.Path(root.removeprefix("--root=")) / "etc/systemd/system/multi-user.target.wants"
for name in names if verb in ("enable", "disable") else ():
    wants.mkdir(parents=True, exist_ok=True)
    (wants / name).touch() if verb == "enable" else (wants / name).unlink()
sys.exit("it is broken" if verb == (folder / "broken").read_text() else 0)
"""
)


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """Return the folder of the only systemctl: its notes, its version, and at which verb it fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemctl").write_text(SYSTEMCTL)
    (folder / "systemctl").chmod(0o755)
    (folder / "version").write_text("252 (252.38)")
    (folder / "broken").write_text("")
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def install(root, *options):
    return main.run(["service", "install", "--root", str(root), *options])


def files(root):
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


SERVICES = ["zswarm-broker.service", "zswarm-beacon.service", "zswarm-trainer@.service", "zswarm-worker@.service"]
UNITS = [*SERVICES, "zswarm.slice"]


def test_it_writes_units_and_options_and_has_them_start_at_boot(systemctl, root, capsys):
    assert install(root, "--workers", "2") == 0
    wants = "etc/systemd/system/multi-user.target.wants/"
    started = ["zswarm-beacon.service", "zswarm-broker.service", "zswarm-worker@0.service", "zswarm-worker@1.service"]
    assert set(files(root)) == {
        *(f"etc/systemd/system/{unit}" for unit in UNITS),
        *(wants + unit for unit in started),
        "etc/zswarm/zswarm.conf",
    }
    assert {stat.S_IMODE(files(root)[f"etc/systemd/system/{unit}"].stat().st_mode) for unit in UNITS} == {0o644}
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"started at boot: {' '.join(started)}"
    assert said.count("wrote ") == len(UNITS) + 1


def test_once_more_does_nothing(systemctl, root, capsys):
    assert install(root) == 0
    (systemctl / "calls").unlink()
    before = {name: path.stat().st_mtime_ns for name, path in files(root).items()}
    capsys.readouterr()
    assert install(root) == 0
    assert capsys.readouterr().out == ""
    assert {name: path.stat().st_mtime_ns for name, path in files(root).items()} == before
    assert (systemctl / "calls").read_text() == f"--root={root} --version\n"


def test_units_are_written_anew_and_what_is_the_users_is_not(systemctl, root):
    assert install(root) == 0
    unit, conf = root / "etc/systemd/system/zswarm-broker.service", root / "etc/zswarm/zswarm.conf"
    shipped = unit.read_text()
    unit.write_text("[Service]\nExecStart=/bin/old\n")
    conf.write_text("ZSWARM_BROKER_OPTIONS=--coordinator tcp://10.0.0.1:4711\n")
    assert install(root) == 0
    assert unit.read_text() == shipped
    assert conf.read_text() == "ZSWARM_BROKER_OPTIONS=--coordinator tcp://10.0.0.1:4711\n"


def test_the_machine_is_as_the_last_command_says(systemctl, root, capsys):
    """Fewer workers, no broker; the user's own runs go on starting at boot."""
    assert install(root, "--workers", "2") == 0
    mine = root / "etc/systemd/system/multi-user.target.wants/zswarm-trainer@mine.service"
    mine.touch()
    capsys.readouterr()
    assert install(root, "--no-broker") == 0
    assert capsys.readouterr().out == "no longer started at boot: zswarm-broker.service zswarm-worker@1.service\n"
    still = ["zswarm-beacon.service", "zswarm-trainer@mine.service", "zswarm-worker@0.service"]
    assert Machine(root=root).enabled() == still


def test_uninstalling_leaves_what_is_the_users(systemctl, root, capsys):
    assert install(root) == 0
    make_key_file(root / "etc/zswarm/swarm.key")
    assert main.run(["service", "uninstall", "--root", str(root)]) == 0
    assert set(files(root)) == {"etc/zswarm/zswarm.conf", "etc/zswarm/swarm.key"}
    assert f"left as they are: {root}/etc/zswarm and {root}/var/lib/zswarm" in capsys.readouterr().out
    assert main.run(["service", "uninstall", "--root", str(root)]) == 0


def test_another_program_is_what_the_units_start(systemctl, root):
    assert install(root, "--program", "/srv/swarm-1.0/bin/zswarm") == 0
    for unit in SERVICES:
        text = (root / "etc/systemd/system" / unit).read_text()
        assert re.findall(r"^ExecStart=(\S+) ", text, flags=re.MULTILINE) == ["/srv/swarm-1.0/bin/zswarm"]
        assert str(PROGRAM) not in text


@pytest.mark.parametrize("program", ["relative/zswarm", "/with space/zswarm", "/percent%/zswarm", "/new\nline"])
def test_a_program_that_would_need_quoting_is_refused(systemctl, root, capsys, program):
    assert install(root, "--program", program) == 2
    assert "a service's program needs an absolute path" in capsys.readouterr().err
    assert files(root) == {}


# -- what the user can mend --------------------------------------------------------------------------


def refusal(capsys):
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("zswarm: ")
    assert said.err.count("\n") == 1
    return said.err


def test_whoever_is_not_root_is_told(systemctl, monkeypatch, capsys):
    monkeypatch.setattr(installation, "this_program", lambda: PROGRAM)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in ("install", "uninstall"):
        assert main.run(["service", command]) == 2
        assert "sudo" in refusal(capsys)
    assert not (systemctl / "calls").exists()


def test_a_machine_without_systemctl_is_told(systemctl, root, capsys):
    (systemctl / "systemctl").unlink()
    assert install(root) == 2
    assert "there is no systemctl here" in refusal(capsys)
    assert files(root) == {}


def test_a_systemd_that_is_too_old_is_told(systemctl, root, capsys):
    (systemctl / "version").write_text("245 (245.4)")
    assert install(root) == 2
    assert "this machine has systemd 245: zswarm's services need 247 or newer" in refusal(capsys)


def test_what_systemctl_says_is_passed_on(systemctl, root, capsys):
    (systemctl / "broken").write_text("enable")
    assert install(root) == 2
    said = capsys.readouterr().err
    assert (
        said
        == "zswarm: systemctl enable zswarm-beacon.service zswarm-broker.service zswarm-worker@0.service: it is broken\n"
    )


def test_without_a_key_this_machine_gets_no_services(systemctl, root, monkeypatch, capsys):
    monkeypatch.setattr(Machine, "is_this", True)
    monkeypatch.setattr(Machine, "check", lambda _: None)
    with pytest.raises(UserError, match=r"no swarm key: make one with `zswarm key init .*/swarm.key`"):
        list(installation.install(Machine(root=root), PROGRAM, num_workers=1, has_broker=True))
    assert files(root) == {}


def test_an_image_starts_nothing(systemctl, root, capsys):
    assert install(root, "--start") == 2
    assert "--start" in capsys.readouterr().err


# -- where services can reach the program ------------------------------------------------------------


@pytest.fixture
def open_folder(tmp_path, monkeypatch):
    """Return a folder that stands for one that everybody can enter."""
    monkeypatch.setattr(installation, "_HIDDEN", (tmp_path / "home",))
    for folder in (tmp_path / "home", tmp_path / "opt", tmp_path / "closed"):
        folder.mkdir()
        (folder / "file").touch()
        (folder / "file").chmod(0o644)
    monkeypatch.setattr(Path, "parents", property(lambda path: [path.parent]))
    return tmp_path


def test_a_program_that_services_cannot_reach_is_refused(open_folder):
    """They would fail with 203/EXEC and no word on why."""
    (open_folder / "closed").chmod(0o700)
    (open_folder / "opt").chmod(0o755)
    assert installation._obstacle(open_folder / "opt/file") is None
    assert installation._obstacle(open_folder / "home/file") == f"{open_folder}/home is hidden from services"
    assert installation._obstacle(open_folder / "closed/file") == f"{open_folder}/closed is closed to other users"
    (open_folder / "opt/file").chmod(0o640)
    assert installation._obstacle(open_folder / "opt/file") == "other users may not read it"


def test_the_program_of_this_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(installation.sys, "prefix", str(tmp_path))
    with pytest.raises(UserError, match=f"there is no {tmp_path}/bin/zswarm"):
        installation.this_program()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/zswarm").touch()
    monkeypatch.setattr(installation, "_obstacle", lambda _: "it is far away")
    with pytest.raises(UserError, match=r"it is far away; install zswarm for all users: `python3 -m venv /opt/zswarm"):
        installation.this_program()
    monkeypatch.setattr(installation, "_obstacle", lambda _: None)
    assert installation.this_program() == tmp_path / "bin/zswarm"


# -- what is shipped ---------------------------------------------------------------------------------


def test_what_is_shipped_is_all_that_there_is():
    """A kind of file that is not named in pyproject.toml would be missing from an installed wheel."""
    patterns = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "zswarm.cli"
    ]
    found = {
        path for pattern in patterns for path in (SOURCE / "zswarm/cli").glob(pattern) if path.parent.name == "units"
    }
    there = {path for path in (SOURCE / "zswarm/cli/units").iterdir() if path.suffix != ".md"}
    assert found == there
    assert {path.name for path in found} == {*UNITS, "zswarm.conf"}
    assert (SOURCE / "zswarm/cli/units").resolve() == SOURCE / "deploy/systemd"


def test_options_of_the_shipped_configuration_are_those_that_the_units_use():
    used = {
        name for unit in UNITS for name in re.findall(r"\$(ZSWARM_\w+)", (SOURCE / "deploy/systemd" / unit).read_text())
    }
    conf = (SOURCE / "deploy/systemd/zswarm.conf").read_text()
    assert set(re.findall(r"^(ZSWARM_\w+)=", conf, flags=re.MULTILINE)) == used
