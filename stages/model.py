"""What a model is here: a list of layer factories and a loss, found by name.

A model factory is a callable named in the run file, `package.module:function` or a built-in name. It is
called with the run file's other [model] keys and returns a `Model`, or a plain list of layer factories,
which then end in logits and are trained by cross-entropy.

    tokens [B, T] --> layer 0 --> layer 1 --> ... --> layer n-1 --> output --> loss(output, labels [B, T])

Layers are chained by one tensor, batch first. Each is built in its own process from (seed, layer index)
alone, so layers cannot share parameters, and the same layer is the same numbers wherever it is built, as long as it draws
them from the default generators of torch, numpy or random.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.allowed import EVERYTHING, Allowed, NotHere
from zswarm.errors import UserError

LayerFactory = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]

BUILT_IN = {"gpt": "stages.transformer:gpt"}
_generator_lock = threading.Lock()
"""torch, numpy and random have one default generator each per process; layers draw their first parameters from them."""


def token_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies, a scalar; logits [..., V], integer labels [...]."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Layers in order, each made by a callable without arguments, and the loss of the last one's output.

    `loss(output, labels)` is a scalar: the sum over all targets, which are as many as `labels` has
    elements. The gradient of a step is that of the loss sum divided by all targets of the step.
    """

    layers: Sequence[LayerFactory]
    loss: Loss = token_cross_entropy


def load_model(factory: str, arguments: Mapping[str, Any], allowed: Allowed = EVERYTHING) -> Model:
    """Find a model factory by name and call it.

    Raises:
        NotHere: its module is not `allowed`, cannot be found on this machine, or lacks that name.
        UserError: there is none of that name, it does not take these arguments, it raises, or what it
            returns is neither a `Model` nor a list of layer factories.

    """
    function = _find(factory, allowed)
    _check_arguments(factory, function, arguments)
    try:
        made = function(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"model.factory {factory} raised {type(error).__name__}: {error}") from error
    model = made if isinstance(made, Model) else _from_list(factory, made)
    if not model.layers:
        raise UserError(f"model.factory {factory} returned no layers: return a list of at least one")
    for index, layer in enumerate(model.layers):
        if isinstance(layer, nn.Module) or not callable(layer):
            raise UserError(
                f"model.factory {factory}: layer {index} is a {type(layer).__name__}, not a callable that makes one: "
                "write lambda: Layer(...) or functools.partial(Layer, ...)"
            )
    return model


def build_layer(model: Model, index: int, seed: int) -> nn.Module:
    """Make layer `index` with fresh parameters, which depend on (seed, index) alone.

    Raises:
        UserError: the factory returned something else than a module.

    """
    digest = hashlib.blake2b(f"layer {index} of run {seed}".encode(), digest_size=8).digest()
    with _generator_lock, _seeded(int.from_bytes(digest, "little")):
        layer = model.layers[index]()
    if not isinstance(layer, nn.Module):
        raise UserError(f"model: layer {index}: its factory returned a {type(layer).__name__}, not a torch.nn.Module")
    return layer


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed whatever layers draw from, and leave it as it was."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the generator that others draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def layer_name(layer: nn.Module, index: int) -> str:
    """Name a layer for people, such as `layer 3 (Block)`."""
    return f"layer {index} ({type(layer).__name__})"


def _find(factory: str, allowed: Allowed) -> Callable[..., Any]:
    module_name, colon, function_name = BUILT_IN.get(factory, factory).partition(":")
    if not colon or not module_name or not function_name:
        near = difflib.get_close_matches(factory, BUILT_IN, n=1)
        raise UserError(
            f"model.factory = {factory!r} is not a built-in model: write {near[0] if near else ', '.join(BUILT_IN)!r} "
            "or package.module:function"
        )
    is_own = factory not in BUILT_IN and factory not in BUILT_IN.values()
    if is_own:
        allowed.check(factory, module_name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # What is missing is missing on this machine: whoever began the run has imported it.
        kind = NotHere if isinstance(error, ImportError) else UserError
        raise kind(
            f"model.factory = {factory!r}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "it must be importable where the run is started and on every worker (the current folder, PYTHONPATH, or "
            "install it)"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        near = difflib.get_close_matches(function_name, vars(module), n=1)
        hint = f"write {module_name}:{near[0]}" if near else f"write the name of a function of {module.__file__}"
        raise NotHere(f"model.factory = {factory!r}: {module_name} has no {function_name!r}: {hint}")
    if not callable(function):
        raise UserError(f"model.factory = {factory!r} is a {type(function).__name__}: name a function")
    found: Callable[..., Any] = function
    if is_own:
        allowed.check_function(factory, found)
    return found


def _check_arguments(factory: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind(**arguments)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in arguments]
        unknown = [name for name in arguments if name not in signature.parameters]
        near = [f"{match[0]}, not {name}" for name in unknown if (match := difflib.get_close_matches(name, known, n=1))]
        instead = f"write {'; '.join(near)}" if near else f"it takes {signature}"
        raise UserError(f"[model] does not fit {factory}: {error}; {instead}") from None
    except ValueError:
        return  # a built-in without a signature: calling it will tell


def _from_list(factory: str, made: object) -> Model:
    if not isinstance(made, Sequence) or isinstance(made, (str, bytes)):
        raise UserError(
            f"model.factory {factory} returned a {type(made).__name__}: "
            "return a stages.model.Model or a list of layer factories"
        )
    return Model(layers=tuple(made))
