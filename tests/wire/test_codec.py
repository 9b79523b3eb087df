"""The envelope: what goes in comes out, and nothing else does."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.letters import restore
from tests.wire.mutation import sealed
from tests.wire.samples import PARCEL, SAMPLES, payload_for
from tests.wire.strategies import longest, structures
from zswarm import limits
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.ids import Address, JobKind, Session
from zswarm.kinds import KINDS, payload_parcels
from zswarm.messages import (
    Commit,
    Failure,
    Forward,
    HeartbeatAck,
    Job,
    Message,
    Parcel,
    Ready,
    Source,
    State,
    TensorSpec,
    View,
    Welcome,
    WorkerHeartbeat,
)
from zswarm.wire import VersionMismatch, decode_untrusted, encode
from zswarm.wire.codec import MAGIC, PRELUDE
from zswarm.wire.fields import writer


def reframed(message: Message, **changes: object) -> list[bytes]:
    """Return the frames of `message` with fields of its header changed or added, checksum included."""
    frames = [bytes(frame) for frame in encode(message, payload_for(message))]
    header = msgpack.unpackb(frames[0][PRELUDE.size :])
    return [sealed(frames[0][5], msgpack.packb(header | changes), frames[1:]), *frames[1:]]


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda cls: cls.__name__)
@given(content=st.data(), sequence=st.integers(0, 2**64 - 1), resend=st.booleans())
def test_every_message_comes_out_as_it_went_in(
    cls: type[Message], content: st.DataObject, sequence: int, resend: bool
) -> None:
    """Every kind survives the wire with its payload, its number on the link and its flags."""
    message = content.draw(structures(cls))
    payload = payload_for(message)
    envelope = decode_untrusted(encode(message, payload, sequence=sequence, resend=resend))
    assert envelope.message == message
    assert type(envelope.message) is cls
    assert envelope.frames == payload
    assert envelope.sequence == sequence
    assert envelope.flags == (1 if payload else 0) + (2 if resend else 0)


def test_views_of_memory_are_frames_too() -> None:
    """A frame may be any buffer, whatever its item size."""
    frames = encode(SAMPLES["Forward"], payload_for(SAMPLES["Forward"]))
    views = [memoryview(bytearray(frames[0])), memoryview(frames[1])]
    assert decode_untrusted(views).message == SAMPLES["Forward"]


def test_the_prelude_is_as_documented() -> None:
    """The bytes on the wire are those of the protocol document, not merely what both ends agree on."""
    first = bytes(encode(SAMPLES["HeartbeatAck"], sequence=5, resend=True)[0])
    header = msgpack.packb({"run": 2**64 - 1, "generation": 3, "session": 0, "view": 9})
    crc = zlib.crc32(b"ZSWM\x01\x06" + header)
    assert first == b"ZSWM\x01\x06\x00\x02" + struct.pack("!IIQ", len(header), crc, 5) + header


def test_another_major_version_is_told_apart() -> None:
    """A peer of another version gets an answer that names both, whatever its header looks like."""
    first = bytes(encode(SAMPLES["Ready"])[0])
    with pytest.raises(VersionMismatch, match=r"version 9 .*version 1") as caught:
        decode_untrusted([first[:4] + b"\x09" + first[5:] + bytes(limits.MAX_HEADER_BYTES)])
    assert caught.value.theirs == 9


def test_unknown_fields_are_ignored() -> None:
    """A newer peer may say more."""
    frames = reframed(SAMPLES["Ready"], colour="blue", more={"deep": (1, 2)})
    assert decode_untrusted(frames).message == SAMPLES["Ready"]


def test_a_missing_field_takes_its_default() -> None:
    """An older peer may say less where a default exists."""
    sample = SAMPLES["WorkerHeartbeat"]
    assert isinstance(sample, WorkerHeartbeat)
    first = bytes(encode(sample)[0])
    header = msgpack.unpackb(first[PRELUDE.size :])
    del header["sent_bytes"]
    decoded = decode_untrusted([sealed(first[5], msgpack.packb(header), [])]).message
    assert decoded == dataclasses.replace(sample, sent_bytes=0)


@pytest.mark.parametrize("name", ["run", "session", "branch", "slots", "held"])
def test_a_missing_field_without_a_default_is_refused(name: str) -> None:
    """The text names the field."""
    first = bytes(encode(SAMPLES["Ready"])[0])
    header = msgpack.unpackb(first[PRELUDE.size :])
    del header[name]
    with pytest.raises(RemoteProtocolError, match=rf"Ready\.{name} is missing"):
        decode_untrusted([sealed(first[5], msgpack.packb(header), [])])


@pytest.mark.parametrize(
    ("sample", "changes"),
    [
        ("Ready", {"slots": True}),
        ("Ready", {"slots": 2.0}),
        ("Ready", {"slots": -1}),
        ("Ready", {"slots": limits.MAX_LEASES_PER_WORKER + 1}),
        ("Ready", {"held": 7}),
        ("Ready", {"held": [True]}),
        ("Ready", {"held": [-1]}),
        ("Ready", {"held": [1] * (limits.MAX_LEASES_PER_WORKER + 1)}),
        ("Ready", {"generation": 2**32}),
        ("WorkerHeartbeat", {"ready": 1}),
        ("WorkerHeartbeat", {"ledger": "text"}),
        ("WorkerHeartbeat", {"ledger": bytes(limits.MAX_LEDGER_BYTES + 1)}),
        ("WorkerHeartbeat", {"sent_bytes": None}),
        ("Reject", {"text": b"blob"}),
        ("Reject", {"text": "x" * (limits.MAX_TEXT_CHARS + 1)}),
        ("Reject", {"text": None}),
        ("WorkerHeartbeat", {"busy_s": 1}),
        ("WorkerHeartbeat", {"busy_s": -0.5}),
        ("WorkerHeartbeat", {"busy_s": float("nan")}),
        ("WorkerHeartbeat", {"busy_s": float("inf")}),
        ("Commit", {"scale": float("nan")}),
        ("Commit", {"lr": float("-inf")}),
        ("Job", {"kind": 4}),
        ("Job", {"kind": True}),
        ("Job", {"kind": 1.0}),
        ("Job", {"kind": {"a": 1}}),
        ("Job", {"x": [1]}),
        ("Register", {"role": "king"}),
        ("Register", {"role": 0}),
        ("Register", {"addresses": ["a", "b", "c"]}),
        ("Forward", {"parcel": None}),
        ("Forward", {"parcel": {"size_bytes": 4}}),
        ("Prepare", {"participants": {"0": 1}}),
    ],
)
def test_a_field_outside_its_type_or_range_is_refused(sample: str, changes: dict[str, object]) -> None:
    """A right checksum does not help; the text names the field."""
    (name,) = changes
    with pytest.raises(RemoteProtocolError, match=name):
        decode_untrusted(reframed(SAMPLES[sample], **changes))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x93\x01\x02\x03",
        b"\xc1",
        b"\x81\x01\x02",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x01\x00" * 1365,
        b"\x81\xa1a\xd6\xff\xff\xff\xff\xff",
        b"\x81\xa1a\xa1\xff",
        msgpack.packb({}) + b"\x00",
    ],
)
def test_a_header_that_is_no_map_is_refused(header: bytes) -> None:
    """Whatever msgpack makes of it, only RemoteProtocolError comes out."""
    first = bytes(encode(SAMPLES["Ready"])[0])
    with pytest.raises(RemoteProtocolError):
        decode_untrusted([sealed(first[5], header, [])])


def test_a_flipped_kind_does_not_turn_one_message_into_another() -> None:
    """Forward (34) and Backward (35) have equal fields: the checksum must cover the kind."""
    frames = encode(SAMPLES["Forward"], payload_for(SAMPLES["Forward"]))
    first = bytearray(frames[0])
    first[5] ^= 1
    with pytest.raises(RemoteProtocolError, match="checksum"):
        decode_untrusted([first, *frames[1:]])


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"ZSWM"],
        [MAGIC.lower() + bytes(20)],
        [bytes(24)],
        [PRELUDE.pack(MAGIC, 1, 255, 0, 0, 0, 0)],
        [PRELUDE.pack(MAGIC, 1, 9, 0, 2**32 - 1, 0, 0)],
        [b"ZSWM\x01\x09" + bytes(limits.MAX_HEADER_BYTES * 2)],
        [bytes(24)] * (limits.MAX_FRAMES + 2),
    ],
)
def test_what_is_no_envelope_is_refused(frames: list[bytes]) -> None:
    """Nothing of it is decoded."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(frames)


def test_a_control_message_with_a_payload_is_refused() -> None:
    """Control messages are exactly one frame, whatever the flags say."""
    first = bytearray(encode(SAMPLES["Ready"])[0])
    with pytest.raises(RemoteProtocolError, match="flags"):
        decode_untrusted([first, b"more"])
    first[7] |= 1
    with pytest.raises(RemoteProtocolError, match="frames"):
        decode_untrusted([first, b"more"])


@pytest.mark.parametrize("change", ["short", "long", "missing", "extra", "empty"])
def test_payload_frames_must_have_the_parcels_sizes(change: str) -> None:
    """Count and size of every frame follow from the header."""
    first, *payload = encode(SAMPLES["Job"], payload_for(SAMPLES["Job"]))
    x, dy = (bytes(frame) for frame in payload)
    frames = {
        "short": [x[:-1], dy],
        "long": [x, dy + b"\0"],
        "missing": [x + dy],
        "extra": [x, dy, b"\0"],
        "empty": [x, dy, b""],
    }[change]
    with pytest.raises(RemoteProtocolError, match="frames"):
        decode_untrusted([first, *frames])
    with pytest.raises(LocalProtocolError, match="frames"):
        encode(SAMPLES["Job"], frames)


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "complex64"},
        {"dtype": "object"},
        {"shape": [2, 2, 2, 2, 2]},
        {"shape": [limits.MAX_DIMENSION + 1]},
        {"shape": [3, -1]},
        {"shape": [3, 3]},
        {"shape": [limits.MAX_DIMENSION] * 4, "codec": "int8"},
        {"size_bytes": 25},
        {"codec": "x" * 17},
    ],
)
def test_tensors_that_their_bytes_cannot_hold_are_refused(spec: dict[str, object]) -> None:
    """A header cannot make anybody allocate what it has not paid for."""
    tensor = {"codec": "none", "dtype": "float32", "shape": [2, 3], "size_bytes": 24} | spec
    parcel = {"tensors": [tensor], "size_bytes": 24, "crc": 0}
    with pytest.raises(RemoteProtocolError, match="Forward"):
        decode_untrusted(reframed(SAMPLES["Forward"], parcel=parcel))


def test_only_a_layers_state_may_be_opaque() -> None:
    """State carries a file, and may name no tensor; an activation has to."""
    opaque = {"tensors": [], "size_bytes": PARCEL.size_bytes, "crc": 0}
    state = decode_untrusted(reframed(SAMPLES["State"], parcel=opaque)).message
    assert isinstance(state, State)
    assert state.parcel.tensors == ()
    with pytest.raises(RemoteProtocolError, match="tensors of 0 bytes"):
        decode_untrusted(reframed(SAMPLES["Forward"], parcel=opaque))


def full_parcel(size_bytes: int) -> Parcel:
    """Return a parcel of any size, of one int8 tensor."""
    spec = TensorSpec(codec="int8", dtype="float32", shape=(1,), size_bytes=size_bytes)
    return Parcel(tensors=(spec,), size_bytes=size_bytes, crc=0)


def test_the_largest_payload_passes_and_one_byte_more_does_not() -> None:
    """64 frames of 1 MiB; two parcels share them."""
    frame = bytes(limits.MAX_FRAME_BYTES)
    half = limits.MAX_FRAMES // 2
    job = SAMPLES["Job"]
    assert isinstance(job, Job)
    job = dataclasses.replace(
        job, x=full_parcel(half * len(frame)), dy=full_parcel(half * len(frame)), kind=JobKind.BACKWARD
    )
    assert len(decode_untrusted(encode(job, [frame] * limits.MAX_FRAMES)).frames) == limits.MAX_FRAMES
    longer = dataclasses.replace(job, dy=full_parcel(half * len(frame) + 1))
    with pytest.raises(LocalProtocolError, match="payload"):
        encode(longer, [*[frame] * limits.MAX_FRAMES, b"\0"])
    ragged = dataclasses.replace(job, x=full_parcel(1), dy=full_parcel(limits.MAX_PAYLOAD_BYTES - 1))
    with pytest.raises(LocalProtocolError, match="65 frames"):
        encode(ragged, [b"\0", *[frame] * (limits.MAX_FRAMES - 1), frame[:-1]])


def test_a_view_has_a_bound_of_its_own() -> None:
    """Everybody gets every view: it may not be as large as a payload."""
    view = SAMPLES["View"]
    assert isinstance(view, View)
    frame = bytes(limits.MAX_VIEW_BYTES)
    largest = dataclasses.replace(view, size_bytes=limits.MAX_VIEW_BYTES)
    assert decode_untrusted(encode(largest, [frame])).message == largest
    with pytest.raises(LocalProtocolError, match="view"):
        encode(dataclasses.replace(view, size_bytes=limits.MAX_VIEW_BYTES + 1), [frame, b"\0"])


def test_a_welcome_may_be_empty() -> None:
    """A size of 0 is no frame at all."""
    welcome = SAMPLES["Welcome"]
    assert isinstance(welcome, Welcome)
    empty = dataclasses.replace(welcome, size_bytes=0)
    assert decode_untrusted(encode(empty)).message == empty


@pytest.mark.parametrize(
    ("sample", "changes"),
    [
        ("Ready", {"slots": 65}),
        ("Ready", {"slots": True}),
        ("Ready", {"held": [1]}),
        ("Job", {"kind": 1}),
        ("Commit", {"scale": float("nan")}),
        ("Register", {"node": "\ud800"}),
        ("Failure", {"layer": "€" * limits.MAX_TEXT_CHARS, "text": "€" * limits.MAX_TEXT_CHARS, "session": 2**64}),
    ],
)
def test_our_own_mistakes_are_local_errors(sample: str, changes: dict[str, object]) -> None:
    """They never reach the wire."""
    message = SAMPLES[sample]
    broken = dataclasses.replace(message, **changes)  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError):
        encode(broken, payload_for(message))


def test_a_text_that_cannot_be_packed_leaves_nothing_behind() -> None:
    """The packer is the same for all messages: half of a broken header must not get into the next one."""
    message = SAMPLES["Failure"]
    before = encode(message)
    with pytest.raises(LocalProtocolError):
        encode(dataclasses.replace(message, text="x" * 100 + "\ud800"))  # type: ignore[call-arg]
    assert encode(message) == before


def test_a_header_that_is_too_long_is_a_local_error() -> None:
    """Text is bounded in characters, a header in bytes."""
    wide = Source(donor=Session(7), address=Address("𝄞" * limits.MAX_TEXT_CHARS))
    message = dataclasses.replace(restore(7, address=wide.address), others=(wide,) * (limits.MAX_DONORS - 1))
    with pytest.raises(LocalProtocolError, match="header"):
        encode(message)


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda cls: cls.__name__)
def test_the_longest_header_of_every_kind_fits(cls: type[Message]) -> None:
    """Two full ledgers in a heartbeat, a full route in a job with two parcels: no bound of a field is an empty promise.

    Texts are of one byte per character: others may have more than fits, which is an error at the sender.
    """
    message = longest(cls)
    assert len(msgpack.packb(writer(cls)(message))) <= limits.MAX_HEADER_BYTES
    if not payload_parcels(message) and cls not in (Welcome, View):
        assert decode_untrusted(encode(message)).message == message


def test_only_kinds_are_messages() -> None:
    """A base class, or an int where a float is wanted, is treated as the types say."""
    base = Message(run=SAMPLES["Ready"].run, generation=SAMPLES["Ready"].generation, session=SAMPLES["Ready"].session)
    with pytest.raises(LocalProtocolError, match="no kind"):
        encode(base)
    with pytest.raises(LocalProtocolError, match="sequence"):
        encode(SAMPLES["Ready"], sequence=2**64)
    commit = SAMPLES["Commit"]
    assert isinstance(commit, Commit)
    decoded = decode_untrusted(encode(dataclasses.replace(commit, scale=1))).message
    assert isinstance(decoded, Commit)
    assert (decoded.scale, type(decoded.scale)) == (1.0, float)


def test_the_contract_of_messages_and_the_codec_agree() -> None:
    """Kinds that the codec takes for control messages have no payload by the contract either."""
    for message in SAMPLES.values():
        payload = payload_for(message)
        assert bool(payload) == (bool(payload_parcels(message)) or isinstance(message, (Welcome, View)))
        if not payload:
            with pytest.raises(LocalProtocolError):
                encode(message, [b"x"])
    assert {type(message) for message in SAMPLES.values()} == set(KINDS.values())
    assert isinstance(SAMPLES["HeartbeatAck"], HeartbeatAck)
    assert isinstance(SAMPLES["Forward"], Forward)
    assert isinstance(SAMPLES["Failure"], Failure)
    assert isinstance(SAMPLES["Ready"], Ready)
