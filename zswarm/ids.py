"""Names of things: who, where, which microbatch. Every id is a `NewType`, so mypy tells them apart."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NewType

RunId = NewType("RunId", int)
"""One training run: 64 random bits, chosen by the trainer when the run is made."""
Generation = NewType("Generation", int)
"""How many times the run's trainer has been started; a peer refuses an older one."""
Branch = NewType("Branch", int)
"""How many times the run has been rolled back; work of an older branch is void."""
Step = NewType("Step", int)
"""Optimizer step. Parameters of step t are constants until COMMIT(t) makes them those of t + 1."""
Version = tuple[Branch, Step]
"""Which parameters: those of a step on a branch. Whatever is computed on them is of the same version."""
Microbatch = NewType("Microbatch", int)
"""Index of a microbatch within its step; its samples are a function of (seed, step, index) alone."""
Attempt = NewType("Attempt", int)
"""Which admission of a microbatch this is: the trainer's generation in the upper half, a count in the lower.

A later attempt is begun only when all earlier ones are void everywhere."""
Session = NewType("Session", int)
"""Fencing token of one life of one process, issued by the coordinator, never reused; 0 is the trainer."""
Lease = NewType("Lease", int)
"""One assignment of a job to a worker by a broker; unique among the leases of that broker's session."""
Round = NewType("Round", int)
"""One attempt to all-reduce and commit a stage's gradient; unique within a run, never reused."""
NodeId = NewType("NodeId", str)
"""The name of a process that people read in logs, such as `worker-3`."""
Stage = NewType("Stage", int)
"""A run of consecutive layers, counted from 0 (the one that embeds)."""

Address = NewType("Address", str)
"""Where a socket listens, such as `tcp://127.0.0.1:4711`: a peer that we dial."""
Link = NewType("Link", bytes)
"""The return address of a connection that a peer dialled; valid as long as that connection."""
Peer = Address | Link
"""Whom to send to: an address that we dial or the link of somebody who dialled us."""

TRAINER = Session(0)


class Role(StrEnum):
    """What a process does in the swarm."""

    WORKER = "worker"
    BROKER = "broker"


class Purpose(IntEnum):
    """Why a microbatch goes through the pipeline."""

    TRAIN = 0
    """Forward and backward; its gradient is counted once at every stage."""
    EVALUATE = 1
    """Forward only, to the loss; leaves no trace in the parameters."""


class JobKind(IntEnum):
    """What a broker asks of a worker."""

    FORWARD = 0
    BACKWARD = 1
    FUSED = 2
    """The last stage of a training microbatch: forward, loss and backward in one job."""
    EVALUATE = 3
    """The last stage of an evaluation microbatch: forward and loss."""


class JobStatus(IntEnum):
    """How a job ended at the worker."""

    DONE = 0
    WRONG_STEP = 1
    """The worker holds parameters of another step; the job waits in the broker."""
    NEEDS_INPUT = 2
    """A backward came without the stage input and the worker no longer keeps it."""
    REVOKED = 3
    """The broker asked for the job back, and it had not begun."""
    FAILED = 4
    """A layer raised."""
    VOID = 5
    """The coordinator has voided this attempt; the broker has not heard of it yet, and forgets it."""


class Leaving(IntEnum):
    """Whether a process wants to leave the swarm, and how far it is with that; in one session it only grows."""

    NO = 0
    DRAINING = 1
    """It has been asked to go, and has still something to do."""
    IDLE = 2
    """It takes nothing any more and has nothing left to do: a worker has no job and no output that is not acknowledged,
    but may have counted something; a broker is home to nothing, and nothing is on its way to it."""


class Direction(IntEnum):
    """Which leg of a microbatch's way an acknowledgement is about."""

    FORWARD = 0
    BACKWARD = 1
    LOSS = 2
    """The loss of an evaluated microbatch, on its way to the trainer."""


class NackCode(IntEnum):
    """Why a broker did not take a payload."""

    BUSY = 0
    STALE = 1


class RejectCode(IntEnum):
    """Why a process may not take part."""

    VERSION = 0
    WRONG_RUN = 1
    NOT_NEEDED = 2
    FULL = 3
    DUPLICATE = 4
    """Another process has the same name, and neither gives way."""
    UNFIT = 5
    """A worker's own word: this machine cannot build the stage, or may not."""


class ReducePhase(IntEnum):
    """The two halves of an all-reduce: summing a shard, then handing the sum round."""

    SCATTER = 0
    GATHER = 1


class StatePart(IntEnum):
    """What part of a layer's state is transferred."""

    PARAMETERS = 0
    """Everything of the layer's state_dict."""
    OPTIMIZER = 1
    """The optimizer's tensors, named `<state>.<parameter>`, and those that belong to no parameter by their name."""
    GRADIENT = 2
    """What one optimizer step has done to both: the reduced gradient and the learning rate."""
    SHARE = 3
    """What a worker that leaves has counted in its step, of all layers of its stage at once: the accumulator's numbers, as they
    lie in memory (little-endian). Asked for by the number of the stage's first layer."""


STATE_FILES = (StatePart.PARAMETERS, StatePart.OPTIMIZER)
"""What the state of a layer consists of."""
