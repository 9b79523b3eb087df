"""Text from a trained model: bytes drawn one after the other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stages.model import build_layer, load_model
from zswarm.config import BYTE_VALUES, RunConfig
from zswarm.errors import UserError

PROMPT_IF_EMPTY = "\n"


def load_layers(config: RunConfig, path: Path) -> nn.ModuleList:
    """Build the model of a run and fill it from a safetensors file with tensors `layers.<index>.<name>`.

    Raises:
        UserError: the file is missing or no safetensors file, or it holds another model.

    """
    model = load_model(config.model.factory, config.model.arguments)
    layers = nn.ModuleList(build_layer(model, index, config.run.seed) for index in range(len(model.layers)))
    try:
        with safe_open(path, framework="pt") as file:
            state = {name.removeprefix("layers."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such model; a run writes it when it ends") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a model that can be read: {error}") from None
    try:
        layers.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not a model of this configuration: {first}") from None
    return layers.eval()


def generate(
    config: RunConfig,
    layers: nn.ModuleList,
    *,
    prompt: str = "",
    num_bytes: int = 200,
    temperature: float = 0.8,
    top_k: int = 40,
) -> str:
    """Continue a prompt by `num_bytes` bytes and return the continuation; the run's seed decides the draw.

    `temperature` 0 takes the likeliest byte each time; `top_k` 0 draws from all. Bytes that are no UTF-8
    become replacement characters; those of the prompt are in it as the command line has them (`surrogateescape`).

    Raises:
        UserError: `temperature` or `top_k` is negative, or the model does not give scores for bytes.

    """
    if temperature < 0 or top_k < 0 or num_bytes < 0:
        raise UserError(
            f"temperature {temperature}, top-k {top_k} and length {num_bytes} must not be below 0: "
            "0 is the likeliest byte, all bytes, and none"
        )
    generator = torch.Generator().manual_seed(config.run.seed)
    text = bytearray((prompt or PROMPT_IF_EMPTY).encode(errors="surrogateescape"))
    begin = len(text)
    with torch.inference_mode():
        for _ in range(num_bytes):
            tokens = torch.tensor([list(text[-config.sequence_length :])])
            text.append(_draw(_scores(layers, tokens), generator, temperature=temperature, top_k=top_k))
    return text[begin:].decode(errors="replace")


def _scores(layers: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Return the scores of the byte after the last one, [BYTE_VALUES]."""
    x = tokens
    for layer in layers:
        x = layer(x)
    if x.dim() != 3 or x.shape[1] != tokens.shape[1] or x.shape[2] < BYTE_VALUES:
        raise UserError(
            f"the model's output is {list(x.shape)}: to generate text, it must be scores [1, {tokens.shape[1]}, "
            f"{BYTE_VALUES}] for the byte after each one"
        )
    return x[0, -1, :BYTE_VALUES].float()


def _draw(scores: Tensor, generator: torch.Generator, *, temperature: float, top_k: int) -> int:
    if temperature == 0:
        return int(scores.argmax())
    if 0 < top_k < len(scores):
        least = scores.topk(top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    return int(torch.multinomial((scores / temperature).softmax(0), 1, generator=generator))
