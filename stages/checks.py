"""What a layer must be to live in a process of its own and be trained there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from zswarm.errors import UserError


class LayerCheck:
    """Looks at the layers of a model one after the other; those seen before need not live on."""

    def __init__(self) -> None:
        self._owners: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def look(self, layer: nn.Module, name: str) -> None:
        """Check one layer; `name` is what users know it by.

        Raises:
            UserError: it has a parameter that an earlier layer has too, a trainable one that is not
                float32, statistics that every worker would have its own of, or a state_dict that is not of tensors alone.

        """
        for module in layer.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:  # noqa: SLF001 - no public name
                raise UserError(
                    f"model: {name} has a {type(module).__name__}, whose running statistics every worker would have "
                    "its own of: use GroupNorm or LayerNorm, or track_running_stats=False"
                )
        for parameter_name, parameter in layer.named_parameters():
            where = f"{name}, parameter {parameter_name}"
            if parameter in self._owners:
                raise UserError(
                    f"model: {where} is also {self._owners[parameter]}: layers live in different processes and cannot share "
                    "parameters; let each factory make its own module"
                )
            self._owners[parameter] = where
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise UserError(f"model: {where} is {parameter.dtype}: parameters must be torch.float32")
        layout(layer, name)


def layout(layer: nn.Module, name: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shapes and dtypes of a layer's state, which is what checkpoints and workers that come late are made of.

    Raises:
        UserError: something in it is no tensor, or one that has no shape yet.

    """
    state: dict[str, Any] = layer.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"model: {name} has {key!r} in its state_dict, which is a {type(value).__name__}: only tensors are saved and given to "
                "workers that come late; keep what changes in a buffer (register_buffer), and leave out what does not"
            )
        if nn.parameter.is_lazy(value):
            raise UserError(
                f"model: {name}, parameter {key} has no shape before a forward: use a module that is not lazy"
            )
    return {key: (value.shape, value.dtype) for key, value in state.items()}
