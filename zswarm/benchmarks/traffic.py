"""Both neighbours of a broker in one process, and a bare forwarder: `python -m zswarm.benchmarks.traffic JSON`.

ends   producer and worker at once: Forward --> broker --> Job, Result --> broker, Ack <-- broker
       everything it says is packed before time begins, nothing that it hears is unpacked
bare   a poll loop over one ROUTER that hands each message on: what ZeroMQ and Python alone cost

A child says `ready` (bare: its address) when it could begin, begins when it hears a line, and ends with one
line of JSON (bare: is killed).
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import zmq

from brokers.entries import first_lease
from zswarm import ledger, limits, wire
from zswarm.allocator import keep_freed_memory
from zswarm.ids import (
    TRAINER,
    Attempt,
    Branch,
    Generation,
    JobStatus,
    Lease,
    Microbatch,
    Purpose,
    RunId,
    Session,
    Step,
)
from zswarm.kinds import KINDS
from zswarm.messages import Ack, Attach, Credit, Forward, Job, Message, Parcel, Ready, Result, TensorSpec
from zswarm.swarm_key import read_key_file
from zswarm.transport.curve import Curve
from zswarm.wire.codec import PRELUDE

if TYPE_CHECKING:
    from typing_extensions import Buffer

RUN, GENERATION = RunId(1), Generation(1)
BROKER, WORKER = Session(1), Session(2)
COUNTED = ledger.to_bytes(0b1)
"""The mask of an attempt that the swarm's only stage counts."""
KIND_OF = {cls: kind for kind, cls in KINDS.items()}
KIND_OFFSET = 5
"""Where the prelude says the kind of a message."""
WARM_UP = 10
"""One in so many messages comes before time begins."""
SMALL_BYTES = 4096
"""Smaller payloads are copied, which is cheaper than sharing them."""
SINK = b"sink"

Multipart = list["Buffer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one child does."""

    role: str
    payload_bytes: int
    count: int = 0
    """Microbatches."""
    window: int = 0
    """Microbatches under way at once."""
    work: str = ""
    """Where the broker, or the bare forwarder, listens."""
    control: str = ""
    """Empty for the bare forwarder, which has no jobs and takes no results."""
    key_file: str = ""
    """Of the broker's swarm, if that has one."""


def main(text: str) -> None:
    """Do what a Traffic, as JSON, says."""
    traffic = Traffic(**json.loads(text))
    # As the broker does. Otherwise glibc maps some of the payloads anew and others not, as it happens.
    keep_freed_memory(one_arena=True)
    with zmq.Context() as context:
        if traffic.role == "bare":
            forward_barely(context, copy=traffic.payload_bytes < SMALL_BYTES)
        else:
            with Ends(context, traffic) as ends:
                _say("ready")
                sys.stdin.readline()
                _say(json.dumps({"microbatches_per_s": ends.run()}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def forward_barely(context: zmq.Context[zmq.Socket[bytes]], *, copy: bool) -> None:
    """Hand every message on to whoever has said that it is the sink; for ever."""
    router = context.socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    _say(router.getsockopt_string(zmq.LAST_ENDPOINT))
    sink, _ = router.recv_multipart()
    router.send_multipart([sink, SINK])
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    while True:
        poller.poll()
        try:
            for _ in range(limits.TURN_MESSAGES):
                _, *parts = router.recv_multipart(zmq.NOBLOCK, copy=copy)
                router.send_multipart([sink, *parts], copy=copy)
        except zmq.Again:
            continue


class Ends:
    """A producer and a worker of the same broker."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], traffic: Traffic) -> None:
        self._traffic = traffic
        self._is_bare = not traffic.control
        self._producer = context.socket(zmq.DEALER)
        self._worker = context.socket(zmq.DEALER)
        self._control = context.socket(zmq.DEALER)
        if traffic.key_file:
            curve = Curve.of(read_key_file(Path(traffic.key_file)))
            for socket in (self._producer, self._worker, self._control):
                curve.secure(socket)
        self._producer.connect(traffic.work)
        self._worker.connect(traffic.work)
        if not self._is_bare:
            self._control.connect(traffic.control)
        self._forwards = forwards(traffic.count, traffic.payload_bytes)
        self._results = [] if self._is_bare else results(traffic.count, traffic.window)
        self._copy = traffic.payload_bytes < SMALL_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for socket in (self._producer, self._worker, self._control):
            socket.close(linger=0)

    def run(self) -> float:
        """Send everything through; returns microbatches per second after a warm-up."""
        self._introduce()
        warm, num_sent, num_done = self._traffic.count // WARM_UP, 0, 0
        begun_s = time.monotonic()
        poller = zmq.Poller()
        poller.register(self._producer, zmq.POLLIN)
        poller.register(self._worker, zmq.POLLIN)
        while num_done < self._traffic.count:
            until = min(num_done + self._traffic.window, self._traffic.count)
            for parts in self._forwards[num_sent:until]:
                self._producer.send_multipart(parts, copy=self._copy)
            num_sent = until
            poller.poll()
            self._hear_acks()
            before, num_done = num_done, self._take_jobs(num_done)
            if before < warm <= num_done:
                begun_s, warm = time.monotonic(), num_done
        return (num_done - warm) / (time.monotonic() - begun_s)

    def _introduce(self) -> None:
        if self._is_bare:
            self._worker.send(SINK)
            self._worker.recv()
            return
        self._producer.send_multipart(_packed(Attach(run=RUN, generation=GENERATION, session=TRAINER)))
        if self._producer.recv()[KIND_OFFSET] != KIND_OF[Credit]:
            raise SystemExit("the broker gave the producer no credit")
        self._worker.send_multipart(_packed(Attach(run=RUN, generation=GENERATION, session=WORKER)))
        ready = Ready(
            run=RUN,
            generation=GENERATION,
            session=WORKER,
            branch=Branch(0),
            step=Step(0),
            slots=self._traffic.window,
            held=(),
        )
        self._control.send_multipart(_packed(ready))

    def _hear_acks(self) -> None:
        try:
            while True:
                kind = self._producer.recv(zmq.NOBLOCK)[KIND_OFFSET]
                if kind not in (KIND_OF[Ack], KIND_OF[Credit]):
                    raise SystemExit(f"the broker answered a Forward by {KINDS[kind].__name__}")
        except zmq.Again:
            return

    def _take_jobs(self, num_done: int) -> int:
        try:
            while True:
                parts = self._worker.recv_multipart(zmq.NOBLOCK, copy=self._copy)
                if not self._is_bare:
                    if _kind(parts[0]) != KIND_OF[Job]:
                        raise SystemExit("the broker sent the worker something else than a Job")
                    self._control.send_multipart(self._results[num_done])
                num_done += 1
        except zmq.Again:
            return num_done


def _kind(frame: bytes | zmq.Frame) -> int:
    return frame[KIND_OFFSET] if isinstance(frame, bytes) else frame.buffer[KIND_OFFSET]


def forwards(count: int, payload_bytes: int) -> list[Multipart]:
    """Pack `count` different microbatches with the same payload, as the trainer sends them."""
    frames = wire.split(bytes(payload_bytes))
    spec = TensorSpec(codec="raw", dtype="uint8", shape=(1, payload_bytes), size_bytes=payload_bytes)
    if payload_bytes > limits.MAX_DIMENSION:
        spec = TensorSpec(
            codec="raw",
            dtype="uint8",
            shape=(payload_bytes // limits.MAX_FRAME_BYTES, limits.MAX_FRAME_BYTES),
            size_bytes=payload_bytes,
        )
    parcel = Parcel(tensors=(spec,), size_bytes=payload_bytes, crc=wire.checksum(frames))
    packed = []
    for index in range(count):
        attempt, microbatch = divmod(index, limits.MAX_MICROBATCHES)
        message = Forward(
            run=RUN,
            generation=GENERATION,
            session=TRAINER,
            branch=Branch(0),
            step=Step(0),
            microbatch=Microbatch(microbatch),
            attempt=Attempt(attempt),
            purpose=Purpose.TRAIN,
            route=(BROKER,),
            mask=COUNTED,
            parcel=parcel,
        )
        packed.append(_packed(message, frames, sequence=index + 1))
    return packed


def results(count: int, slots: int) -> list[Multipart]:
    """Pack the answers to the first `count` leases of the broker, in that order, as a worker sends them."""
    first = first_lease(BROKER)
    return [
        _packed(
            Result(
                run=RUN,
                generation=GENERATION,
                session=WORKER,
                branch=Branch(0),
                step=Step(0),
                lease=Lease(first + index),
                status=JobStatus.DONE,
                kept=False,
                compute_s=0.0,
                slots=slots,
            ),
            sequence=index + 1,
        )
        for index in range(count)
    ]


def _packed(message: Message, frames: tuple[Buffer, ...] = (), *, sequence: int = 0) -> Multipart:
    parts = wire.encode(message, frames, sequence=sequence)
    assert bytes(parts[0])[KIND_OFFSET] == PRELUDE.unpack_from(parts[0])[2]
    return parts


if __name__ == "__main__":
    main(sys.argv[1])
