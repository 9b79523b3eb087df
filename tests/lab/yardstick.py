"""How fast the host's processors are meanwhile: the same work again and again, on a machine of its own.

    python -m tests.lab.yardstick     # says after each pass what it took, in seconds of the processor's time

A host that shares its processors with others, or warms up, computes a tenth more in one minute than in the next. What is
measured in different minutes is compared at the same speed, which this tells: passes per second of the processor's time,
so that a small share of it is enough. A pass is one of TINY's microbatches through three of its blocks, forward and
backward: the work of a worker, by torch alone.
"""

from __future__ import annotations

import sys
import time

import torch

from stages.model import build_layer, load_model

BLOCKS = {"d_model": 256, "num_layers": 3, "num_heads": 4, "sequence_length": 128}
SHAPE = (4, 128)
SEED = 0


def main() -> None:
    """Go on until somebody ends it."""
    torch.set_num_threads(1)
    model = load_model("gpt", BLOCKS)
    layers = torch.nn.Sequential(*(build_layer(model, index, SEED) for index in range(len(model.layers))))
    tokens = torch.randint(256, SHAPE, generator=torch.Generator().manual_seed(SEED))
    while True:
        begun_s = time.process_time()
        layers.zero_grad()
        model.loss(layers(tokens), tokens).backward()
        sys.stderr.write(f"{time.process_time() - begun_s}\n")


if __name__ == "__main__":
    main()
