"""CRC-32, the one of zlib and of the wire.

Every byte of a payload passes through it on every hop. zlib-ng folds with carry-less multiplication where the
processor can, at ten times the speed of the zlib that most systems bring.
"""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # no wheel for this machine: the same sums, slower
    from zlib import crc32

__all__ = ["crc32"]
