"""The codecs: how one tensor becomes bytes.

    name   bytes per float32 value   what it keeps
    none   4                         everything
    bf16   2                         8 bits of mantissa, the whole range of float32
    int8   1 + 4/128                 each value to 1/254 of the largest of its block of 128
    bnb8   1 + 4/256                 small values of a block better than large ones (bitsandbytes' dynamic map)
    raw    as the dtype              integers, as they are

A value that is not finite leaves its block not finite, never a number that looks right.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from zswarm.errors import LocalProtocolError

BLOCK = 128
"""Values that share a scale in int8: 3 % of scales, and an outlier spoils no more than 127 neighbours."""
BNB_BLOCK = 256
SCALE_BYTES = 4
"""Scales are float32: activation gradients of a whole-step mean are as small as 1e-8, below float16."""
LEVELS = 127
SMALLEST_SCALE = 1e-37
"""Blocks whose largest value is below 127 times this become zero; its reciprocal is still finite."""


class Codec(Protocol):
    """One way to encode tensors of a dtype; sizes depend on the number of values alone."""

    def size_bytes(self, num_values: int, dtype: torch.dtype) -> int:
        """Return the encoded size."""

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write flat contiguous `values` of the dtype into `out`, uint8 of exactly the encoded size."""

    def decode(self, encoded: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
        """Return the flat values; `encoded` is uint8 of exactly the encoded size, aligned to 8 bytes."""


class Identity:
    """`none` and `raw`: the bytes of the tensor."""

    def size_bytes(self, num_values: int, dtype: torch.dtype) -> int:
        """Return the encoded size."""
        return num_values * dtype.itemsize

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Copy the bytes."""
        out.copy_(values.view(torch.uint8))

    def decode(self, encoded: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
        """Return a view of the bytes."""
        del num_values
        return encoded.view(dtype)


class BFloat16:
    """`bf16`: rounded to the nearest bfloat16, ties to even."""

    def size_bytes(self, num_values: int, dtype: torch.dtype) -> int:
        """Return the encoded size."""
        del dtype
        return 2 * num_values

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Round."""
        out.copy_(values.to(torch.bfloat16).view(torch.uint8))

    def decode(self, encoded: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
        """Widen."""
        del num_values
        return encoded.view(torch.bfloat16).to(dtype)


class Int8:
    """`int8`: blocks of `BLOCK` values, each rounded to -127..127 times its block's scale.

    Layout: one float32 scale per block, then the int8 values; the last block may be short.
    """

    def size_bytes(self, num_values: int, dtype: torch.dtype) -> int:
        """Return the encoded size."""
        del dtype
        return num_values + SCALE_BYTES * _num_blocks(num_values, BLOCK)

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Quantise; the error of a value is at most half its block's scale, its block's maximum / 127."""
        num_values = values.numel()
        if num_values == 0:
            return
        blocks = _in_blocks(values.float(), BLOCK)
        # Products, not quotients: by a number, a card divides by multiplying with its reciprocal, and a CPU does not.
        # A NaN or an infinity makes the scale itself not finite, and with it all that decodes from it.
        scales = blocks.abs().amax(1, keepdim=True).mul_(1.0 / LEVELS).clamp_min_(SMALLEST_SCALE)
        steps = (blocks * scales.reciprocal()).round_()
        head = SCALE_BYTES * scales.numel()
        out[:head].copy_(scales.flatten().view(torch.uint8))
        out[head:].view(torch.int8).copy_(steps.flatten()[:num_values])

    def decode(self, encoded: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
        """Multiply each value by its block's scale."""
        if num_values == 0:
            return encoded.new_empty(0, dtype=dtype)
        head = SCALE_BYTES * _num_blocks(num_values, BLOCK)
        scales = encoded[:head].view(torch.float32)[:, None]
        steps = _in_blocks(encoded[head:].view(torch.int8), BLOCK)
        return steps.to(torch.float32).mul_(scales).flatten()[:num_values].to(dtype)


class BitsAndBytes8:
    """`bnb8`: bitsandbytes' blockwise quantisation with the dynamic map.

    Layout: one float32 absolute maximum per block of `BNB_BLOCK` values, then an index byte per value.
    """

    def size_bytes(self, num_values: int, dtype: torch.dtype) -> int:
        """Return the encoded size."""
        del dtype
        return num_values + SCALE_BYTES * _num_blocks(num_values, BNB_BLOCK)

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Quantise with bitsandbytes.

        It hides a NaN behind a number; the maxima taken here do not, and a block's maximum multiplies all
        that decodes from it.
        """
        num_values = values.numel()
        if num_values == 0:
            return
        flat = values.float()
        scales = _in_blocks(flat, BNB_BLOCK).abs().amax(1)
        indices, _ = _bitsandbytes().quantize_blockwise(flat, code=_dynamic_map().to(flat.device), blocksize=BNB_BLOCK)
        head = SCALE_BYTES * scales.numel()
        out[:head].copy_(scales.view(torch.uint8))
        out[head:].copy_(indices)

    def decode(self, encoded: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
        """Look the indices up and multiply by the maximum."""
        if num_values == 0:
            return encoded.new_empty(0, dtype=dtype)
        head = SCALE_BYTES * _num_blocks(num_values, BNB_BLOCK)
        scales = encoded[:head].view(torch.float32)
        values: Tensor = _bitsandbytes().dequantize_blockwise(
            encoded[head:], absmax=scales, code=_dynamic_map().to(encoded.device), blocksize=BNB_BLOCK
        )
        return values.to(dtype)


CODECS: dict[str, Callable[[], Codec]] = {
    "none": Identity,
    "bf16": BFloat16,
    "int8": Int8,
    "bnb8": BitsAndBytes8,
    "raw": Identity,
}


@functools.cache
def codec_named(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        LocalProtocolError: there is none.

    """
    if name not in CODECS:
        raise LocalProtocolError(f"no codec {name!r}: there are {', '.join(CODECS)}")
    return CODECS[name]()


@functools.cache
def _bitsandbytes() -> Any:
    """Import bitsandbytes, which takes 1.7 s, when the first tensor needs it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels that nobody asked for
    return importlib.import_module("bitsandbytes.functional")


@functools.cache
def _dynamic_map() -> Tensor:
    """Return the 256 values of the dynamic map."""
    dynamic_map: Tensor = _bitsandbytes().create_dynamic_map()
    return dynamic_map


def _num_blocks(num_values: int, block: int) -> int:
    return -(-num_values // block)


def _in_blocks(values: Tensor, block: int) -> Tensor:
    """Return [blocks, block], the last one filled up with zeros."""
    rest = -values.numel() % block
    if rest:
        values = torch.nn.functional.pad(values, (0, rest))
    return values.view(-1, block)
