"""`zswarm generate`: a text from a run's model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch

from stages.generate import generate, load_layers
from zswarm.config import RunConfig
from zswarm.errors import RemoteProtocolError, RunFailed, UserError, ZswarmError
from zswarm.trainer.run_folder import CONFIGURATION, MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the command line said: see its help."""

    prompt: str
    length: int
    temperature: float
    top_k: int
    seed: int


def generate_text(folder: Path, sampling: Sampling) -> None:
    """Continue the prompt with the model of a run folder, and print it.

    Raises:
        UserError: the folder is none of a run, or has no model yet.
        RunFailed: a layer raised.

    """
    # One byte at a time is too little work to share: threads that wait for each other only cost time.
    torch.set_num_threads(1)
    config = _configuration(folder)
    layers = load_layers(config, folder / MODEL)
    drawn = config.model_copy(update={"run": config.run.model_copy(update={"seed": sampling.seed})})
    try:
        text = generate(
            drawn,
            layers,
            prompt=sampling.prompt,
            num_bytes=sampling.length,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
        )
    except ZswarmError:
        raise
    except Exception as error:
        raise RunFailed(f"the model raised {type(error).__name__}: {error}") from error
    added = "".join(_harmless(character) for character in text)
    click.echo(sampling.prompt.encode(errors="surrogateescape") + added.encode())


def _harmless(character: str) -> str:
    """Keep a model's control characters from the terminal."""
    return character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"


def _configuration(folder: Path) -> RunConfig:
    path = folder / CONFIGURATION
    try:
        return RunConfig.from_json_untrusted(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read it, so {folder} is no run folder: {error.strerror}") from None
    except RemoteProtocolError as error:
        raise UserError(f"{path}: {error}") from None
