"""Are two models the same, bit by bit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from zswarm.errors import RunFailed


def differences(found: Path, expected: Path) -> list[str]:
    """Return the names of the tensors that are not the same in two safetensors files: missing, of another type or
    shape, or with another bit anywhere.

    Raises:
        RunFailed: a file cannot be read.

    """
    ours, theirs = _tensors(found), _tensors(expected)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise RunFailed(f"{path}: cannot read the model: {error.strerror}") from None
    except SafetensorError as error:
        raise RunFailed(f"{path}: no model: {error}") from None
