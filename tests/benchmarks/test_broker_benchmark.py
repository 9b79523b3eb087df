from __future__ import annotations

import json

import pytest

from brokers.entries import first_lease
from zswarm import wire
from zswarm.benchmarks import broker
from zswarm.benchmarks.broker import LARGE, LARGE_BARE, RESIDENT, SMALL, SMALL_BARE, START, figures_of
from zswarm.benchmarks.traffic import BROKER, KIND_OF, KIND_OFFSET, forwards, results
from zswarm.messages import Forward, Result
from zswarm.swarm_key import make_key_file

FIRST = first_lease(BROKER)
VALUES = {
    SMALL: [20_000.0, 30_000.0, 19_000.0],
    SMALL_BARE: [50_000.0, 60_000.0, 38_000.0],
    LARGE: [1.4, 1.5, 1.3],
    LARGE_BARE: [2.8, 2.0, 2.6],
    START: [0.2],
    RESIDENT: [61.0],
}


def test_figures_stand_beside_their_targets():
    """Medians are held against targets; the bare loop has none."""
    figures = {figure.name: figure for figure in figures_of(VALUES)}
    assert figures[SMALL].is_met is True
    assert figures[LARGE].is_met is False
    assert figures[START].is_met is True
    assert figures[RESIDENT].is_met is False
    assert figures[SMALL_BARE].is_met is None
    assert figures["broker, microbatches/s"].values == [10_000.0, 15_000.0, 9_500.0]


def test_the_broker_is_held_against_the_bare_loop_of_its_round():
    figures = {figure.name: figure for figure in figures_of(VALUES)}
    assert figures[f"{SMALL} / bare"].values == [0.4, 0.5, 0.5]
    assert figures[f"{LARGE} / bare"].values == [0.5, 0.75, 0.5]


@pytest.mark.parametrize("payload_bytes", [100, 8 << 20])
def test_every_microbatch_is_another_one(payload_bytes):
    """What is packed beforehand is what a broker accepts, and no two are duplicates, even past one step's worth."""
    count = 3
    envelopes = [wire.decode_untrusted(parts) for parts in forwards(count, payload_bytes)]
    messages = [envelope.message for envelope in envelopes]
    assert all(
        isinstance(message, Forward) and wire.verify(message.parcel, envelopes[0].frames) for message in messages
    )
    assert len({message.key for message in messages}) == count
    assert [envelope.sequence for envelope in envelopes] == [1, 2, 3]


def test_results_answer_the_leases_in_order():
    packed = results(3, 8)
    messages = [wire.decode_untrusted(parts).message for parts in packed]
    assert [message.lease for message in messages if isinstance(message, Result)] == [FIRST, FIRST + 1, FIRST + 2]
    assert packed[0][0][KIND_OFFSET] == KIND_OF[Result]


@pytest.mark.parametrize("payload_bytes", [100, 3 << 20])
@pytest.mark.parametrize("has_key", [False, True], ids=["plain", "encrypted"])
def test_traffic_goes_through_a_real_broker(tmp_path, payload_bytes, has_key):
    """A real broker process takes every microbatch and every result, whatever the payload."""
    key_file = tmp_path / "key" if has_key else None
    if key_file is not None:
        make_key_file(key_file)
    assert broker._through_broker(key_file, payload_bytes, 20, 4) > 0


def test_traffic_goes_through_the_bare_loop():
    assert broker._through_bare_loop(100, 20, 4) > 0


def test_an_idle_broker_is_weighed():
    found = broker._idle(None)
    assert 1 < found[broker.UNIQUE] <= found[RESIDENT]
    assert found[START] > 0


def test_everything_is_printed_and_written(tmp_path, monkeypatch, capsys):
    """Each figure stands beside its target, and the file has every round."""
    monkeypatch.setattr(broker, "_through_broker", lambda *_: 12_000.0)
    monkeypatch.setattr(broker, "_through_bare_loop", lambda *_: 60_000.0)
    monkeypatch.setattr(broker, "_idle", lambda _: {START: 0.2, RESIDENT: 40.0})
    file = tmp_path / "found.json"
    broker.main(pairs=2, json_file=file)
    assert ">= 20000" in capsys.readouterr().out
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())["figures"]}
    assert figures[SMALL]["values"] == [24_000.0, 24_000.0]
    assert figures[SMALL]["is_met"] is True
