"""The wire: how messages become frames, and how frames from strangers become messages again.

Everything that reads foreign bytes is called `*_untrusted` and raises `RemoteProtocolError` alone.
"""

from __future__ import annotations

from zswarm.wire.codec import MAJOR, Envelope, VersionMismatch, decode_untrusted, encode
from zswarm.wire.members import pack_members, unpack_members_untrusted
from zswarm.wire.payload import IDENTITY_CODEC, checksum, intact, parcelled, split, verify

__all__ = [
    "IDENTITY_CODEC",
    "MAJOR",
    "Envelope",
    "VersionMismatch",
    "checksum",
    "decode_untrusted",
    "encode",
    "intact",
    "pack_members",
    "parcelled",
    "split",
    "unpack_members_untrusted",
    "verify",
]
