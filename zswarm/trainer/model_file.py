"""The trained model as one safetensors file, put together from the workers' layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from zswarm.errors import RunFailed
from zswarm.trainer.run_folder import replace_whole
from zswarm.trainer.settings import Store


class ModelFile:
    """Collects the layers' ranges; each layer is a safetensors file of its own in memory."""

    def __init__(self) -> None:
        self._layers: dict[int, bytearray] = {}

    def store(self, range_: Store) -> None:
        """Take one range; ranges of a layer come in their order."""
        layer = self._layers.setdefault(range_.layer, bytearray())
        del layer[range_.offset_bytes :]
        for frame in range_.load.frames:
            layer += frame

    def write(self, path: Path) -> None:
        """Write all layers as one file, tensors named `layers.<index>.<parameter>`.

        Raises:
            RunFailed: a worker sent what is no safetensors file, or the file cannot be written.

        """
        tensors: dict[str, np.ndarray] = {}
        for index, buffer in sorted(self._layers.items()):
            try:
                parameters = load(bytes(buffer))
            except SafetensorError as error:
                raise RunFailed(f"layer {index} came as what is no safetensors file: {error}") from None
            tensors |= {f"layers.{index}.{name}": tensor for name, tensor in parameters.items()}
        try:
            replace_whole(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
        except SafetensorError as error:
            raise RunFailed(f"{path}: cannot write the model: {error}") from None
