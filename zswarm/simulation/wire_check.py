"""Whatever a machine sends must pass through the real codec and come out the same."""

from __future__ import annotations

from typing import Any

from zswarm import limits
from zswarm.errors import ZswarmError
from zswarm.kinds import payload_parcels
from zswarm.messages import Message, View, Welcome
from zswarm.simulation.violation import Violation, require
from zswarm.wire import decode_untrusted, encode, pack_members, unpack_members_untrusted


def check_wire(message: Message, frames: tuple[Any, ...]) -> None:
    """Raise Violation if the codec refuses the message, or gives another one back.

    Symbols have no bytes: zeros of the size that the parcels claim travel for them.
    """
    payload = _payload(message, frames)
    try:
        decoded = decode_untrusted(encode(message, payload)).message
    except ZswarmError as error:
        raise Violation("wire", f"the codec refuses {message}: {error}") from error
    if decoded != message:
        raise Violation("wire", f"{message} arrives as {decoded}")


def _payload(message: Message, frames: tuple[Any, ...]) -> list[bytes]:
    if isinstance(message, View):
        packed = pack_members(frames)
        if unpack_members_untrusted(packed) != frames:
            raise Violation("wire", f"the members of {message} change on the way")
        return [packed] if message.size_bytes else []
    if isinstance(message, Welcome):
        return [bytes(frame) for frame in frames]
    parcels = payload_parcels(message)
    if len(frames) != sum(parcel.num_frames for parcel in parcels):
        raise Violation("wire", f"{message} with {len(frames)} frames")
    require(all(p.size_bytes <= limits.MAX_FRAME_BYTES for p in parcels), "wire", "a symbol takes one frame")
    return [bytes(parcel.size_bytes) for parcel in parcels]
