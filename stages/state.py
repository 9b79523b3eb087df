r"""The state of a stage's layers as files, out and in: what checkpoints and workers that come late are made of.

    PARAMETERS   all of the layer's state_dict, by its names
    OPTIMIZER    `<state>.<parameter>`, shaped like the parameter, for each trainable parameter of the layer, such as
                 `exp_avg.linear.weight`; and what belongs to no parameter by its own name, such as `step`

Each is a safetensors file in memory. There is one per layer, so that layers can be cut into other stages: the flat
state of a stage is put together from the files of its layers.

    present state --save--> file --ranges--> ... --ranges--> imported files --adopt, all or nothing--> present state
          \---keep_copy---> copy --save--> file
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.engine import StageEngine, one_line
from stages.model import layer_name
from stages.optimizer import FlatOptimizer
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.ids import StatePart

FILES_KEPT = 2
"""Files that were exported last: one of a copy for a checkpoint, one for a worker that comes late."""

Layers = list[dict[str, Tensor]]
File = tuple[StatePart, int]


@dataclass(frozen=True, slots=True)
class _State:
    """All of a stage's at one moment: the state_dict of each layer, and the optimizer's flat tensors."""

    layers: Layers
    optimizer: dict[str, Tensor]


@dataclass(slots=True)
class _Incoming:
    """A file that comes in ranges."""

    total_bytes: int
    content: bytearray = field(default_factory=bytearray)


class StageState:
    """See the module. Layers are named by their index in the whole model."""

    def __init__(self, engine: StageEngine, optimizer: FlatOptimizer) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._copy: _State | None = None
        self._files: OrderedDict[tuple[StatePart, int, bool], bytes] = OrderedDict()
        self._incoming: dict[File, _Incoming] = {}

    # -- out -----------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Parameters and optimizer are no longer what has been exported."""
        self._forget(of_copy=False)

    def keep_copy(self) -> None:
        """Copy the present state to the host, in place of an earlier copy."""
        self._forget(of_copy=True)
        self._copy = None  # before the next one is made: there is never room for two
        values = self._engine.parameters.values
        copied = values.to("cpu", copy=True)

        def copy_of(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() == values.untyped_storage().data_ptr():
                return copied.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
            return tensor.to("cpu", copy=True)

        present = self._present()
        self._copy = _State(
            layers=[{name: copy_of(tensor) for name, tensor in layer.items()} for layer in present.layers],
            optimizer={name: tensor.to("cpu", copy=True) for name, tensor in present.optimizer.items()},
        )

    def file(self, part: StatePart, layer: int, *, from_copy: bool) -> bytes:
        """Return the whole file of one layer, of the present state or of the copy.

        Raises:
            LocalProtocolError: the layer is not one of this stage's, or there is no copy.

        """
        key = (part, layer, from_copy)
        if key not in self._files:
            state = self._copy if from_copy else self._present()
            if state is None:
                raise LocalProtocolError("no copy of the state is kept")
            tensors = self._tensors(state, part, layer)
            # Copies: layers may use one tensor under two names, which safetensors refuses.
            copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            self._files[key] = save(copies)
        self._files.move_to_end(key)
        while len(self._files) > FILES_KEPT:
            self._files.popitem(last=False)
        return self._files[key]

    def _forget(self, *, of_copy: bool) -> None:
        for key in [key for key in self._files if key[2] is of_copy]:
            del self._files[key]

    def _present(self) -> _State:
        return _State(layers=[layer.state_dict() for layer in self._engine.layers], optimizer=self._optimizer.state)

    def _tensors(self, state: _State, part: StatePart, layer: int) -> dict[str, Tensor]:
        """Return what is in a layer's file; the tensors are views of the state."""
        index = layer - self._engine.first_layer
        if not 0 <= index < len(self._engine.layers):
            raise LocalProtocolError(f"layer {layer} is not one of this stage's")
        if part is StatePart.PARAMETERS:
            return state.layers[index]
        tensors = {}
        for name, tensor in state.optimizer.items():
            if tensor.dim() == 0:
                tensors[name] = tensor
                continue
            for slot in self._engine.parameters.slots:
                if slot.layer == index:
                    tensors[f"{name}.{slot.name}"] = slot.of(tensor)
        return tensors

    # -- in ------------------------------------------------------------------------------------------

    def receive_untrusted(
        self, part: StatePart, layer: int, *, offset_bytes: int, total_bytes: int, frames: Iterable[Any]
    ) -> None:
        """Keep a range of a layer's file until `adopt`; one at offset 0 begins the file anew.

        Raises:
            LocalProtocolError: the layer is not one of this stage's.
            RemoteProtocolError: the range does not follow the one before, or goes beyond the file's end.

        """
        where = self._name(part, layer)
        if offset_bytes == 0:
            self._incoming[part, layer] = _Incoming(total_bytes)
        file = self._incoming.get((part, layer), _Incoming(total_bytes))
        if (offset_bytes, total_bytes) != (len(file.content), file.total_bytes):
            raise RemoteProtocolError(
                f"{where}: a range from byte {offset_bytes} of {total_bytes} after {len(file.content)} of "
                f"{file.total_bytes} bytes"
            )
        views = [memoryview(frame).cast("B") for frame in frames]
        if len(file.content) + sum(len(view) for view in views) > total_bytes:
            raise RemoteProtocolError(f"{where}: a range goes beyond the file's {total_bytes} bytes")
        for view in views:
            file.content += view

    def adopt(self) -> None:
        """Make what was received the present state, if it is all that these layers need; forget it in any case.

        Raises:
            RemoteProtocolError: a file is missing or is not what its layer needs; nothing has changed then.
            LocalProtocolError: a layer does not take its own state_dict.

        """
        files, self._incoming = self._incoming, {}
        present = self._present()
        own = range(self._engine.first_layer, self._engine.first_layer + len(self._engine.layers))
        found = {
            (part, layer): self._checked_untrusted(files, present, part, layer) for part in StatePart for layer in own
        }
        self._check_equal_scalars({layer: found[StatePart.OPTIMIZER, layer] for layer in own})
        self._forget(of_copy=False)
        for layer, module in zip(own, self._engine.layers, strict=True):
            try:
                module.load_state_dict(found[StatePart.PARAMETERS, layer])
            except RuntimeError as error:
                raise LocalProtocolError(f"{self._name(StatePart.PARAMETERS, layer)}: {one_line(error)}") from error
            for name, target in self._tensors(present, StatePart.OPTIMIZER, layer).items():
                target.copy_(found[StatePart.OPTIMIZER, layer][name])

    def _checked_untrusted(
        self, files: dict[File, _Incoming], present: _State, part: StatePart, layer: int
    ) -> dict[str, Tensor]:
        """Return the tensors of a received file, which are those that the present state has there."""
        where = self._name(part, layer)
        file = files.get((part, layer))
        if file is None or len(file.content) != file.total_bytes:
            raise RemoteProtocolError(f"{where}: nothing, or not all of it, was received")
        try:
            found = load(bytes(file.content))
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise RemoteProtocolError(f"{where}: not a safetensors file: {one_line(error)}") from error
        expected = self._tensors(present, part, layer)
        if found.keys() != expected.keys():
            names = ", ".join(sorted(found.keys() ^ expected.keys()))
            raise RemoteProtocolError(f"{where}: missing or unknown: {names}")
        for name, tensor in expected.items():
            if (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
                raise RemoteProtocolError(
                    f"{where}: {name} is {found[name].dtype} {list(found[name].shape)} instead of "
                    f"{tensor.dtype} {list(tensor.shape)}"
                )
        return found

    def _check_equal_scalars(self, optimizer: dict[int, dict[str, Tensor]]) -> None:
        """What belongs to no parameter, such as AdamW's count of steps, is the same in all layers."""
        first, *others = optimizer
        for name, tensor in optimizer[first].items():
            if name not in self._optimizer.state:
                continue  # a parameter's own
            for layer in others:
                if not torch.equal(optimizer[layer][name], tensor):
                    raise RemoteProtocolError(
                        f"{self._name(StatePart.OPTIMIZER, layer)}: {name} is {float(optimizer[layer][name])} and that of "
                        f"layer {first} is {float(tensor)}"
                    )

    def _name(self, part: StatePart, layer: int) -> str:
        index = layer - self._engine.first_layer
        if not 0 <= index < len(self._engine.layers):
            raise LocalProtocolError(f"layer {layer} is not one of this stage's")
        return f"{layer_name(self._engine.layers[index], layer)}, {part.name.lower()}"
