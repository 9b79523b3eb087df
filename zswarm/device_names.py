"""Devices of a machine by the names that they have on the command line: `cpu`, `cuda:0`, `cuda:1`; no torch.

`cuda` is torch's name for NVIDIA's and, in its build for them, AMD's cards. `auto` is the first card if there is one, else
the processor.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

AUTO, CPU = "auto", "cpu"
NAME = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""NVIDIA's, that of Windows' Linux, AMD's: where none of them is there is no card that torch could use."""


def is_name(text: str) -> bool:
    """May this be a device's name?"""
    return NAME.fullmatch(text) is not None


def has_driver() -> bool:
    """Is there a driver of cards?"""
    return any(Path(driver).exists() for driver in DRIVERS)


def prepare_for_cards() -> None:
    """Tell torch, before it is imported and before there are threads, what it reads from the environment.

    Whoever asks it whether there is a card would talk to the driver, which serves no forked child after that: so told, it
    looks elsewhere. And cuBLAS is deterministic only with a workspace of its own.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
