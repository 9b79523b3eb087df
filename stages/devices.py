"""What torch makes of the devices of this machine; see zswarm/device_names.py for their names.

A process that will fork must not look at cards itself: the driver serves whoever has spoken to it, and not its children.
So `python -m stages.devices` tells what there is, in a process of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import torch

from zswarm.device_names import AUTO, CPU
from zswarm.errors import UserError, ZswarmError

ACCELERATOR_ERRORS: tuple[type[Exception], ...] = (
    (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
)
"""After one of them nothing works on the device any more in this process. Older versions of torch have no name for it."""


class BrokenDevice(ZswarmError):
    """A device that is there does not work now; it may work in another process, or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An accelerator that torch can compute on."""

    name: str
    """Such as `cuda:0`."""
    model: str
    """What its maker calls it."""
    memory_bytes: int


def cards() -> list[Card]:
    """Return those that this process may use."""
    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        Card(name=f"cuda:{index}", model=of.name, memory_bytes=of.total_memory) for index, of in enumerate(properties)
    ]


def device_named(name: str) -> torch.device:
    """Return a device, having tried it.

    Raises:
        UserError: there is no such device.
        BrokenDevice: it does not work.

    """
    if name == CPU or (name == AUTO and not torch.cuda.is_available()):
        return torch.device(CPU)
    index = torch.device("cuda" if name == AUTO else name).index or 0
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no card that it can use (torch {torch.__version__})")
    if index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {', '.join(card.name for card in cards())}")
    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device).add_(1.0).item()
    except RuntimeError as error:
        raise BrokenDevice(f"{device} does not work: {' '.join(str(error).split())[:300]}") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Does an error, of a device or of the host, say that there is no memory left?"""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def is_broken(error: BaseException) -> bool:
    """Does an error say that the device does not work any more in this process?"""
    return isinstance(error, ACCELERATOR_ERRORS) and not is_out_of_memory(error)


def main() -> None:
    """Print the cards as JSON."""
    sys.stdout.write(json.dumps([asdict(card) for card in cards()]))


if __name__ == "__main__":
    main()
