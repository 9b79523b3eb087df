"""`--device`: which devices of this machine workers compute on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from zswarm.errors import UserError

AUTO, CPU = "auto", "cpu"
NAME = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""NVIDIA's, that of Windows' Linux, AMD's: without any of them it is not worth a second to ask torch for cards."""
FIND_S = 60.0
"""How long a driver may take to say what there is."""


def _name(name: str) -> str:
    """Return what may be a device's name."""
    if not NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r} is no device: write cpu, cuda:0, cuda:1, ... or auto")
    return name


device_option = click.option(
    "--device",
    default=AUTO,
    show_default=True,
    metavar="NAME",
    callback=lambda _ctx, _param, name: _name(name),
    help="What to compute on: cpu, cuda:0, cuda:1, ...; auto takes a card if there is one.",
)
devices_option = click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    callback=lambda _ctx, _param, names: tuple(map(_name, names)),
    help="What workers compute on: cpu, cuda:0, cuda:1, ...; repeatable. Otherwise all cards, or the processor if there "
    "is none.",
)


def found_devices(names: Sequence[str]) -> dict[str, str]:
    """Return the devices that are asked for, all cards or the processor where none is; by name, with what each is.

    This process does not talk to any card, so that it may fork.

    Raises:
        UserError: one of them is not there.

    """
    # Whoever asks torch whether there is a card talks to the driver; asked so, it looks elsewhere.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    cards = _cards() if any(name != CPU for name in names) or not names else {}
    wanted: list[str] = []
    for name in names or (AUTO,):
        if name == AUTO:
            wanted += cards or [CPU]
        elif name != CPU and (name if ":" in name else f"{name}:0") not in cards:
            there = ", ".join(cards) if cards else "torch finds no card that it can use"
            raise UserError(f"--device {name}: {there}")
        else:
            wanted.append("cuda:0" if name == "cuda" else name)
    return {name: cards.get(name, "the processor") for name in wanted}


def _cards() -> dict[str, str]:
    """Return torch's cards with their makers' names, by asking in a process of its own."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return {}
    command = [sys.executable, "-m", "stages.devices"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=FIND_S)  # noqa: S603 - our own
        return {card["name"]: card["model"] for card in json.loads(done.stdout)}
    except (subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"cannot find out which cards there are ({error}): name them, or --device cpu") from None
