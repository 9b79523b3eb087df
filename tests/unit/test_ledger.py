from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zswarm import ledger
from zswarm.limits import MAX_LEDGER_BYTES, MAX_MICROBATCHES

SETS = st.sets(st.integers(0, MAX_MICROBATCHES - 1))


@given(SETS)
def test_round_trip(microbatches):
    bitmap = sum(1 << m for m in microbatches)
    packed = ledger.to_bytes(bitmap)
    assert len(packed) <= MAX_LEDGER_BYTES
    assert ledger.from_bytes(packed) == bitmap
    assert list(ledger.members(bitmap)) == sorted(microbatches)


@given(st.binary(max_size=MAX_LEDGER_BYTES))
def test_any_bytes_are_a_set(packed):
    assert sum(1 << m for m in ledger.members(ledger.from_bytes(packed))) == ledger.from_bytes(packed)


def test_full_is_every_microbatch():
    assert list(ledger.members(ledger.full(5))) == [0, 1, 2, 3, 4]
    assert ledger.full(0) == 0
    assert ledger.to_bytes(0) == b""
