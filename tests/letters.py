"""Messages with everything but the interesting fields filled in, for tests of machines."""

from __future__ import annotations

from typing import Any

from zswarm import ledger
from zswarm.bequests import Left, packed
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
    ContactReport,
    Credit,
    Drained,
    Evaluated,
    Failure,
    Fence,
    Forward,
    Greet,
    Greeted,
    HeartbeatAck,
    Inherit,
    Inspect,
    Inspection,
    Job,
    Key,
    Load,
    Measure,
    Measured,
    Member,
    Message,
    Move,
    Moved,
    Nack,
    Offer,
    Parcel,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Pull,
    Ready,
    Register,
    Reject,
    Restore,
    Result,
    Revoke,
    Room,
    Source,
    State,
    Stop,
    View,
    Void,
    Welcome,
    WorkerHeartbeat,
    key_fields,
)

RUN = RunId(7)
OTHER_RUN = RunId(8)
SIZE_BYTES = 100
"""Of every payload, and the unit of credit."""
WORKER = 21
"""Whom jobs are meant for."""
ALL_STAGES = b"\xff"
"""The mask of an attempt that all of up to eight stages count."""


class StepHeader(Header):
    """The fields that every message about a step has."""

    branch: Branch
    step: Step


def header(session: int = TRAINER, *, run: int = RUN, generation: int = 1) -> Header:
    return {"run": RunId(run), "generation": Generation(generation), "session": Session(session)}


def about(session: int = TRAINER, *, step: int = 0, branch: int = 0, **of: Any) -> StepHeader:
    return {**header(session, **of), "branch": Branch(branch), "step": Step(step)}


def sessions(numbers: tuple[int, ...]) -> tuple[Session, ...]:
    return tuple(Session(number) for number in numbers)


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


def register(
    node: str, *, nonce: int = 1, role: Role = Role.WORKER, run: int = 0, stage: int | None = None, **of: Any
) -> Register:
    addresses = [Address(f"sim://{node}/{socket}") for socket in ("a", "b")][: 1 if role is Role.WORKER else 2]
    return Register(
        **header(run=run, **of),
        node=NodeId(node),
        boot_nonce=nonce,
        role=role,
        addresses=tuple(addresses),
        stage=None if stage is None else Stage(stage),
    )


def welcome(
    yours: int,
    *,
    nonce: int = 1,
    stage: int = 0,
    num_stages: int = 3,
    layers: range = range(4, 6),
    wiring: str = "queue",
    **of: Any,
) -> Welcome:
    return Welcome(
        **about(**of),
        boot_nonce=nonce,
        yours=Session(yours),
        stage=Stage(stage),
        num_stages=num_stages,
        first_layer=layers.start,
        num_layers=len(layers),
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


def view(number: int, *, heirs: dict[int, tuple[int, int]] | None = None, **of: Any) -> View:
    """`heirs` are by leaver, with a bitmap of what is left to them."""
    bequests, left = packed(
        {Session(leaver): Left(Session(heir), bits) for leaver, (heir, bits) in (heirs or {}).items()}
    )
    return View(**about(**of), view=number, size_bytes=0, bequests=bequests, left=left)


def inherit(owner: int, counted: int, *, attempt: int = 0, **of: Any) -> Inherit:
    """`counted` is a bitmap; from the worker at the address that `worker_at` gives it."""
    return Inherit(
        **about(**of),
        owner=Session(owner),
        address=Address(f"sim://worker-{owner}"),
        attempt=Attempt(attempt),
        ledger=ledger.to_bytes(counted),
    )


def heartbeat(
    session: int,
    report: int,
    *,
    step: int = 0,
    branch: int = 0,
    generation: int = 1,
    counted: int = 0,
    pending: int = 0,
    inherits: tuple[int, int] = (TRAINER, 0),
    **fields: Any,
) -> WorkerHeartbeat:
    """`counted` and `pending` are bitmaps, as is what it has a copy of; any other field is given by its name."""
    quiet: dict[str, Any] = {"stage": 0, "view": 99, "ready": True, "voided": 0, "prepared": 0, "accused": ()}
    quiet["passed"] = b""
    idle = {"busy_s": 0.0, "job_s": 0.0, "usual_s": 0.0, "parameter_digest": 0}
    return WorkerHeartbeat(
        **about(session, step=step, branch=branch, generation=generation),
        report=report,
        ledger=ledger.to_bytes(counted),
        pending=ledger.to_bytes(pending),
        inherits=Session(inherits[0]),
        inherited=ledger.to_bytes(inherits[1]),
        **(quiet | idle | fields),
    )


def broker_heartbeat(
    session: int,
    report: int = 1,
    *,
    step: int = 0,
    branch: int = 0,
    generation: int = 1,
    active: int = 0,
    ahead: int = 0,
    **fields: Any,
) -> BrokerHeartbeat:
    """`active` and `ahead` are bitmaps; any other field is given by its name."""
    quiet: dict[str, Any] = {"stage": 0, "view": 99, "voided": 0, "accused": (), "passed": b""}
    return BrokerHeartbeat(
        **about(session, step=step, branch=branch, generation=generation),
        report=report,
        active=ledger.to_bytes(active),
        ahead=ledger.to_bytes(ahead),
        **(quiet | fields),
    )


def heartbeat_ack(view: int, *, of: int = TRAINER) -> HeartbeatAck:
    return HeartbeatAck(**header(of), view=view)


def fence(fenced: int, *, is_spare: bool = False, **of: Any) -> Fence:
    return Fence(**header(**of), fenced=Session(fenced), is_spare=is_spare)


def restore(donor: int, *others: int, address: str | None = None, **of: Any) -> Restore:
    """From the workers at the addresses that `worker_at` gives them, unless another is given."""
    more = tuple(Source(donor=Session(other), address=Address(f"sim://worker-{other}")) for other in others)
    first = Address(address or f"sim://worker-{donor}")
    return Restore(**about(**of), donor=Session(donor), address=first, others=more)


def move(node: str, stage: int, *, run: int = 0) -> Move:
    return Move(**header(run=run, generation=0), node=NodeId(node), stage=Stage(stage))


def moved(node: str, stage: int, text: str, *, is_accepted: bool = True) -> Moved:
    return Moved(**header(), node=NodeId(node), stage=Stage(stage), is_accepted=is_accepted, text=text)


def void(attempt: int, voided: int, **of: Any) -> Void:
    """`voided` are the microbatches as a bitmap."""
    return Void(**about(**of), attempt=Attempt(attempt), ledger=ledger.to_bytes(voided))


def reject(text: str = "no", **of: Any) -> Reject:
    return Reject(**header(**of), code=RejectCode.NOT_NEEDED, text=text)


# -- producers and brokers ---------------------------------------------------------------------------


def attach(session: int, *, is_done: bool = False) -> Attach:
    return Attach(**header(session), is_done=is_done)


def room(granted_bytes: int, *, producer: int = TRAINER, **about: Any) -> Room:
    about = {"received_bytes": 0, "free_bytes": 1000, "depth": 0, "response_s": 0.0} | about
    about = {"trainer": int(producer == TRAINER)} | about
    return Room(producer=producer, granted_bytes=granted_bytes, **about)


def credit(broker: int, granted_bytes: int, **about: Any) -> Credit:
    return Credit(**header(broker), room=room(granted_bytes, **about))


def forward(
    session: int,
    microbatch: int,
    *,
    route: tuple[int, ...] = (),
    mask: bytes = ALL_STAGES,
    size_bytes: int = SIZE_BYTES,
    **of: Any,
) -> Forward:
    fields = key_fields(key(microbatch, **of))
    return Forward(**header(session), **fields, route=sessions(route), mask=mask, parcel=parcel(size_bytes))


def backward(session: int, microbatch: int, *, route: tuple[int, ...] = (), **of: Any) -> Backward:
    return Backward(**header(session), **key_fields(key(microbatch, **of)), route=sessions(route), parcel=parcel())


def ack(session: int, microbatch: int, direction: Direction, *, room: Room | None = None, **of: Any) -> Ack:
    return Ack(**header(session), **key_fields(key(microbatch, **of)), direction=direction, room=room)


def nack(session: int, microbatch: int, code: NackCode, *, room: Room | None = None, **of: Any) -> Nack:
    fields = key_fields(key(microbatch, **of))
    return Nack(**header(session), **fields, direction=Direction.FORWARD, code=code, room=room)


# -- brokers and workers -----------------------------------------------------------------------------


def ready(session: int, *, slots: int = 2, held: tuple[int, ...] = (), leaves: bool = False, **of: Any) -> Ready:
    leases = tuple(Lease(lease) for lease in held)
    return Ready(**about(session, **of), slots=slots, held=leases, leaves=leaves)


def job(
    broker: int,
    lease: int,
    kind: JobKind,
    microbatch: int,
    *,
    worker: int = WORKER,
    accumulate: bool | None = None,
    emit: bool = True,
    route: tuple[int, ...] = (),
    mask: bytes = ALL_STAGES,
    **of: Any,
) -> Job:
    """A job with the payload that its kind needs, except that a backward has no input.

    It is to be counted if it is one to train on, unless `accumulate` says something else.
    """
    back = kind is JobKind.BACKWARD
    trains = of.get("purpose", Purpose.TRAIN) is Purpose.TRAIN
    return Job(
        **header(broker),
        **key_fields(key(microbatch, **of)),
        worker=Session(worker),
        lease=Lease(lease),
        kind=kind,
        accumulate=trains if accumulate is None else accumulate,
        emit=emit,
        route=sessions(route),
        mask=mask,
        x=None if back else parcel(),
        dy=parcel() if back else None,
    )


def drained(broker: int, *, worker: int = WORKER, **of: Any) -> Drained:
    return Drained(**header(broker, **of), worker=Session(worker))


def revoke(broker: int, lease: int, *, worker: int = WORKER, **of: Any) -> Revoke:
    return Revoke(**header(broker, **of), worker=Session(worker), lease=Lease(lease))


def result(
    session: int,
    lease: int,
    status: JobStatus = JobStatus.DONE,
    *,
    kept: bool = False,
    compute_s: float = 1.0,
    slots: int = 2,
    **of: Any,
) -> Result:
    return Result(
        **about(session, **of), lease=Lease(lease), status=status, kept=kept, compute_s=compute_s, slots=slots
    )


# -- rounds ------------------------------------------------------------------------------------------


def prepare(round_: int, participants: tuple[int, ...], *, counted: int = 0, **of: Any) -> Prepare:
    """`counted` is the ledger as a bitmap."""
    return Prepare(
        **about(**of), round=Round(round_), participants=sessions(participants), ledger=ledger.to_bytes(counted)
    )


def prepared(
    session: int,
    round_: int,
    *,
    counted: int = 0,
    digest: int = 1,
    finite: bool = True,
    square_norm: float = 1.0,
    loss_sum: float | None = 0.0,
    **of: Any,
) -> Prepared:
    return Prepared(
        **about(session, **of),
        round=Round(round_),
        digest=digest,
        finite=finite,
        square_norm=square_norm,
        ledger=ledger.to_bytes(counted),
        loss_sum=loss_sum,
        num_targets=1,
    )


def abort(round_: int, **of: Any) -> Abort:
    return Abort(**about(**of), round=Round(round_))


def commit(round_: int, *, digest: int = 1, apply: bool = True, snapshot: bool = False, **of: Any) -> Commit:
    return Commit(**about(**of), round=Round(round_), digest=digest, scale=0.5, lr=0.25, apply=apply, snapshot=snapshot)


def evaluated(
    session: int, microbatch: int, *, loss_sum: float | None = 1.0, num_targets: int = 1, **of: Any
) -> Evaluated:
    of.setdefault("purpose", Purpose.EVALUATE)
    fields = key_fields(key(microbatch, **of))
    return Evaluated(**header(session), **fields, loss_sum=loss_sum, num_targets=num_targets)


def chunk(
    session: int, round_: int, phase: ReducePhase, shard: int, index: int = 0, num_chunks: int = 1, **of: Any
) -> Chunk:
    return Chunk(
        **about(session, **of),
        round=Round(round_),
        phase=phase,
        shard=shard,
        chunk=index,
        num_chunks=num_chunks,
        parcel=parcel(),
    )


def chunk_ack(session: int, round_: int, phase: ReducePhase, shard: int, index: int = 0, **of: Any) -> ChunkAck:
    return ChunkAck(**about(session, **of), round=Round(round_), phase=phase, shard=shard, chunk=index)


def pull(
    layer: int,
    *,
    offset_bytes: int = 0,
    part: StatePart = StatePart.PARAMETERS,
    session: int = TRAINER,
    **of: Any,
) -> Pull:
    return Pull(**about(session, **of), part=part, layer=layer, offset_bytes=offset_bytes)


def state(
    session: int,
    layer: int,
    offset_bytes: int,
    total_bytes: int,
    size_bytes: int,
    *,
    part: StatePart = StatePart.PARAMETERS,
    counted: int = 0,
    loss_sum: float | None = 0.0,
    num_targets: int = 0,
    **of: Any,
) -> State:
    return State(
        **about(session, **of),
        ledger=ledger.to_bytes(counted),
        loss_sum=loss_sum,
        num_targets=num_targets,
        part=part,
        layer=layer,
        offset_bytes=offset_bytes,
        total_bytes=total_bytes,
        parcel=parcel(size_bytes),
    )


def failure(session: int, text: str, *, layer: str = "", microbatch: int | None = None) -> Failure:
    number = None if microbatch is None else Microbatch(microbatch)
    return Failure(**header(session), stage=Stage(0), layer=layer, text=text, microbatch=number)


def stop(session: int = TRAINER, **of: Any) -> Stop:
    return Stop(**header(session, **of))


def one_of_each(session: int, *, step: int, round_: int = 1, microbatch: int = 0) -> list[Message]:
    """One message of every kind but Welcome, Reject, Stop and Failure, as if `session` spoke of `step`.

    The one that is fenced is nobody.
    """
    forth, back = Direction.FORWARD, Direction.BACKWARD
    scatter = ReducePhase.SCATTER
    return [
        register("stranger", nonce=99),
        heartbeat(session, 1, step=step),
        broker_heartbeat(session, step=step),
        heartbeat_ack(3),
        view(1, step=step),
        fence(4000),
        restore(session, step=step),
        move("nobody", 0),
        moved("nobody", 0, "no"),
        void(1, 1 << microbatch, step=step),
        inherit(session, 1 << microbatch, step=step),
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
        drained(session),
        revoke(session, 1),
        result(session, 1, step=step),
        chunk(session, round_, scatter, 0, step=step),
        chunk_ack(session, round_, scatter, 0, step=step),
        pull(0, step=step),
        state(session, 0, 0, 10, 10, step=step),
    ]


# -- between machines --------------------------------------------------------------------------------


def between_machines() -> list[Message]:
    """One message of every kind that beacons and those who ask them exchange."""
    nowhere: Header = {"run": RunId(0), "generation": Generation(0), "session": TRAINER}
    here, there = Address("tcp://10.0.0.1:4710"), Address("tcp://10.0.0.2:4710")
    offer = Offer(name="prose", coordinator=Address("tcp://10.0.0.3:4711"), nonce=5)
    report = ContactReport(address=there, machine="lab2", is_heard=True, round_trip_s=0.001, origin="mdns", problem="")
    who: dict[str, Any] = {"machine": "lab1", "boot_nonce": 7, "release": "0.1.0", "number": 3}
    return [
        Greet(**nowhere, **who, address=here, known=(there,), offer=offer),
        Greeted(**nowhere, **who, known=(there,), offers=(offer,)),
        Inspect(**nowhere, first=0),
        Inspection(
            **nowhere, machine="lab1", address=here, release="0.1.0", first=0, num_contacts=1, contacts=(report,)
        ),
        Measure(**nowhere, address=there),
        Measured(**nowhere, address=there, bytes_per_s=1e8, problem=""),
        Probe(**nowhere, number=1, parcel=parcel()),
        Probed(**nowhere, number=1),
    ]
