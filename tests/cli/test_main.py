from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys

import pytest

from zswarm import __version__, audit
from zswarm.cli import main, trainer
from zswarm.cli.bench import bench
from zswarm.errors import REFUSED, TRY_LATER, RunFailed, UserError
from zswarm.ids import NodeId
from zswarm.machine import Exit
from zswarm.swarm_key import make_key_file

GOOD = """
[run]
steps = 2
[model]
d_model = 16
num_layers = 2
num_heads = 2
sequence_length = 8
[batch]
global_batch = 4
microbatch = 2
[pipeline]
stages = 2
"""


def zswarm(*arguments, environment=None):
    """Run the command in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-c", "from zswarm.cli.main import main; main()", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def modules_after(code):
    """Return the top-level modules that a fresh interpreter has after running `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in result.stderr.split()}


HEAVY = {"torch", "bitsandbytes", "pydantic", "numpy", "zmq", "rich", "structlog", "zeroconf", "psutil"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["local", "--help"], ["broker", "--help"], ["join", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    """It starts in a fraction of a second on any machine."""
    assert not HEAVY & modules_after(f"from zswarm.cli.main import run; run({arguments!r})")


def test_a_broker_imports_neither_torch_nor_the_trainers_libraries():
    assert not {"torch", "bitsandbytes", "pydantic", "numpy"} & modules_after("import brokers.service")


def test_the_trainer_imports_no_torch():
    assert not {"torch", "bitsandbytes"} & modules_after("import zswarm.trainer.service")


def test_help_names_every_command_and_every_command_has_help():
    shown = zswarm("--help").stdout
    commands = re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2], re.MULTILINE)
    assert {
        "local",
        "reference",
        "audit",
        "generate",
        "broker",
        "worker",
        "train",
        "simulate",
        "bench",
        "chaos",
        "key",
        "init",
        "join",
        "beacon",
        "doctor",
        "pause",
        "resume",
        "service",
        "move",
    } == set(commands)
    for command in commands:
        result = zswarm(command, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith(f"Usage: zswarm {command}")


@pytest.mark.parametrize("command", ["codec", "broker", "training", "faults", "rebalancing", "equality"])
def test_every_benchmark_has_help_and_a_body(command):
    """The options of the command are parameters of the function that it calls."""
    assert zswarm("bench", command, "--help").stdout.startswith(f"Usage: zswarm bench {command}")
    module = importlib.import_module(f"zswarm.benchmarks.{command}")
    body = module.equality if command == "equality" else module.main
    inspect.signature(body).bind(**{parameter.name: None for parameter in bench.commands[command].params})


def test_the_version_is_printed():
    assert zswarm("--version").stdout == f"zswarm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audi", "x"], "No such command 'audi'"),
        (["audit"], "Missing argument"),
        (["local", "run.toml", "--wokers", "3"], "No such option"),
        (["local", "run.toml", "--workers", "0"], "--workers"),
        (["local", "run.toml", "--workers", "two"], "--workers"),
        (["audit", "/nowhere"], "/nowhere: cannot read"),
        (["local", "/nowhere.toml"], "/nowhere.toml: there is no such run file"),
        (["broker", "--coordinator", "localhost:1"], "--coordinator: 'localhost:1' is no address: write tcp://"),
        (["worker", "--coordinator", "tcp://127.0.0.1:1", "--allow", "lab-models"], "'lab-models' is no module"),
        (["worker", "--coordinator", "tcp://127.0.0.1:1", "--allow", "lab..models"], "'lab..models' is no module"),
        (["worker", "--coordinator", "tcp://192.168.0.2:4711"], "make one with `zswarm key init`"),
        (
            ["broker", "--coordinator", "tcp://127.0.0.1:1", "--host", "10.0.0.1"],
            "--host: 'tcp://10.0.0.1:*' is not of",
        ),
        (["worker", "--coordinator", "tcp://127.0.0.1:1", "--key", "/nowhere"], "/nowhere: cannot read the swarm key"),
        (["local", "run.toml", "--key", "/dev/null"], "/dev/null: is no file"),
        (["move", b"\xff", "1"], "NODE: '\\udcff' is no name for a process: write one of 1 to 128 characters"),
        (["move", "x" * 5000, "1"], "xxx...' is no name for a process"),
        (["broker", "--name", b"\xff"], "--name: '\\udcff' is no name for a process"),
        (
            ["worker", "--coordinator", "tcp://127.0.0.1:1", "--name", "a\nb"],
            "--name: 'a\\nb' is no name for a process",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_exit_code_2(arguments, says):
    result = zswarm(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_wrong_key_on_the_command_line_is_told(tmp_path):
    (tmp_path / "run.toml").write_text(GOOD)
    result = zswarm("local", str(tmp_path / "run.toml"), "--set", "wire.codec=int9")
    assert result.returncode == 2
    assert result.stderr == (
        f"zswarm: {tmp_path}/run.toml: --set wire.codec=int9: wire.codec = 'int9': "
        'must be "bf16", "bnb8", "int8" or "none"; did you mean int8?\n'
    )


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("write something else"), 2, "zswarm: write something else\n"),
        (RunFailed("worker-3 raised"), 1, "zswarm: worker-3 raised\n"),
        (KeyboardInterrupt(), 130, ""),
        (KeyError("x"), 1, "zswarm: this is a bug of zswarm: KeyError: 'x'; ZSWARM_TRACEBACK=1"),
    ],
)
def test_every_way_to_fail_has_its_exit_code_and_no_traceback(monkeypatch, capsys, error, code, says):
    def fail(_):
        raise error

    monkeypatch.setattr(audit, "audit", fail)
    assert main.run(["audit", "x"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(says)
    assert "Traceback" not in shown


def test_a_bug_shows_where_it_comes_from_when_asked(monkeypatch, capsys):
    def fail(_):
        raise KeyError("x")

    monkeypatch.setattr(audit, "audit", fail)
    monkeypatch.setenv("ZSWARM_TRACEBACK", "1")
    assert main.run(["audit", "x"]) == 1
    assert "in fail" in capsys.readouterr().err


def test_the_audit_of_a_good_run_prints_its_verdicts_and_that_of_a_bad_one_where(tmp_path, capsys):
    events = tmp_path / "events.jsonl"
    start = (
        '{"event":"start","run":"1","generation":1,"stages":1,"split":[3],"steps":1,"num_microbatches":2}\n'
        '{"event":"join","node":"w","role":"worker","session":5,"stage":0}\n'
    )
    commit = '{"event":"commit","branch":0,"step":0,"stages":[{"stage":0,"round":4294967297,"digest":3,"contributions":{"5":[0,1]}}]}\n'
    finish = '{"event":"finish","steps":1}\n'
    events.write_text(start + commit + finish)
    assert main.run(["audit", str(tmp_path)]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", name] for name in ("log", "steps", "stages", "ledgers", "sessions", "end")
    ]
    events.write_text(start + commit.replace("[0,1]", "[0,0]") + finish)
    assert main.run(["audit", str(events)]) == 1
    shown = capsys.readouterr()
    assert "line 3, step 0, stage 0: microbatch 0 is counted 2 times, by sessions 5" in shown.out
    assert "microbatch 1 is missing" in shown.out
    assert shown.err == f"zswarm: {events}: what was committed is not what was asked for\n"


@pytest.mark.parametrize(("ended", "code", "says"), [(0, 0, ""), (1, 1, "zswarm: why\n"), (130, 130, "")])
def test_the_exit_code_of_a_trainer_is_how_its_run_ended(monkeypatch, capsys, tmp_path, ended, code, says):
    """Ctrl-C at `zswarm train` ended with exit code 1, as if the run had failed."""
    (tmp_path / "run.toml").write_text(GOOD)
    monkeypatch.setattr(main, "_node", lambda *_: NodeId("trainer"))
    monkeypatch.setattr(trainer, "run_trainer", lambda *_: Exit(code=ended, text="why"))
    assert main.run(["train", str(tmp_path / "run.toml")]) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("ended", "code", "says"), [(0, 0, ""), (1, 1, "zswarm: why\n"), (REFUSED, REFUSED, "zswarm: why\n")]
)
def test_a_process_that_a_run_does_not_take_has_an_exit_code_of_its_own(monkeypatch, capsys, ended, code, says):
    """Whoever starts processes again must know when that is of no use."""
    monkeypatch.setattr(main, "_node", lambda *_: NodeId("broker"))
    monkeypatch.setattr("brokers.service.serve_broker", lambda **_: Exit(code=ended, text="why"))
    assert main.run(["broker", "--coordinator", "tcp://127.0.0.1:4711"]) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(("command", "says"), [("broker", "no way there"), ("train", "no such address")])
def test_a_network_that_is_not_there_yet_has_an_exit_code_of_its_own(monkeypatch, capsys, tmp_path, command, says):
    """At boot, what time mends must not look like what only the user can mend: it is started again."""
    make_key_file(tmp_path / "key")
    (tmp_path / "run.toml").write_text(GOOD)

    def connect(*_):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr("zswarm.transport.addresses.socket.socket.connect", connect)
    # Of TEST-NET-1: no machine has it.
    options = {
        "broker": ("--coordinator", "tcp://192.0.2.1:4711"),
        "train": (str(tmp_path / "run.toml"), "--listen", "tcp://192.0.2.1:4711", "--out", str(tmp_path / "out")),
    }
    assert main.run([command, *options[command], "--key", str(tmp_path / "key")]) == TRY_LATER == 75
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trainer_that_cannot_listen_leaves_no_folder_behind(tmp_path):
    """Each attempt at a port that was taken left an empty run folder."""
    (tmp_path / "run.toml").write_text(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        out = tmp_path / "out"
        result = zswarm("train", str(tmp_path / "run.toml"), "--listen", address, "--out", str(out))
    assert result.returncode == 2
    assert f"cannot listen on {address}" in result.stderr
    assert not out.exists()


def test_children_log_to_stderr_with_their_name():
    """Without a log of its own, a child's warning went to stdout, in between the lines of JSON."""
    program = (
        "from zswarm.cli.family import Family\n"
        "from zswarm.logs import get_log\n"
        "with Family() as family:\n"
        "    family.fork('broker-7', lambda: get_log().warning('message dropped') or 0)\n"
        "    family.end(grace_s=20.0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout == ""
    assert '"event": "message dropped"' in result.stderr
    assert '"node": "broker-7"' in result.stderr


def test_a_child_ignores_an_interrupt_from_its_first_moment_on():
    """Ctrl-C between the fork and the child's first line made it print a traceback."""
    program = (
        "import os, signal\n"
        "from zswarm.cli.family import Family\n"
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "with Family() as family:\n"
        "    family.fork('worker-7', lambda: print('alive') or 0)\n"
        "    family.end(grace_s=20.0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("alive\n", "")


@pytest.mark.parametrize("value", ["nan", "inf", "0"])
def test_a_capacity_is_a_finite_number(capsys, value):
    """Nan is in every range of click, and infinity in those without an end."""
    assert main.run(["broker", "--coordinator", "tcp://127.0.0.1:4711", "--capacity-gib", value]) == 2
    assert "Invalid value for '--capacity-gib'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [("NotYet", TRY_LATER), ("UserError", 2), ("RunFailed", 1)])
def test_a_child_says_with_its_exit_code_who_can_mend_it(error, code):
    """What time may mend looked like what only the user can: one such child ended `zswarm join`."""
    program = (
        "from zswarm import errors\n"
        "from zswarm.cli.family import Family, wake_on_signals\n"
        "def fail():\n"
        f"    raise errors.{error}('no network')\n"
        "with Family() as family, wake_on_signals() as wait:\n"
        "    family.fork('worker-7', fail)\n"
        "    while not (ended := family.reap()):\n"
        "        wait(20.0)\n"
        "    print(*(each.code for each in ended.values()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (f"{code}\n", "zswarm: worker-7: no network\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code(name):
    """A second SIGTERM for a `zswarm join` that had left in peace made it 143."""
    program = (
        "import atexit, os, signal, sys\n"
        "from zswarm.cli.main import main\n"
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n"
        "sys.argv[1:] = ['--version']\n"
        "main()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=60).returncode == 0
