"""zswarm's services under a real systemd: they come at boot, come back, stop, and do not try for ever."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import pytest

from tests.lab.container import DEADLINE_S, SOURCE, Unavailable, container

BEACON, BROKER, WORKER = "zswarm-beacon.service", "zswarm-broker.service", "zswarm-worker@0.service"
TRAINER = "zswarm-trainer@small.service"
UNITS = SOURCE / "deploy" / "systemd"
RUN_FILE = """
[run]
steps = 100000
[model]
d_model = 16
num_layers = 2
num_heads = 2
sequence_length = 8
[data]
source = "text.txt"
[batch]
global_batch = 4
microbatch = 2
[pipeline]
stages = 1
[wire]
codec = "none"
[checkpoint]
every = 2
"""


NETWORK = (
    "ip link add lab0 type veth peer name far && ip address add 10.9.9.1/24 dev lab0 && "
    "ip link set lab0 up && ip link set far up"
)
"""What it takes to have an address that others could be told; until then the beacon is started again and again."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Return one machine for all tests of this module; each starts what it needs."""
    try:
        with container(tmp_path_factory.mktemp("lab")) as machine:
            machine.run("sh", "-c", NETWORK)
            yield machine
    except Unavailable as why:
        pytest.skip(f"no machine with a systemd can be made here: {why}")


pytestmark = pytest.mark.xdist_group("lab")
"""Processes that share the tests would each make a machine, and be slower together."""


def is_running(unit):
    return unit["SubState"] == "running"


def pid(machine, unit):
    return machine.show(unit)["MainPID"]


# -- as they are written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "most"),
    [("zswarm-broker", 1.5), ("zswarm-beacon", 1.5), ("zswarm-trainer@", 1.5), ("zswarm-worker@", 2.0)],
)
def test_the_exposure_is_small(unit, most, tmp_path):
    """As systemd scores it, 0 to 10; one that is not hardened has 9.5."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    shutil.copy(UNITS / f"{unit}.service", tmp_path)
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", tmp_path / f"{unit}.service"],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    if "unrecognized option" in said.stderr:
        pytest.skip("this systemd-analyze judges no file")
    figure = re.search(r"exposure level for .*: ([0-9.]+) ", said.stdout)
    assert figure is not None, said
    assert float(figure[1]) <= most


def test_systemd_understands_every_line(machine):
    """It exits with 0 whatever it does not understand; what it says is what counts."""
    names = [path.name.replace("@.", "@0.") for path in sorted([*UNITS.glob("*.service"), *UNITS.glob("*.slice")])]
    assert machine.run("systemd-analyze", "verify", *(f"/etc/systemd/system/{name}" for name in names)) == ""


# -- at boot -----------------------------------------------------------------------------------------


def test_they_start_at_boot(machine):
    """The boot is over once they are ready: with the key that only root can read, as users of their own."""
    for unit in (BROKER, WORKER):
        found = machine.show(unit)
        assert (found["SubState"], found["NRestarts"]) == ("running", "0"), machine.journal(unit)
        assert found["StatusText"].startswith("waiting for a place in the run of tcp://127.0.0.1:4711")
        assert len(machine.said(unit, "listening")) == 1
        assert found["Slice"] == "zswarm.slice"
        assert machine.run("ps", "-o", "euid=", "-p", found["MainPID"]).strip() != "0"


# -- coming back -------------------------------------------------------------------------------------


def test_what_hangs_is_ended_by_the_watchdog_and_comes_back(machine):
    """Where it hung is in the journal."""
    with machine.changed(BROKER, "[Service]\nWatchdogSec=2"):
        machine.systemctl("start", BROKER)
        hung = pid(machine, BROKER)
        machine.run("kill", "-STOP", hung)
        found = machine.wait(BROKER, lambda unit: is_running(unit) and unit["MainPID"] != hung)
        assert found["NRestarts"] == "1"
        said = machine.journal(BROKER)
        assert "Fatal Python error: Aborted" in said
        assert "zswarm/loop.py" in said
        # A loop that turns has fed it again after that.
        machine.wait(BROKER, lambda unit: unit["WatchdogTimestampMonotonic"] != found["WatchdogTimestampMonotonic"])


def test_what_is_killed_comes_back(machine):
    machine.systemctl("start", BROKER)
    before = machine.show(BROKER)
    machine.systemctl("kill", "-s", "KILL", BROKER)
    found = machine.wait(BROKER, lambda unit: is_running(unit) and unit["MainPID"] != before["MainPID"])
    assert int(found["NRestarts"]) == int(before["NRestarts"]) + 1


# -- not for ever ------------------------------------------------------------------------------------


def test_a_wrong_option_is_not_tried_again(machine):
    wrong = 'Environment="ZSWARM_BROKER_OPTIONS=--coordinator nowhere"'
    with machine.changed(BROKER, f"[Service]\n{wrong}\nEnvironmentFile=\n"):
        machine.systemctl("start", BROKER, code=1)
        found = machine.show(BROKER)
        assert (found["ActiveState"], found["ExecMainStatus"], found["NRestarts"]) == ("failed", "2", "0")
        assert "'nowhere' is no address" in machine.journal(BROKER)


def test_without_a_key_nothing_is_tried_again(machine):
    machine.run("mv", "/etc/zswarm/swarm.key", "/etc/zswarm/elsewhere")
    machine.systemctl("restart", BROKER, code=1)
    found = machine.show(BROKER)
    assert (found["ActiveState"], found["ExecMainStatus"]) == ("failed", "243")
    machine.run("mv", "/etc/zswarm/elsewhere", "/etc/zswarm/swarm.key")
    machine.systemctl("reset-failed", BROKER)


@pytest.mark.parametrize(("code", "returns"), [(78, False), (2, False), (70, True), (0, True)])
def test_who_is_refused_stays_away_and_who_has_failed_comes_back(machine, code, returns):
    """78: the run does not take it. 70: its device hangs. 0: the run is over, and there may be another one."""
    program = f'ExecStart=sh -c "systemd-notify --ready; exit {code}"'
    with machine.changed(BROKER, f"[Service]\nNotifyAccess=all\nRestartSec=0\nExecStart=\n{program}\n"):
        machine.systemctl("start", BROKER, code=None)
        found = machine.wait(BROKER, lambda unit: unit["ActiveState"] == "failed" or unit["NRestarts"] != "0")
        assert (found["NRestarts"] != "0") is returns


def test_what_dies_at_once_again_and_again_is_left_alone(machine):
    """After 5 times here, so that it takes no minute."""
    unit = machine.show(BROKER)
    assert (unit["StartLimitBurst"], unit["StartLimitIntervalUSec"]) == ("60", "10min")
    with machine.changed(BROKER, "[Unit]\nStartLimitBurst=5\n[Service]\nExecStart=\nExecStart=false\nRestartSec=0\n"):
        machine.systemctl("start", BROKER, code=1)
        found = machine.wait(BROKER, lambda unit: unit["ActiveState"] == "failed")
        assert found["NRestarts"] == "5"


# -- a run -------------------------------------------------------------------------------------------


def test_a_run_survives_kill_9_and_stops_to_be_gone_on_with(machine, tmp_path):
    """Its folder is the service's own; worker and broker stay for the next run when it has ended."""
    machine.run("sh", "-c", f"cat > /etc/zswarm/runs/small.toml <<'END'\n{RUN_FILE}\nEND")
    machine.run("sh", "-c", "seq 20000 > /etc/zswarm/runs/text.txt")
    machine.systemctl("start", BROKER, WORKER)
    before = {unit: machine.show(unit)["NRestarts"] for unit in (BROKER, WORKER)}
    machine.systemctl("enable", "--now", TRAINER)
    first = machine.wait(TRAINER, lambda unit: re.match(r"step [1-9]", unit["StatusText"]))["MainPID"]
    for unit in (BROKER, WORKER):
        machine.wait(unit, lambda unit: unit["StatusText"].startswith("stage 0 of 1, step "))
    machine.systemctl("kill", "-s", "KILL", TRAINER)
    machine.wait(
        TRAINER, lambda unit: unit["MainPID"] not in ("0", first) and re.match(r"step [1-9]", unit["StatusText"])
    )
    machine.systemctl("stop", TRAINER)
    found = machine.show(TRAINER)
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == ("inactive", "success", "130")
    summary = json.loads(machine.run("cat", "/var/lib/zswarm/small/summary.json"))
    assert summary["steps"] > 1
    machine.run("/opt/zswarm/bin/zswarm", "audit", "/var/lib/zswarm/small")
    for unit, num_restarts in before.items():
        machine.wait(unit, lambda unit, before=num_restarts: unit["NRestarts"] != before)
        assert machine.said(unit, "ended")[-1]["reason"] == "the run is over"


def test_a_network_that_comes_up_late_is_waited_for(machine):
    """At boot an address may be missing for a while, whatever network-online.target says."""
    options = "--coordinator tcp://10.77.7.7:4711"
    with machine.changed(BROKER, f'[Service]\nEnvironmentFile=\nEnvironment="ZSWARM_BROKER_OPTIONS={options}"\n'):
        machine.systemctl("start", BROKER, code=1)
        machine.wait(BROKER, lambda unit: unit["NRestarts"] != "0")
        assert "this machine has no way there: Network is unreachable" in machine.journal(BROKER)
        machine.run("ip", "address", "add", "10.77.7.7/24", "dev", "lo")
        found = machine.wait(BROKER, is_running)
        assert found["StatusText"] == "waiting for a place in the run of tcp://10.77.7.7:4711"


def test_without_a_trainers_address_they_ask_the_machines_beacon(machine):
    """The broker has a line on what it does meanwhile."""
    machine.wait(BEACON, lambda unit: unit["StatusText"] == "sees 0 machines and 0 runs")
    with machine.changed(BROKER, "[Service]\nEnvironmentFile=\n"):
        machine.systemctl("start", BROKER)
        found = machine.wait(BROKER, lambda unit: "1 machines" in unit["StatusText"])
        assert found["StatusText"] == "looks for a run; sees 1 machines and 0 runs"
    machine.systemctl("stop", BEACON)
    found = machine.show(BEACON)
    assert (found["ActiveState"], found["Result"]) == ("inactive", "success")
    machine.systemctl("start", BEACON)


# -- stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [BROKER, WORKER])
def test_stopping_is_a_farewell(machine, unit):
    """The process hears SIGTERM and leaves by itself, long before it would be killed."""
    machine.systemctl("start", unit)
    begun_s = time.monotonic()
    machine.systemctl("stop", unit)
    assert time.monotonic() - begun_s < 10.0
    found = machine.show(unit)
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == ("inactive", "success", "0")
    assert machine.said(unit, "ended")[-1]["reason"] == "asked to leave"


# -- installing and removing -------------------------------------------------------------------------


def zswarm(machine, *arguments, code=0):
    return machine.run("/opt/zswarm/bin/zswarm", "service", *arguments, code=code)


def test_installing_again_changes_nothing_and_fewer_workers_are_fewer(machine):
    """On the machine itself, by the program that the services start."""
    assert zswarm(machine, "install") == ""
    assert zswarm(machine, "install", "--workers", "2") == "started at boot: zswarm-worker@1.service\n"
    assert zswarm(machine, "install") == "no longer started at boot: zswarm-worker@1.service\n"
    machine.run("chmod", "644", "/etc/zswarm/swarm.key")
    assert "the swarm key has mode 0644" in zswarm(machine, "install", code=2)
    machine.run("chmod", "600", "/etc/zswarm/swarm.key")


def test_removing_leaves_what_is_the_users(machine):
    """The last test of this machine."""
    machine.run("mkdir", "-p", "/var/lib/zswarm/run")
    zswarm(machine, "uninstall")
    assert (
        machine.run("sh", "-c", "systemctl list-units --all --no-legend 'zswarm-*'; pgrep -f ^/opt/zswarm", code=1)
        == ""
    )
    zswarm(machine, "uninstall")
    assert machine.run("ls", "/etc/zswarm").split() == ["runs", "swarm.key", "zswarm.conf"]
    machine.run("test", "-e", "/var/lib/zswarm/run")
    assert zswarm(machine, "install", "--workers", "0", "--start").splitlines()[-1] == f"running: {BEACON} {BROKER}"
    assert is_running(machine.show(BROKER))
