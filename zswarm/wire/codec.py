"""The envelope: one message is one multipart of ZeroMQ.

    frame 0       prelude (24 bytes, network order), then the header (msgpack, at most MAX_HEADER_BYTES)
                    offset  bytes
                     0      4      magic "ZSWM"
                     4      1      major version
                     5      1      kind, a key of `kinds.KINDS`
                     6      2      flags: bit 0 payload follows, bit 1 sent again; others are ignored
                     8      4      length of the header
                    12      4      CRC-32 over magic, major, kind and header
                    16      8      link sequence: per link and direction, +1 per message
    frames 1..n   payload, see `zswarm.wire.payload`

The checksum covers the kind because some kinds have the same fields: a flipped bit must not make a
Backward of a Forward. The header is a map from field names to values. Bytes from a peer are looked at
in this order, and all work before the header's decoding is O(1): number of frames, length of frame 0,
magic, major, kind, header length, checksum, msgpack, type and range of every field, tensors, sizes of
the payload frames. The payload's own checksum is left to its consumer (`payload.verify`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from zswarm import limits
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.kinds import KINDS
from zswarm.messages import Backward, Chunk, Forward, Job, Message, Probe, State, View, Welcome
from zswarm.wire.crc import crc32
from zswarm.wire.fields import FieldFault, reader, writer
from zswarm.wire.payload import payload_fault

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"ZSWM"
MAJOR = 1
FLAG_PAYLOAD = 1
FLAG_RESEND = 2
PRELUDE = struct.Struct("!4sBBHIIQ")

_HEADER_LIMITS = {
    "use_list": False,
    "max_str_len": limits.MAX_HEADER_BYTES,
    "max_bin_len": limits.MAX_HEADER_BYTES,
    # msgpack allocates an announced array before it has seen it, and arrays nest.
    "max_array_len": max(limits.MAX_STAGES, limits.MAX_PARTICIPANTS),
    "max_map_len": 64,
    "max_ext_len": 0,
}
# One for all messages: making one takes as long as packing with it. It is its own again after an error.
_pack = msgpack.Packer().pack
_SEEDS = {kind: crc32(MAGIC + bytes((MAJOR, kind))) for kind in KINDS}
_KIND_OF: dict[type, int] = {cls: kind for kind, cls in KINDS.items()}
_CARRIERS: frozenset[type] = frozenset((Welcome, View, Forward, Backward, Job, Chunk, State, Probe))


class Envelope(NamedTuple):
    """A message as it came: checked, with its payload frames, its number on the link and its flags."""

    message: Message
    frames: tuple[Buffer, ...]
    sequence: int
    flags: int


class VersionMismatch(RemoteProtocolError):
    """The peer speaks another major version of the protocol."""

    def __init__(self, theirs: int) -> None:
        """Name both versions; `theirs` is what the peer speaks."""
        super().__init__(f"the peer speaks version {theirs} of the protocol, this process version {MAJOR}")
        self.theirs = theirs


def encode(message: Message, frames: Sequence[Buffer] = (), *, sequence: int = 0, resend: bool = False) -> list[Buffer]:
    """Return the multipart for a message and its payload frames, which are passed on as they are.

    Raises LocalProtocolError where a field, the header's size or the payload breaks a bound.
    """
    cls: type = type(message)
    kind = _KIND_OF.get(cls)
    if kind is None:
        raise LocalProtocolError(f"{cls.__name__} is no kind of message")
    try:
        header = _pack(writer(cls)(message))
    except (FieldFault, UnicodeEncodeError) as fault:
        raise LocalProtocolError(str(fault)) from None
    if len(header) > limits.MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"the header of this {cls.__name__} has {len(header)} bytes, more than {limits.MAX_HEADER_BYTES}"
        )
    if frames or cls in _CARRIERS:
        fault_text = payload_fault(message, [memoryview(frame).nbytes for frame in frames])
        if fault_text is not None:
            raise LocalProtocolError(f"{cls.__name__}: {fault_text}")
    flags = (FLAG_PAYLOAD if frames else 0) | (FLAG_RESEND if resend else 0)
    crc = crc32(header, _SEEDS[kind])
    try:
        prelude = PRELUDE.pack(MAGIC, MAJOR, kind, flags, len(header), crc, sequence)
    except struct.error:
        raise LocalProtocolError(f"link sequence {sequence} does not fit 64 bits") from None
    return [prelude + header, *frames]


def decode_untrusted(frames: Sequence[Buffer]) -> Envelope:
    """Return the message that a peer's multipart holds, everything checked but the payload's checksum.

    Raises RemoteProtocolError alone; of these, VersionMismatch where the peer speaks another major.
    """
    kind, flags, sequence, header = _open_untrusted(frames)
    cls: type = KINDS[kind]
    try:
        message: Message = reader(cls)(msgpack.unpackb(header, **_HEADER_LIMITS))
    except (FieldFault, ValueError) as fault:
        raise RemoteProtocolError(f"{cls.__name__}: {fault}") from None
    payload = tuple(frames)[1:]
    if payload or cls in _CARRIERS:
        fault_text = payload_fault(message, [memoryview(frame).nbytes for frame in payload])
        if fault_text is not None:
            raise RemoteProtocolError(f"{cls.__name__}: {fault_text}")
    return Envelope(message, payload, sequence, flags)


def _open_untrusted(frames: Sequence[Buffer]) -> tuple[int, int, int, bytes]:
    """Check the envelope in O(1); return kind, flags, link sequence and the header's bytes."""
    if not 1 <= len(frames) <= 1 + limits.MAX_FRAMES:
        raise RemoteProtocolError(f"a message of {len(frames)} frames")
    first = frames[0]
    size_bytes = _size_bytes(first)
    if size_bytes < PRELUDE.size:
        raise RemoteProtocolError(f"{size_bytes} bytes are no prelude")
    magic, major, kind, flags, header_bytes, crc, sequence = PRELUDE.unpack_from(first)
    if magic != MAGIC:
        raise RemoteProtocolError("not a message of zswarm")
    if major != MAJOR:
        raise VersionMismatch(major)
    seed = _SEEDS.get(kind)
    if seed is None:
        raise RemoteProtocolError(f"unknown kind {kind}")
    if header_bytes != size_bytes - PRELUDE.size or header_bytes > limits.MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"a header of {header_bytes} bytes in a frame of {size_bytes}")
    header = bytes(first)[PRELUDE.size :]
    if crc32(header, seed) != crc:
        raise RemoteProtocolError("the header's checksum does not match")
    if bool(flags & FLAG_PAYLOAD) != (len(frames) > 1):
        raise RemoteProtocolError(f"{len(frames) - 1} payload frames do not go with flags {flags}")
    return kind, flags, sequence, header


def _size_bytes(frame: Buffer) -> int:
    return len(frame) if type(frame) is bytes else memoryview(frame).nbytes
