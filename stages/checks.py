"""What a layer must be to live in a process of its own and be trained there."""

from __future__ import annotations

import torch
from torch import nn
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
                float32, or statistics that every worker would have its own of.

        """
        for module in layer.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:  # noqa: SLF001 - no public name
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
