"""A million changed messages: refused, or within every bound."""

from __future__ import annotations

import gc
import tracemalloc

import msgpack
import pytest

from tests.wire.mutation import Enemy, sealed
from zswarm import limits
from zswarm.errors import RemoteProtocolError
from zswarm.wire import decode_untrusted, encode

NUM_CHUNKS = 20
CHUNK = 50_000
READY = 48


@pytest.mark.parametrize("seed", range(NUM_CHUNKS))
def test_changed_messages_are_refused_or_within_bounds(seed: int) -> None:
    """Nothing but RemoteProtocolError comes out, and what passes is something that we could say ourselves."""
    enemy = Enemy(seed)
    num_accepted = num_past_checksum = 0
    for _ in range(CHUNK):
        mutant = enemy.mutant()
        try:
            envelope = decode_untrusted(mutant)
        except RemoteProtocolError as refusal:
            num_past_checksum += ": " in str(refusal)
            continue
        num_accepted += 1
        again = encode(envelope.message, envelope.frames, sequence=envelope.sequence)
        assert decode_untrusted(again).message == envelope.message
    assert num_past_checksum > CHUNK // 2, "too few mutants reach the checks of the fields"
    assert num_accepted > CHUNK // 50, "too few mutants are harmless: the property above is hardly tried"


def test_refusing_a_message_keeps_no_memory() -> None:
    """A peer that sends rubbish for days costs nothing but time."""
    enemy = Enemy(-1)
    mutants = [enemy.mutant() for _ in range(4000)]

    def refuse() -> None:
        for mutant in mutants:
            try:
                decode_untrusted(mutant)
            except RemoteProtocolError:
                continue

    refuse()
    gc.collect()
    tracemalloc.start()
    before_bytes, _ = tracemalloc.get_traced_memory()
    refuse()
    _, peak_bytes = tracemalloc.get_traced_memory()
    gc.collect()
    after_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after_bytes - before_bytes < 50_000
    assert peak_bytes - before_bytes < 4 << 20


@pytest.mark.parametrize(
    "header",
    [
        b"\xdc\x01\x00" * (limits.MAX_HEADER_BYTES // 3),
        b"\x81\xa1a" * (limits.MAX_HEADER_BYTES // 3),
        b"\x91" * limits.MAX_HEADER_BYTES,
        msgpack.packb({"a": [0] * 256, "b": b"\0" * 3000}),
        b"\xdd\x00\x00\x01\x00" + b"\xdc\x01\x00" * 1300,
    ],
    ids=["nested arrays", "nested maps", "deep arrays", "wide", "announced"],
)
def test_a_header_cannot_make_us_allocate_much(header: bytes) -> None:
    """An array is allocated as announced, before it is seen: announced sizes are bounded, and depth is."""
    first = sealed(READY, header, [])
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decode_untrusted([first])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20
