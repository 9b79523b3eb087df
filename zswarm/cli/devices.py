"""`--device`: which devices of this machine workers compute on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import click

from zswarm.device_names import AUTO, CPU, has_driver, is_name, prepare_for_cards
from zswarm.errors import UserError

FIND_S = 60.0
"""How long a driver may take to say what there is."""
PROCESSOR = "the processor"


def _checked(name: str) -> str:
    """Return what may be a device's name."""
    if not is_name(name):
        raise click.BadParameter(f"{name!r} is no device: write cpu, cuda:0, cuda:1, ... or auto")
    prepare_for_cards()
    return name


device_option = click.option(
    "--device",
    default=AUTO,
    show_default=True,
    metavar="NAME",
    callback=lambda _ctx, _param, name: _checked(name),
    help="What to compute on: cpu, cuda:0, cuda:1, ...; auto takes the first card if there is one.",
)
devices_option = click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    callback=lambda _ctx, _param, names: tuple(map(_checked, names)),
    help="What workers compute on: cpu, cuda:0, cuda:1, ...; repeatable. Otherwise all cards, or the processor if there "
    "is none.",
)


def found_devices(names: Sequence[str]) -> dict[str, str]:
    """Return the devices that are asked for, all cards or the processor where none is; by name, with what each is.

    This process does not talk to any card, so that it may fork.

    Raises:
        UserError: one of them is not there.

    """
    prepare_for_cards()
    cards = {} if names and set(names) == {CPU} else _cards()
    wanted: list[str] = []
    for name in names or (AUTO,):
        if name == AUTO:
            wanted += cards or [CPU]
        elif name != CPU and (name if ":" in name else f"{name}:0") not in cards:
            there = ", ".join(cards) if cards else "torch finds no card that it can use"
            raise UserError(f"--device {name}: {there}")
        else:
            wanted.append("cuda:0" if name == "cuda" else name)
    return {name: cards.get(name, PROCESSOR) for name in wanted}


def described(devices: dict[str, str]) -> str:
    """Say for people which devices these are."""
    return ", ".join(f"{name} ({model})" for name, model in devices.items())


def _cards() -> dict[str, str]:
    """Return torch's cards with their makers' names, by asking in a process of its own, a second long."""
    if not has_driver():
        return {}
    command = [sys.executable, "-m", "stages.devices"]
    why = "no answer"
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=FIND_S)  # noqa: S603 - our own
        if done.returncode == 0:
            return {card["name"]: card["model"] for card in json.loads(done.stdout)}
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        why = str(error)
    raise UserError(f"cannot find out which cards there are: {why}; --device {CPU} does without")
