"""`zswarm`: the commands, their options, and the one place where an error becomes a message and an exit code.

A command's body is imported when it is called: `zswarm --help`, a broker and the audit import no torch.

    0    done
    1    the run failed, or the audit found a violation
    2    something that the user can mend
    130  Ctrl-C
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from zswarm import __version__
from zswarm.errors import RunFailed, UserError
from zswarm.ids import Address, NodeId
from zswarm.machine import Exit

BEGUN_S = monotonic()
"""When the user's command began, as nearly as it can be known."""
ADDRESS = re.compile(r"tcp://[^:/\s]+:[0-9]{1,5}|tcp://\[[0-9a-fA-F:]+\]:[0-9]{1,5}")
SHOW_TRACEBACK = "ZSWARM_TRACEBACK"

app = typer.Typer(
    help="Train neural networks that are too big for one card on machines that are too unreliable for "
    "ordinary pipeline parallelism.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(
    help="Measure this machine's speed at what a run is made of.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(bench, name="bench")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set a key of the run file; may be given several times."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run folder, new or empty; otherwise the next free one in runs/.")
]
Threads = Annotated[int, typer.Option(min=1, metavar="N", help="Threads that torch may use for one operation.")]
Coordinator = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where the trainer listens, such as tcp://192.168.0.2:4711.")
]
Host = Annotated[str, typer.Option(metavar="IP", help="This machine's address, to listen on.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What this process is called in logs.")]
Level = Annotated[str, typer.Option(metavar="LEVEL", help="Least level that is logged: debug, info, warning, error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"zswarm {__version__}")
        raise typer.Exit


@app.callback()
def _zswarm(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def local(
    run_file: RunFile,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Workers of each stage.")] = 2,
    brokers: Annotated[int, typer.Option(min=1, metavar="N", help="Brokers of each stage.")] = 1,
    out: Out = None,
    overrides: Overrides = None,
    threads: Threads = 1,
) -> None:
    """Train with a whole swarm on this machine: a trainer, brokers and workers over loopback."""
    from zswarm.cli.local import LocalOptions, run_local
    from zswarm.config import load_run_file

    _allow_own_models()
    options = LocalOptions(
        run_file=run_file, out=out, workers=workers, brokers=brokers, threads=threads, begun_s=BEGUN_S
    )
    raise typer.Exit(run_local(load_run_file(run_file, overrides or ()), options))


@app.command()
def audit(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]) -> None:
    """Recompute from a run's events that every microbatch of every step was counted exactly once."""
    from zswarm.audit import audit

    checks = audit(folder)
    for check in checks:
        print(check)
    if not all(check.is_passed for check in checks):
        raise RunFailed(f"{folder}: what was committed is not what was asked for")


@app.command()
def broker(
    coordinator: Coordinator,
    host: Host = "127.0.0.1",
    name: Name = None,
    capacity_gib: Annotated[float, typer.Option(min=0.01, metavar="GIB", help="Most memory for payloads.")] = 1.0,
    level: Level = "info",
) -> None:
    """Take part in a run as a broker: hold a stage's queue, until the run is over."""
    from brokers.service import serve_broker

    address, node = _address(coordinator), _node("broker", name, level)
    _end(serve_broker(node=node, coordinator=address, host=host, capacity_bytes=int(capacity_gib * 2**30)))


@app.command()
def worker(
    coordinator: Coordinator,
    host: Host = "127.0.0.1",
    name: Name = None,
    threads: Threads = 1,
    level: Level = "info",
) -> None:
    """Take part in a run as a worker: compute one stage, until the run is over."""
    from stages.service import serve_worker

    address, node = _address(coordinator), _node("worker", name, level)
    _end(serve_worker(node=node, coordinator=address, host=host, threads=threads))


@bench.command("codec")
def bench_codec(
    threads: Threads = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Relative error, bytes and GB/s of each codec."""
    from zswarm.benchmarks.codec import main

    main(as_json=as_json, threads=threads)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        app(arguments, prog_name="zswarm")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except UserError as error:
        return _fail(str(error), 2)
    except RunFailed as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the top of the main thread: whatever else it is, it is our bug
        if os.environ.get(SHOW_TRACEBACK):
            traceback.print_exc()
        text = f"this is a bug of zswarm: {type(error).__name__}: {error}"
        return _fail(f"{text}; {SHOW_TRACEBACK}=1 in the environment shows where it comes from", 1)
    return 0


def _fail(text: str, code: int) -> int:
    print(f"zswarm: {text}", file=sys.stderr)
    return code


def _allow_own_models() -> None:
    """Let model.factory name a module in the current folder, as `python -m` does, but after installed ones."""
    sys.path.append(str(Path.cwd()))


def _address(text: str) -> Address:
    if not ADDRESS.fullmatch(text):
        raise UserError(f"--coordinator {text}: write tcp://HOST:PORT, such as tcp://192.168.0.2:4711")
    return Address(text)


def _node(role: str, name: str | None, level: str) -> NodeId:
    """Name this process and set up its log."""
    from zswarm.logs import set_up_logs

    node = name or f"{role}-{os.uname().nodename}-{os.getpid()}"
    set_up_logs(node, level=level)
    return NodeId(node)


def _end(end: Exit) -> None:
    if end.code != 0:
        raise RunFailed(end.text)
