"""The recorded corpus: read as it was meant, and not at all once it is damaged."""

from __future__ import annotations

import pytest

from tests.wire.corpus import FOLDER, SEQUENCE, recorded_frames, sample_frames
from tests.wire.samples import SAMPLES
from zswarm.errors import RemoteProtocolError
from zswarm.wire import decode_untrusted
from zswarm.wire.codec import PRELUDE

FLAGS_BITS = range(6 * 8, 8 * 8)
SEQUENCE_BITS = range(16 * 8, 24 * 8)


def test_every_kind_is_recorded() -> None:
    """A new kind comes with its recording."""
    assert {path.stem for path in FOLDER.iterdir()} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_recorded_messages_are_read_as_they_were_meant(name: str) -> None:
    """What an older peer says still means the same."""
    envelope = decode_untrusted(recorded_frames(name))
    assert envelope.message == SAMPLES[name]
    assert envelope.sequence == SEQUENCE


@pytest.mark.parametrize("name", SAMPLES)
def test_the_wire_changes_on_purpose_only(name: str) -> None:
    """A change here belongs into the protocol document, and the corpus is recorded anew."""
    assert sample_frames(name) == recorded_frames(name)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_refused(name: str) -> None:
    """Of frame 0, of each payload frame, and of the list of frames."""
    frames = recorded_frames(name)
    for index, frame in enumerate(frames):
        for size_bytes in range(len(frame)):
            with pytest.raises(RemoteProtocolError):
                decode_untrusted([*frames[:index], frame[:size_bytes], *frames[index + 1 :]])
    for count in range(len(frames)):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted(frames[:count])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_of_frame_0_is_refused(name: str) -> None:
    """But for the link sequence and the flags that mean nothing without a payload: no checksum covers them."""
    first, *payload = recorded_frames(name)
    accepted = set()
    for bit in range(len(first) * 8):
        flipped = bytearray(first)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        try:
            envelope = decode_untrusted([flipped, *payload])
        except RemoteProtocolError:
            continue
        accepted.add(bit)
        assert envelope.message == SAMPLES[name]
        flags, sequence = PRELUDE.unpack_from(flipped)[3], PRELUDE.unpack_from(flipped)[6]
        assert (envelope.flags, envelope.sequence) == (flags, sequence)
    payload_bit = 8 * 8 - 1
    assert accepted == {*FLAGS_BITS, *SEQUENCE_BITS} - {payload_bit}
