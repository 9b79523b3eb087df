"""What each codec costs and what it keeps: relative error, bytes, speed both ways.

Three kinds of tensor: normal values as activations have, normal values of the size of activation
gradients, and normal values with one in a thousand a hundred times larger.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zswarm.compression import decode_untrusted, encode
from zswarm.messages import Load

CODECS = ("none", "bf16", "int8", "bnb8")
OUTLIER_SHARE = 1e-3
OUTLIER_FACTOR = 100.0
GRADIENT_SIZE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One codec; errors are norms of the difference over the norm, speeds count float32 bytes."""

    codec: str
    bytes_per_value: float
    relative_error: float
    gradient_error: float
    outlier_error: float
    """Over all values but the outliers themselves."""
    encode_gb_per_s: float
    decode_gb_per_s: float


def measure(codec: str, *, num_values: int = 1 << 19, repeats: int = 9) -> Measurement:
    """Measure one codec on `num_values` float32 values, speeds as medians of `repeats`, checksum included."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(num_values, generator=generator)
    is_outlier = torch.rand(num_values, generator=generator) < OUTLIER_SHARE
    outliers = torch.where(is_outlier, plain * OUTLIER_FACTOR, plain)
    load = encode([plain], codec)
    size_gb = num_values * plain.itemsize / 1e9
    return Measurement(
        codec=codec,
        bytes_per_value=load.parcel.size_bytes / num_values,
        relative_error=_error(plain, load),
        gradient_error=_error(plain * GRADIENT_SIZE, encode([plain * GRADIENT_SIZE], codec)),
        outlier_error=_error(outliers, encode([outliers], codec), among=~is_outlier),
        encode_gb_per_s=size_gb / _median_s(lambda: encode([plain], codec), repeats),
        decode_gb_per_s=size_gb / _median_s(lambda: decode_untrusted(load), repeats),
    )


def main(*, as_json: bool = False, threads: int = 1) -> None:
    """Measure all codecs and print a table, or one JSON object per line."""
    torch.set_num_threads(threads)
    measurements = [measure(codec) for codec in CODECS]
    console = Console()
    if as_json:
        for measurement in measurements:
            console.out(json.dumps(asdict(measurement)), highlight=False)
        return
    table = Table("codec", "bytes/value", "error", "at 1e-8", "with outliers", "encode GB/s", "decode GB/s")
    for row in measurements:
        table.add_row(
            row.codec,
            f"{row.bytes_per_value:.3f}",
            f"{row.relative_error:.2%}",
            f"{row.gradient_error:.2%}",
            f"{row.outlier_error:.2%}",
            f"{row.encode_gb_per_s:.1f}",
            f"{row.decode_gb_per_s:.1f}",
        )
    console.print(table)


def _error(original: Tensor, load: Load, *, among: Tensor | None = None) -> float:
    decoded = decode_untrusted(load)[0].double()
    exact = original.double()
    if among is not None:
        decoded, exact = decoded[among], exact[among]
    return float((decoded - exact).norm() / exact.norm())


def _median_s(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
