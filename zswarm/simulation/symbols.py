"""Symbols that travel where production has tensors: each one says what it was made of.

A parameter version is a number in a hash chain, so that equal numbers mean equal histories. `path` lists
the version of every stage that a forward went through, stage 0 first; `way_back` those of the backward,
last stage first.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

from zswarm.ids import Purpose, Round, Stage, Step
from zswarm.messages import Load, Parcel, TensorSpec
from zswarm.slots import maker

make_load = maker(Load)

NOT_FINITE_ONE_IN = 31
"""How rare a gradient that is not finite is, where a schedule has any."""


class Activation(NamedTuple):
    """A stage's input (or, with an empty path, the tokens of a microbatch)."""

    purpose: Purpose
    step: Step
    microbatch: int
    path: tuple[int, ...]


class Gradient(NamedTuple):
    """The gradient of a stage's output: it knows the whole way there and the way back so far."""

    step: Step
    microbatch: int
    path: tuple[int, ...]
    way_back: tuple[int, ...]


class Contribution(NamedTuple):
    """What one backward adds to a stage's gradient; the way back ends with this stage."""

    step: Step
    microbatch: int
    path: tuple[int, ...]
    way_back: tuple[int, ...]


class Share(NamedTuple):
    """A participant's accumulator, copied; sorted, since the sum of one worker's microbatches is its own affair."""

    contributions: tuple[Contribution, ...]
    digest: int


class Part(NamedTuple):
    """One chunk of one shard: of a single share before it is summed, of all of them afterwards."""

    round: Round
    shard: int
    num_shards: int
    chunk: int
    num_chunks: int
    shares: tuple[Share, ...]


def fingerprint(*parts: object) -> int:
    """Return 64 bits that are equal where the parts' texts are equal, in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def load(symbol: object, size_bytes: int) -> Load:
    """Wrap a symbol as a payload of one frame that claims to have `size_bytes`."""
    return make_load(parcel=_parcel(size_bytes), frames=(symbol,))


@lru_cache(maxsize=64)
def _parcel(size_bytes: int) -> Parcel:
    spec = TensorSpec(codec="none", dtype="uint8", shape=(size_bytes,), size_bytes=size_bytes)
    return Parcel(tensors=(spec,), size_bytes=size_bytes, crc=0)


def initial_version(seed: int, stage: Stage) -> int:
    """Return the version of a stage's fresh parameters."""
    return fingerprint("fresh", seed, stage)


@lru_cache(maxsize=1024, typed=True)
def next_version(version: int, contributions: tuple[Contribution, ...], scale: float, lr: float, *, apply: bool) -> int:
    """Return the version after an optimizer step with the gradient that these (sorted) contributions sum to.

    The replicas of a stage take the same steps, as the reference does: few are worked out anew.
    """
    if not apply:
        return fingerprint("skipped", version)
    return fingerprint("stepped", version, contributions, scale, lr)


def square_norm(stage: Stage, contributions: tuple[Contribution, ...]) -> float:
    """Return the square norm of a gradient: an integer, so that it is exact."""
    return float(sum(1 + (7 * c.microbatch + 13 * c.step + 3 * stage) % 11 for c in contributions))


def is_finite(seed: int, stage: Stage, contributions: tuple[Contribution, ...]) -> bool:
    """Return whether the gradient is finite: few microbatches of few schedules overflow, at one stage."""
    return seed % 4 != 0 or all(
        (c.microbatch + 5 * c.step + 11 * stage + seed // 4) % NOT_FINITE_ONE_IN for c in contributions
    )


def loss_sum(purpose: Purpose, step: Step, microbatch: int) -> float:
    """Return a microbatch's loss: an integer, so that sums are exact in any order."""
    return float(1 + (31 * microbatch + 17 * step + 5 * purpose) % 97)
