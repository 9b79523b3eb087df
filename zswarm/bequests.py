"""What workers had counted that have left, and whose it is by now: as it is known, and as a View says it.

A View has a list of who left to whom, and the ledgers one after the other, all of the length of the longest: so both are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from zswarm import limits
from zswarm.ids import Session
from zswarm.ledger import from_bytes
from zswarm.messages import Bequest, View


class Left(NamedTuple):
    """What of a leaver's count is another one's."""

    heir: Session
    ledger: int
    """A bitmap of microbatches."""


def packed(bequests: Mapping[Session, Left]) -> tuple[tuple[Bequest, ...], bytes]:
    """Return the two fields of a View; the bequests are by leaver."""
    length = _length(bequests)
    pairs = tuple(Bequest(leaver=leaver, heir=left.heir) for leaver, left in bequests.items())
    return pairs, b"".join(left.ledger.to_bytes(length, "little") for left in bequests.values())


def unpacked(view: View) -> dict[Session, Left]:
    """Return them, by leaver."""
    length = len(view.left) // max(1, len(view.bequests))
    ledgers = (view.left[index * length : (index + 1) * length] for index in range(len(view.bequests)))
    return {
        pair.leaver: Left(pair.heir, from_bytes(packed_ledger))
        for pair, packed_ledger in zip(view.bequests, ledgers, strict=True)
    }


def fit(bequests: Mapping[Session, Left]) -> bool:
    """Is there room for them in a View?"""
    num_bytes = len(bequests) * _length(bequests)
    return len(bequests) <= limits.MAX_BEQUESTS and num_bytes <= limits.MAX_BEQUEST_BYTES


def _length(bequests: Mapping[Session, Left]) -> int:
    return max((-(-left.ledger.bit_length() // 8) for left in bequests.values()), default=0)
