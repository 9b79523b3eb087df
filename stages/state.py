r"""The state of a stage's layers as files, out and in: what checkpoints and workers that come late are made of.

    PARAMETERS   all of the layer's state_dict, by its names
    OPTIMIZER    `<state>.<parameter>`, shaped like the parameter, for each trainable parameter of the layer, such as
                 `exp_avg.linear.weight`; and what belongs to no parameter by its own name, such as `step`
    GRADIENT     `lr`, and `gradient.<parameter>` for each trainable parameter; nothing, where a step was skipped

Each is a safetensors file in memory. There is one per layer, so that layers can be cut into other stages, and so that a
layer can be taken over and brought up to date by itself.

    present state --save--> file --ranges--> ... --ranges--> both files of a layer --> that layer's state
          |---keep_copy---> copy --save--> file             then its steps, one after the other
          |----retain---> files of a few layers
    an optimizer step --keep_gradients--> gradient --save--> file
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.engine import StageEngine, one_line
from stages.flat import Slot
from stages.model import layer_name
from stages.optimizer import STEP, FlatOptimizer
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.ids import STATE_FILES, StatePart, Step

FILES_KEPT = 2
"""Files that were exported last, of either sort: one of a copy for a checkpoint, one for a worker that comes late."""

LR = "lr"
K = TypeVar("K")

Layers = list[dict[str, Tensor]]
File = tuple[StatePart, int]


@dataclass(frozen=True, slots=True)
class _State:
    """All of a stage's at one moment: the state_dict of each layer, and the optimizer's flat tensors."""

    layers: Layers
    optimizer: dict[str, Tensor]


@dataclass(slots=True)
class Incoming:
    """A file that comes in ranges."""

    total_bytes: int
    content: bytearray = field(default_factory=bytearray)

    def take_untrusted(self, where: str, offset_bytes: int, total_bytes: int, frames: Iterable[Any]) -> None:
        """Add a range.

        Raises:
            RemoteProtocolError: it does not follow the one before, or goes beyond the file's end.

        """
        if (offset_bytes, total_bytes) != (len(self.content), self.total_bytes):
            raise RemoteProtocolError(
                f"{where}: a range from byte {offset_bytes} of {total_bytes} after {len(self.content)} of "
                f"{self.total_bytes} bytes"
            )
        views = [memoryview(frame).cast("B") for frame in frames]
        if len(self.content) + sum(len(view) for view in views) > total_bytes:
            raise RemoteProtocolError(f"{where}: a range goes beyond the file's {total_bytes} bytes")
        for view in views:
            self.content += view


@dataclass(frozen=True, slots=True)
class _Applied:
    """What a step has done: the flat gradient as it was applied, on the host; None where the step was skipped."""

    gradient: Tensor | None
    lr: float


class StageState:
    """See the module. Layers are named by their index in the whole model."""

    def __init__(self, engine: StageEngine, optimizer: FlatOptimizer) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._copy: _State | None = None
        self._files: OrderedDict[tuple[StatePart, int, bool], bytes] = OrderedDict()
        self._retained: dict[tuple[int, Step], dict[StatePart, bytes]] = {}
        self._gradients: dict[Step, _Applied] = {}
        self._gradient_files: OrderedDict[tuple[int, Step], bytes] = OrderedDict()
        self._incoming: dict[File, Incoming] = {}

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

        def make() -> bytes:
            state = self._copy if from_copy else self._present()
            if state is None:
                raise LocalProtocolError("no copy of the state is kept")
            tensors = self._tensors(state, part, layer)
            # Copies: layers may use one tensor under two names, which safetensors refuses.
            return save({name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()})

        return _recent(self._files, (part, layer, from_copy), make)

    def retain(self, wanted: Iterable[tuple[int, Step]], step: Step) -> None:
        """Keep layers as they are at the beginning of some steps: of `step` now, of earlier ones what is kept already."""
        before, self._retained = self._retained, {}
        for layer, since in wanted:
            if since == step:
                files = {part: self.file(part, layer, from_copy=False) for part in STATE_FILES}
                self._retained[layer, since] = files
            elif (layer, since) in before:
                self._retained[layer, since] = before[layer, since]

    def keep_gradients(self, steps: Iterable[Step], step: Step, gradient: Tensor | None, *, lr: float) -> None:
        """Keep what some steps have done: `step`, by a gradient as it was applied or by nothing, and earlier ones."""
        before, self._gradients = self._gradients, {}
        for since in steps:
            if since == step:
                copied = gradient.to("cpu", copy=True) if gradient is not None else None
                self._gradients[since] = _Applied(copied, lr)
            elif since in before:
                self._gradients[since] = before[since]
        for key in [key for key in self._gradient_files if key[1] not in self._gradients]:
            del self._gradient_files[key]

    def kept_file(self, part: StatePart, layer: int, step: Step) -> bytes:
        """Return a file of a layer at the beginning of a step, or of what that step has done to it.

        Raises:
            LocalProtocolError: it is not kept.

        """
        if part is not StatePart.GRADIENT:
            if (layer, step) not in self._retained:
                raise LocalProtocolError(f"layer {layer} is not kept as it was at the beginning of step {step}")
            return self._retained[layer, step][part]
        if step not in self._gradients:
            raise LocalProtocolError(f"the gradient of step {step} is not kept")
        applied, slots = self._gradients[step], self._slots(self._index(layer))

        def make() -> bytes:
            if applied.gradient is None:
                return save({})
            return save(_gradient_file(slots, applied.gradient, applied.lr))

        return _recent(self._gradient_files, (layer, step), make)

    def _forget(self, *, of_copy: bool) -> None:
        for key in [key for key in self._files if key[2] is of_copy]:
            del self._files[key]

    def _present(self) -> _State:
        return _State(layers=[layer.state_dict() for layer in self._engine.layers], optimizer=self._optimizer.state)

    def _tensors(self, state: _State, part: StatePart, layer: int) -> dict[str, Tensor]:
        """Return what is in a layer's file; the tensors are views of the state."""
        index = self._index(layer)
        if part is StatePart.PARAMETERS:
            return state.layers[index]
        tensors = {}
        for name, tensor in state.optimizer.items():
            if name == STEP:
                tensors[name] = tensor[index]
                continue
            for slot in self._slots(index):
                tensors[f"{name}.{slot.name}"] = slot.of(tensor)
        return tensors

    def _slots(self, index: int) -> list[Slot]:
        return [slot for slot in self._engine.parameters.slots if slot.layer == index]

    def _index(self, layer: int) -> int:
        """Return a layer's place in this stage."""
        index = layer - self._engine.first_layer
        if not 0 <= index < len(self._engine.layers):
            raise LocalProtocolError(f"layer {layer} is not one of this stage's")
        return index

    # -- in ------------------------------------------------------------------------------------------

    def receive_untrusted(
        self, part: StatePart, layer: int, *, offset_bytes: int, total_bytes: int, frames: Iterable[Any]
    ) -> None:
        """Take a range of a layer's file; one at offset 0 begins the file anew. What is complete becomes the layer's state.

        Raises:
            LocalProtocolError: the layer is not one of this stage's, or does not take its own state_dict.
            RemoteProtocolError: the range does not follow the one before, or goes beyond the file's end; or the file is not
                what the layer needs, which is as it was then.

        """
        where = self._name(part, layer)
        if offset_bytes == 0:
            self._incoming[part, layer] = Incoming(total_bytes)
        file = self._incoming.get((part, layer), Incoming(total_bytes))
        file.take_untrusted(where, offset_bytes, total_bytes, frames)
        if len(file.content) < total_bytes:
            return
        if part is StatePart.GRADIENT:
            del self._incoming[part, layer]
            self._take_step_untrusted(layer, bytes(file.content))
        elif all(self._is_complete(other, layer) for other in STATE_FILES):
            self._replace_untrusted(layer, [bytes(self._incoming.pop((other, layer)).content) for other in STATE_FILES])

    def _is_complete(self, part: StatePart, layer: int) -> bool:
        file = self._incoming.get((part, layer))
        return file is not None and len(file.content) == file.total_bytes

    def _replace_untrusted(self, layer: int, files: Sequence[bytes]) -> None:
        """Make two files the state of a layer, if they are what it needs."""
        self._forget(of_copy=False)
        present = self._present()
        parameters, optimizer = (
            self._checked_untrusted(content, self._tensors(present, part, layer), part, layer)
            for part, content in zip(STATE_FILES, files, strict=True)
        )
        try:
            self._engine.layers[self._index(layer)].load_state_dict(parameters)
        except RuntimeError as error:
            raise LocalProtocolError(f"{self._name(StatePart.PARAMETERS, layer)}: {one_line(error)}") from error
        for name, target in self._tensors(present, StatePart.OPTIMIZER, layer).items():
            target.copy_(optimizer[name])

    def _take_step_untrusted(self, layer: int, content: bytes) -> None:
        """Take the optimizer step of a file, if it is what the layer needs."""
        self._forget(of_copy=False)
        index = self._index(layer)
        parameters = self._engine.parameters
        expected = _gradient_file(self._slots(index), parameters.values, 0.0)
        found = self._checked_untrusted(content, expected, StatePart.GRADIENT, layer, or_nothing=True)
        if not found:
            return
        region = parameters.regions[index]
        gradient = torch.zeros_like(parameters.values[region])
        for slot in self._slots(index):
            slot._replace(offset=slot.offset - region.start).of(gradient).copy_(found[_gradient_of(slot)])
        self._optimizer.step_layer(index, gradient, lr=float(found[LR]))

    def adopt(self) -> None:
        """Begin with what has been received: nothing older is given to anybody, and nothing is half here.

        Raises:
            RemoteProtocolError: the layers have not taken the same number of steps. Where the optimizer counts none (SGD)
                the digest of the parameters alone is compared, by the coordinator.

        """
        self._retained, self._gradients, self._incoming = {}, {}, {}
        self._gradient_files.clear()
        steps = self._optimizer.state.get(STEP, torch.zeros(1))
        for index, taken in enumerate(steps.tolist()):
            if taken != steps[0]:
                first = self._engine.first_layer
                raise RemoteProtocolError(
                    f"{self._name(StatePart.OPTIMIZER, first + index)}: step is {taken} and that of layer {first} is "
                    f"{float(steps[0])}"
                )

    def _checked_untrusted(
        self, content: bytes, expected: dict[str, Tensor], part: StatePart, layer: int, *, or_nothing: bool = False
    ) -> dict[str, Tensor]:
        """Return the tensors of a received file, which are those that are expected, or, if that may be, none."""
        where = self._name(part, layer)
        try:
            found = load(content)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise RemoteProtocolError(f"{where}: not a safetensors file: {one_line(error)}") from error
        if or_nothing and not found:
            return found
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

    def _name(self, part: StatePart, layer: int) -> str:
        return f"{layer_name(self._engine.layers[self._index(layer)], layer)}, {part.name.lower()}"


def _recent(files: OrderedDict[K, bytes], key: K, make: Callable[[], bytes]) -> bytes:
    """Return a file, made if it is not among those that were asked for last."""
    if key not in files:
        files[key] = make()
    files.move_to_end(key)
    while len(files) > FILES_KEPT:
        files.popitem(last=False)
    return files[key]


def _gradient_of(slot: Slot) -> str:
    return f"gradient.{slot.name}"


def _gradient_file(slots: Iterable[Slot], gradient: Tensor, lr: float) -> dict[str, Tensor]:
    """Return what is in the file of a step, for a layer's slots of a flat gradient; the tensors are views."""
    return {LR: torch.tensor(lr, dtype=torch.float64), **{_gradient_of(slot): slot.of(gradient) for slot in slots}}
