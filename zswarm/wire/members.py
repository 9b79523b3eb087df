"""The members of a view as a payload: a msgpack array of mappings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgpack

from zswarm import limits
from zswarm.errors import LocalProtocolError, RemoteProtocolError
from zswarm.messages import Member
from zswarm.wire.fields import FieldFault, reader, writer

if TYPE_CHECKING:
    from typing_extensions import Buffer


def pack_members(members: Iterable[Member]) -> bytes:
    """Return the payload of a View; raises LocalProtocolError where a bound is broken."""
    write = writer(Member)
    try:
        rows = [write(member) for member in members]
        packed = msgpack.packb(rows)
    except (FieldFault, UnicodeEncodeError) as fault:
        raise LocalProtocolError(str(fault)) from None
    if len(rows) > limits.MAX_MEMBERS:
        raise LocalProtocolError(f"{len(rows)} members, more than {limits.MAX_MEMBERS}")
    if len(packed) > limits.MAX_VIEW_BYTES:
        raise LocalProtocolError(f"members of {len(packed)} bytes, more than {limits.MAX_VIEW_BYTES}")
    assert isinstance(packed, bytes)
    return packed


def unpack_members_untrusted(content: Buffer) -> tuple[Member, ...]:
    """Return the members that a View's payload holds; raises only RemoteProtocolError."""
    if memoryview(content).nbytes > limits.MAX_VIEW_BYTES:
        raise RemoteProtocolError(f"members in more than {limits.MAX_VIEW_BYTES} bytes")
    read = reader(Member)
    try:
        rows = msgpack.unpackb(
            content,
            use_list=False,
            max_str_len=4 * limits.MAX_TEXT_CHARS,
            max_bin_len=0,
            max_array_len=limits.MAX_MEMBERS,
            max_map_len=64,
            max_ext_len=0,
        )
        if type(rows) is not tuple:
            raise RemoteProtocolError("members are not an array")
        return tuple(read(row) for row in rows)
    except (FieldFault, ValueError) as fault:
        raise RemoteProtocolError(f"members: {fault}") from None
