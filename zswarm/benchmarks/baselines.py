"""What a swarm is held against, each in processes of its own: `python -m zswarm.benchmarks.baselines JSON`.

plain      one process trains the whole model: microbatches, accumulated gradients, one AdamW step
pipeline   one rank of torch.distributed.pipelining's 1F1B schedule over gloo, one process per stage

Both train the same layers with the same first parameters as a swarm does, on random bytes. They clip no
gradients and evaluate nothing, which a swarm does besides.

A child says `ready` when it could begin, and begins when it hears a line; it ends with one line of
JSON, the monotonic times in seconds at which its steps ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.utils.checkpoint import checkpoint

from stages.kernels import kernels_for
from stages.linear import DeferredGradients, install
from stages.model import Model, build_layer, load_model
from stages.precision import Arithmetic
from zswarm.device_names import CPU

SEED = 0
LEARNING_RATE = 1e-3
RENDEZVOUS_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A byte GPT and its batch, in sequences."""

    d_model: int
    num_layers: int
    num_heads: int
    sequence_length: int
    microbatch: int
    global_batch: int = 32

    @property
    def num_microbatches(self) -> int:
        """Of one step."""
        return self.global_batch // self.microbatch

    def model(self) -> Model:
        """Return the layers, not yet made."""
        arguments = asdict(self)
        del arguments["microbatch"], arguments["global_batch"]
        return load_model("gpt", arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one child does."""

    shape: dict[str, int]
    num_steps: int
    recompute: bool = False
    """Keep only the layers' inputs, and compute each layer once more for its backward."""
    own_kernels: bool = False
    """Use zswarm's linear layers instead of torch's."""
    split: tuple[int, ...] = ()
    """Layers of each rank; empty for `plain`."""
    rank: int = 0
    rendezvous: str = ""
    """A path that does not exist yet, the same for all ranks."""
    device: str = CPU
    """Of `plain`."""
    precision: str = "float32"
    """Of `plain`: see stages/precision.py."""


def main(text: str) -> None:
    """Do what an Assignment, as JSON, says."""
    assignment = Assignment(**json.loads(text))
    torch.set_num_threads(1)
    step = _pipeline_step(assignment) if assignment.split else _plain_step(assignment)
    _say("ready")
    sys.stdin.readline()
    ends_s = []
    for _ in range(assignment.num_steps):
        step()
        ends_s.append(time.monotonic())
    _say(json.dumps(ends_s))
    if assignment.split:
        dist.destroy_process_group()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _batch(shape: Shape) -> tuple[Tensor, Tensor]:
    """Draw tokens and labels, [global_batch, sequence_length] each."""
    generator = torch.Generator().manual_seed(SEED)
    size = (shape.global_batch, shape.sequence_length)
    return torch.randint(256, size, generator=generator), torch.randint(256, size, generator=generator)


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)


def _plain_step(assignment: Assignment) -> Callable[[], None]:
    shape = Shape(**assignment.shape)
    model = shape.model()
    layers = nn.ModuleList(build_layer(model, index, SEED) for index in range(len(model.layers)))
    arithmetic = Arithmetic(torch.device(assignment.device), assignment.precision)
    arithmetic.set_up(is_exact=False)
    layers.to(arithmetic.device)
    optimizer = _adamw(layers)
    deferred = DeferredGradients(kernels_for(arithmetic.device), is_deferring=False)
    if assignment.own_kernels:
        install(layers, deferred)
        for parameter in layers.parameters():
            parameter.grad = torch.zeros_like(parameter)
    tokens, labels = (tensor.to(arithmetic.device) for tensor in _batch(shape))
    microbatches = list(zip(torch.split(tokens, shape.microbatch), torch.split(labels, shape.microbatch), strict=True))

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if assignment.recompute else layer(x)
        return x

    def step() -> None:
        optimizer.zero_grad(set_to_none=not assignment.own_kernels)
        for x, y in microbatches:
            with arithmetic.context():
                loss = model.loss(forward(x), y) / labels.numel()
            with deferred.backward():
                loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if arithmetic.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _pipeline_step(assignment: Assignment) -> Callable[[], None]:
    shape, rank, num_ranks = Shape(**assignment.shape), assignment.rank, len(assignment.split)
    model = shape.model()
    first = sum(assignment.split[:rank])
    module = nn.Sequential(*(build_layer(model, first + index, SEED) for index in range(assignment.split[rank])))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{assignment.rendezvous}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=RENDEZVOUS_S),
    )
    optimizer = _adamw(module)
    stage = PipelineStage(module, rank, num_ranks, torch.device(CPU))

    def mean_loss(output: Tensor, target: Tensor) -> Tensor:
        return model.loss(output, target) / target.numel()

    schedule = Schedule1F1B(stage, shape.num_microbatches, loss_fn=mean_loss)
    tokens, labels = _batch(shape)
    inputs = (tokens,) if rank == 0 else ()
    target = labels if rank == num_ranks - 1 else None

    def step() -> None:
        optimizer.zero_grad()
        schedule.step(*inputs, target=target)
        optimizer.step()

    return step


if __name__ == "__main__":
    main(sys.argv[1])
