"""One look through a model before anything is cut: do its layers chain, and what does each cost?

Each layer is built and run forward once on a microbatch of zeros, then dropped. The first layers are built
for real, which is quick and gives the errors that training would give; once they come to REAL_PARAMETERS,
the following ones are built on torch's meta device, which knows shapes and no numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from stages.checks import LayerCheck, layout
from stages.engine import one_line
from stages.model import Model, build_layer, layer_name
from zswarm import limits
from zswarm.config import BYTE_VALUES
from zswarm.errors import UserError

REAL_PARAMETERS = 30_000_000
ATTENTION_MATMULS = 2
OPERATIONS_PER_BYTE = 5.0
"""100 GFLOP/s beside 20 GB/s of one core; a GPU's ratio is larger, but its small operations cost more too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """One layer as the microbatch goes through it."""

    name: str
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype
    output_shape: tuple[int, ...]
    output_dtype: torch.dtype
    num_parameters: int
    flops: int
    """Of matrix products and the like in a forward; the last layer's include the loss."""
    traffic_bytes: int
    """Read and written by all other operations of a forward."""


def trace(model: Model, *, batch_size: int, sequence_length: int, seed: int) -> tuple[LayerTrace, ...]:
    """Run integer tokens [batch_size, sequence_length] through all layers and the loss.

    They are the largest byte, so that too small a vocabulary shows here and not in the middle of a run.

    Raises:
        UserError: a layer cannot be built, does not take what the one before it gives, returns something
            that cannot travel, cannot be trained here, or the loss is no single number.

    """
    x = tokens = torch.full((batch_size, sequence_length), BYTE_VALUES - 1, dtype=torch.int64)
    before = f"the tokens, int64 {list(x.shape)} of 0 to {BYTE_VALUES - 1}"
    traces: list[LayerTrace] = []
    check = LayerCheck()
    num_parameters = 0
    with _one_thread(), torch.no_grad():
        for index in range(len(model.layers)):
            device = torch.device("cpu" if num_parameters <= REAL_PARAMETERS else "meta")
            layer = _build(model, index, seed, device)
            name = layer_name(layer, index)
            check.look(layer, name)
            before_forward = layout(layer, name)
            x = x.to(device) if x.device.type == "cpu" else x
            inputs = x
            with _uncompiled(), _Meter() as meter:
                x = _call(layer, name, x, before)
                if index == len(model.layers) - 1:
                    _check_loss(model, x, tokens.to(x.device))
            _check_layout(layer, name, before_forward)
            own = sum(parameter.numel() for parameter in layer.parameters())
            num_parameters += own
            traces.append(
                LayerTrace(
                    name=name,
                    input_shape=tuple(inputs.shape),
                    input_dtype=inputs.dtype,
                    output_shape=tuple(x.shape),
                    output_dtype=x.dtype,
                    num_parameters=own,
                    flops=meter.flops,
                    traffic_bytes=meter.traffic_bytes,
                )
            )
            before = f"what {name} returns, {_describe(x)}"
    return tuple(traces)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the operations within it compute and move."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.traffic_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; saying so saves the second that importing the compiler takes."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
        elif "flash_attention" in func.name():
            self.flops += _attention_flops(args[0], args[1])
        elif not func.is_view:
            self.traffic_bytes += sum(tensor.nbytes for tensor in _tensors((args, kwargs, out)))
        return out


def _attention_flops(q: Tensor, k: Tensor) -> int:
    """Return the products of q [..., T, K] with k [..., S, K] and of the scores with the values."""
    return ATTENTION_MATMULS * 2 * q.numel() * k.shape[-2]


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from starting threads: the process may fork afterwards, and threads do not survive that."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _uncompiled() -> AbstractContextManager[None]:
    """Run compiled layers as they are written: compiling takes long, and would compile the meter, too."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _build(model: Model, index: int, seed: int, device: torch.device) -> nn.Module:
    try:
        with device if device.type == "meta" else nullcontext():
            return build_layer(model, index, seed)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"model: layer {index} cannot be built: {one_line(error)}") from error


def _call(layer: nn.Module, name: str, x: Tensor, before: str) -> Tensor:
    try:
        out = layer(x)
    except (Exception, SystemExit) as error:
        raise UserError(f"model: {name} does not take {before}: {one_line(error)}") from error
    if not isinstance(out, Tensor):
        raise UserError(f"model: {name} returns a {type(out).__name__}: a layer must return one tensor")
    if not out.is_floating_point() or out.dtype == torch.float64:
        raise UserError(f"model: {name} returns {_describe(out)}: it must be of a floating-point dtype, not float64")
    if out.dim() > limits.MAX_DIMENSIONS or max(out.shape, default=0) > limits.MAX_DIMENSION:
        raise UserError(
            f"model: {name} returns {_describe(out)}: at most {limits.MAX_DIMENSIONS} dimensions travel, "
            f"each up to {limits.MAX_DIMENSION}"
        )
    return out


def _check_layout(layer: nn.Module, name: str, before: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
    """A worker that comes late has not done a forward when it is given the layer's state."""
    after = layout(layer, name)
    if changed := sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)):
        raise UserError(
            f"model: {name} has another state_dict after its first forward ({', '.join(changed)}), and workers that come late "
            "are given it before theirs: make it in __init__, in its final shape, or outside the state "
            "(register_buffer with persistent=False)"
        )


def _check_loss(model: Model, output: Tensor, labels: Tensor) -> None:
    try:
        loss = model.loss(output, labels)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"model: the loss does not take the output, {_describe(output)}, and labels, {_describe(labels)}: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        what = _describe(loss) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"model: the loss returns {what}: it must be one number, the sum over all targets")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def cost(layer: LayerTrace) -> float:
    """Estimate the cost of a forward and a backward, in operations of a matrix product.

    A backward takes twice a forward. Moving a byte costs as much as OPERATIONS_PER_BYTE.
    """
    return 3.0 * (layer.flops + OPERATIONS_PER_BYTE * layer.traffic_bytes)
