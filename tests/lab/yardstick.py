"""How fast the host's processors are meanwhile: the same work again and again, on a machine of its own.

    python -m tests.lab.yardstick RUN_FILE     # says after each pass what it took, in seconds of the processor's time

A host that shares its processors with others computes a tenth more in one minute than in the next. What is measured at
different times is compared at the same speed, which this tells: passes per second of the processor's time, so that a
small share of it is enough. A pass is what a machine alone does about one microbatch of the run, forward and backward, by
torch alone. It has to be the whole model: where the host has more to do, what fits into caches gets faster by a tenth,
and the whole model does not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from stages.model import build_layer, load_model
from zswarm.config import BYTE_VALUES, load_run_file


def main(run_file: Path) -> None:
    """Go on until somebody ends it."""
    torch.set_num_threads(1)
    config = load_run_file(run_file)
    model = load_model(config.model.factory, config.model.arguments)
    layers = torch.nn.Sequential(*(build_layer(model, index, config.run.seed) for index in range(len(model.layers))))
    tokens = torch.randint(BYTE_VALUES, (config.batch.microbatch, config.sequence_length))
    while True:
        begun_s = time.process_time()
        layers.zero_grad(set_to_none=False)
        model.loss(layers(tokens), tokens).backward()
        sys.stderr.write(f"pass {time.process_time() - begun_s}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
