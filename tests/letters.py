"""Messages with everything but the interesting fields filled in, for tests of machines."""

from __future__ import annotations

from typing import Any

from zswarm import ledger
from zswarm.ids import (
    TRAINER,
    Address,
    Attempt,
    Branch,
    Direction,
    Generation,
    JobKind,
    JobStatus,
    Lease,
    Microbatch,
    NackCode,
    NodeId,
    Purpose,
    ReducePhase,
    RejectCode,
    Role,
    Round,
    RunId,
    Session,
    Stage,
    StatePart,
    Step,
)
from zswarm.machine import Send
from zswarm.membership import Header
from zswarm.messages import (
    Abort,
    Ack,
    Attach,
    Backward,
    BrokerHeartbeat,
    Chunk,
    ChunkAck,
    Commit,
    Credit,
    Evaluated,
    Failure,
    Forward,
    HeartbeatAck,
    Job,
    Key,
    Load,
    Member,
    Message,
    Nack,
    Parcel,
    Prepare,
    Prepared,
    Pull,
    Ready,
    Register,
    Reject,
    Result,
    Room,
    State,
    Stop,
    View,
    Welcome,
    WorkerHeartbeat,
    key_fields,
)

RUN = RunId(7)
OTHER_RUN = RunId(8)
SIZE_BYTES = 100
"""Of every payload, and the unit of credit."""


def header(session: int = TRAINER, *, run: int = RUN, generation: int = 1) -> Header:
    return {"run": RunId(run), "generation": Generation(generation), "session": Session(session)}


def parcel(size_bytes: int = SIZE_BYTES) -> Parcel:
    return Parcel(tensors=(), size_bytes=size_bytes, crc=0)


def load(content: Any, size_bytes: int = SIZE_BYTES) -> Load:
    return Load(parcel=parcel(size_bytes), frames=(content,))


def key(microbatch: int, *, step: int = 0, purpose: Purpose = Purpose.TRAIN, attempt: int = 0, branch: int = 0) -> Key:
    return (Branch(branch), Step(step), purpose, Microbatch(microbatch), Attempt(attempt))


def of_type(commands: list[Any], kind: type) -> list[Any]:
    """Return the messages of one kind among the commands, or the commands of one kind, in their order."""
    things = [command.message if isinstance(command, Send) else command for command in commands]
    return [thing for thing in things if isinstance(thing, kind)]


# -- membership --------------------------------------------------------------------------------------


def register(node: str, *, nonce: int = 1, role: Role = Role.WORKER, run: int = 0) -> Register:
    addresses = [Address(f"sim://{node}/{socket}") for socket in ("a", "b")][: 1 if role is Role.WORKER else 2]
    return Register(**header(run=run), node=NodeId(node), boot_nonce=nonce, role=role, addresses=tuple(addresses))


def welcome(
    yours: int, *, stage: int = 0, num_stages: int = 3, step: int = 0, wiring: str = "queue", **of: Any
) -> Welcome:
    return Welcome(
        **header(**of),
        branch=Branch(0),
        step=Step(step),
        yours=Session(yours),
        stage=Stage(stage),
        num_stages=num_stages,
        heartbeat_s=1.0,
        unit_bytes=SIZE_BYTES,
        wiring=wiring,
        size_bytes=0,
    )


def worker_at(session: int, stage: int) -> Member:
    address = Address(f"sim://worker-{session}")
    return Member(
        member=Session(session),
        node=NodeId(f"worker-{session}"),
        role=Role.WORKER,
        stage=Stage(stage),
        addresses=(address,),
    )


def broker_at(session: int, stage: int) -> Member:
    control, work = (Address(f"sim://broker-{session}/{socket}") for socket in ("control", "work"))
    return Member(
        member=Session(session),
        node=NodeId(f"broker-{session}"),
        role=Role.BROKER,
        stage=Stage(stage),
        addresses=(control, work),
    )


def view(number: int, *, step: int = 0, **of: Any) -> View:
    return View(**header(**of), branch=Branch(0), step=Step(step), view=number, size_bytes=0)


def heartbeat(
    session: int, report: int, *, step: int = 0, counted: int = 0, ready: bool = True, view: int = 99, stage: int = 0
) -> WorkerHeartbeat:
    """`counted` is the ledger as a bitmap."""
    return WorkerHeartbeat(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        stage=Stage(stage),
        view=view,
        report=report,
        ready=ready,
        ledger=ledger.to_bytes(counted),
        prepared=Round(0),
        busy_s=0.0,
        num_jobs=0,
        parameter_digest=0,
    )


def broker_heartbeat(session: int, *, view: int = 99, stage: int = 0) -> BrokerHeartbeat:
    return BrokerHeartbeat(
        **header(session), stage=Stage(stage), view=view, num_queued=0, num_leased=0, held_bytes=0, free_bytes=0
    )


def reject(text: str = "no", **of: Any) -> Reject:
    return Reject(**header(**of), code=RejectCode.NOT_NEEDED, text=text)


# -- producers and brokers ---------------------------------------------------------------------------


def attach(session: int) -> Attach:
    return Attach(**header(session))


def room(granted_bytes: int, *, free_bytes: int = 1000, depth: int = 0, response_s: float = 0.0) -> Room:
    return Room(granted_bytes=granted_bytes, free_bytes=free_bytes, depth=depth, response_s=response_s)


def credit(broker: int, granted_bytes: int, **about: Any) -> Credit:
    return Credit(**header(broker), room=room(granted_bytes, **about))


def forward(
    session: int, microbatch: int, *, route: tuple[int, ...] = (), size_bytes: int = SIZE_BYTES, **of: Any
) -> Forward:
    homes = tuple(Session(home) for home in route)
    return Forward(**header(session), **key_fields(key(microbatch, **of)), route=homes, parcel=parcel(size_bytes))


def backward(session: int, microbatch: int, *, route: tuple[int, ...] = (), **of: Any) -> Backward:
    homes = tuple(Session(home) for home in route)
    return Backward(**header(session), **key_fields(key(microbatch, **of)), route=homes, parcel=parcel())


def ack(session: int, microbatch: int, direction: Direction, *, room: Room | None = None, **of: Any) -> Ack:
    return Ack(**header(session), **key_fields(key(microbatch, **of)), direction=direction, room=room)


def nack(session: int, microbatch: int, code: NackCode, *, room: Room | None = None, **of: Any) -> Nack:
    fields = key_fields(key(microbatch, **of))
    return Nack(**header(session), **fields, direction=Direction.FORWARD, code=code, room=room)


# -- brokers and workers -----------------------------------------------------------------------------


def ready(session: int, *, step: int = 0, slots: int = 2, held: tuple[int, ...] = (), branch: int = 0) -> Ready:
    leases = tuple(Lease(lease) for lease in held)
    return Ready(**header(session), branch=Branch(branch), step=Step(step), slots=slots, held=leases)


def job(broker: int, lease: int, kind: JobKind, microbatch: int, *, route: tuple[int, ...] = (), **of: Any) -> Job:
    """A job with the payload that its kind needs, except that a backward has no input."""
    back = kind is JobKind.BACKWARD
    return Job(
        **header(broker),
        **key_fields(key(microbatch, **of)),
        lease=Lease(lease),
        kind=kind,
        accumulate=of.get("purpose", Purpose.TRAIN) is Purpose.TRAIN,
        route=tuple(Session(home) for home in route),
        x=None if back else parcel(),
        dy=parcel() if back else None,
    )


def result(
    session: int,
    lease: int,
    status: JobStatus = JobStatus.DONE,
    *,
    step: int = 0,
    kept: bool = False,
    compute_s: float = 1.0,
    slots: int = 2,
) -> Result:
    return Result(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        lease=Lease(lease),
        status=status,
        kept=kept,
        compute_s=compute_s,
        slots=slots,
    )


# -- rounds ------------------------------------------------------------------------------------------


def prepare(round_: int, participants: tuple[int, ...], *, counted: int = 0, step: int = 0, **of: Any) -> Prepare:
    """`counted` is the ledger as a bitmap."""
    return Prepare(
        **header(**of),
        branch=Branch(0),
        step=Step(step),
        round=Round(round_),
        participants=tuple(Session(p) for p in participants),
        ledger=ledger.to_bytes(counted),
    )


def prepared(
    session: int,
    round_: int,
    *,
    counted: int = 0,
    step: int = 0,
    digest: int = 1,
    finite: bool = True,
    square_norm: float = 1.0,
    loss_sum: float | None = 0.0,
) -> Prepared:
    return Prepared(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        round=Round(round_),
        digest=digest,
        finite=finite,
        square_norm=square_norm,
        ledger=ledger.to_bytes(counted),
        loss_sum=loss_sum,
        num_targets=1,
    )


def abort(round_: int, *, step: int = 0) -> Abort:
    return Abort(**header(), branch=Branch(0), step=Step(step), round=Round(round_))


def commit(round_: int, *, step: int = 0, digest: int = 1, apply: bool = True, **of: Any) -> Commit:
    return Commit(
        **header(**of),
        branch=Branch(0),
        step=Step(step),
        round=Round(round_),
        digest=digest,
        scale=0.5,
        lr=0.25,
        apply=apply,
    )


def evaluated(
    session: int, microbatch: int, *, loss_sum: float | None = 1.0, num_targets: int = 1, **of: Any
) -> Evaluated:
    of.setdefault("purpose", Purpose.EVALUATE)
    fields = key_fields(key(microbatch, **of))
    return Evaluated(**header(session), **fields, loss_sum=loss_sum, num_targets=num_targets)


def chunk(
    session: int, round_: int, phase: ReducePhase, shard: int, index: int = 0, num_chunks: int = 1, *, step: int = 0
) -> Chunk:
    return Chunk(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        round=Round(round_),
        phase=phase,
        shard=shard,
        chunk=index,
        num_chunks=num_chunks,
        parcel=parcel(),
    )


def chunk_ack(session: int, round_: int, phase: ReducePhase, shard: int, index: int = 0, *, step: int = 0) -> ChunkAck:
    return ChunkAck(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        round=Round(round_),
        phase=phase,
        shard=shard,
        chunk=index,
    )


def pull(layer: int, *, offset_bytes: int = 0, step: int = 0) -> Pull:
    return Pull(
        **header(),
        branch=Branch(0),
        step=Step(step),
        part=StatePart.PARAMETERS,
        layer=layer,
        offset_bytes=offset_bytes,
    )


def state(session: int, layer: int, offset_bytes: int, total_bytes: int, size_bytes: int, *, step: int = 0) -> State:
    return State(
        **header(session),
        branch=Branch(0),
        step=Step(step),
        part=StatePart.PARAMETERS,
        layer=layer,
        offset_bytes=offset_bytes,
        total_bytes=total_bytes,
        parcel=parcel(size_bytes),
    )


def failure(session: int, text: str, *, layer: str = "") -> Failure:
    return Failure(**header(session), stage=Stage(0), layer=layer, text=text)


def stop(session: int = TRAINER, **of: Any) -> Stop:
    return Stop(**header(session, **of))


def heartbeat_ack(view: int) -> HeartbeatAck:
    return HeartbeatAck(**header(), view=view)


def one_of_each(session: int, *, step: int, round_: int = 1, microbatch: int = 0) -> list[Message]:
    """One message of every kind but Welcome, Reject, Stop and Failure, as if `session` spoke of `step`."""
    forth, back = Direction.FORWARD, Direction.BACKWARD
    scatter = ReducePhase.SCATTER
    return [
        register("stranger", nonce=99),
        heartbeat(session, 1, step=step),
        broker_heartbeat(session),
        heartbeat_ack(3),
        view(1, step=step),
        prepare(round_, (session,), step=step),
        prepared(session, round_, step=step),
        abort(round_, step=step),
        commit(round_, step=step),
        evaluated(session, microbatch, step=step),
        attach(session),
        credit(session, 0),
        forward(session, microbatch, step=step),
        backward(session, microbatch, step=step),
        ack(session, microbatch, forth, step=step),
        ack(session, microbatch, back, step=step),
        nack(session, microbatch, NackCode.BUSY, step=step),
        nack(session, microbatch, NackCode.STALE, step=step),
        ready(session, step=step),
        job(session, 1, JobKind.FORWARD, microbatch, step=step, route=(1, 1, 1)),
        result(session, 1, step=step),
        chunk(session, round_, scatter, 0, step=step),
        chunk_ack(session, round_, scatter, 0, step=step),
        pull(0, step=step),
        state(session, 0, 0, 10, 10, step=step),
    ]
