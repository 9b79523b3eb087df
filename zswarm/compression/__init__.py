"""Tensors on the wire: the codecs, and how tensors become parcels and parcels tensors again.

A floating-point tensor travels by the run's codec, an integer one (tokens, labels) always as `raw`.
"""

from __future__ import annotations

from zswarm.compression.codecs import CODECS, Codec, codec_named
from zswarm.compression.host import CPU, host_memory, to_host
from zswarm.compression.tensors import decode_untrusted, encode, load_size_bytes, size_bytes

__all__ = [
    "CODECS",
    "CPU",
    "Codec",
    "codec_named",
    "decode_untrusted",
    "encode",
    "host_memory",
    "load_size_bytes",
    "size_bytes",
    "to_host",
]
