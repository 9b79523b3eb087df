"""A trained model read from its run folder, and text sampled from it byte by byte."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.model import build_layer, load_model
from zswarm.config import RunConfig
from zswarm.errors import UserError


def load_trained(config: RunConfig, path: Path) -> nn.Module:
    """Return the model of a run with the parameters of its model file.

    Raises:
        UserError: the file is missing, is no safetensors file, or belongs to another model.

    """
    model = load_model(config.model.factory, config.model.arguments)
    layers = nn.Sequential(*(build_layer(model, index, config.run.seed) for index in range(len(model.layers))))
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no model: the run has not ended, or it failed") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot read the model: {error}") from None
    try:
        layers.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: not a model of this run file: {error}") from None
    return layers.eval()


def generate(  # noqa: PLR0913 - how to sample
    model: nn.Module, prompt: bytes, *, length: int, context: int, temperature: float, top_k: int, seed: int
) -> bytes:
    """Continue `prompt` by `length` bytes.

    The model maps tokens [1, T], T at most `context`, to logits [1, T, V]. `temperature` 0 takes the
    likeliest byte each time; otherwise one of the `top_k` likeliest (0: of all) is drawn, from `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt) or [ord("\n")]
    begin = len(tokens)
    with torch.inference_mode():
        for _ in range(length):
            logits_TV = model(torch.tensor([tokens[-context:]]))[0]
            tokens.append(_draw(logits_TV[-1, :256], temperature=temperature, top_k=top_k, generator=generator))
    return prompt + bytes(tokens[begin:])


def _draw(logits_V: Tensor, *, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k:
        least = logits_V.topk(min(top_k, logits_V.numel())).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    return int(torch.multinomial((logits_V / temperature).softmax(0), 1, generator=generator))
