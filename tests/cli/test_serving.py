"""Between runs, and when one is as good as over: what a broker or worker does that nobody has named a trainer to."""

from __future__ import annotations

import pytest

from zswarm import limits
from zswarm.cli.serving import Abandoned, Lookout, _Between, _take_part
from zswarm.ids import Address
from zswarm.machine import Exit
from zswarm.messages import Offer
from zswarm.overseer import NOBODY


def offer(port: int, nonce: int = 1) -> Offer:
    return Offer(name="run", coordinator=Address(f"tcp://10.0.0.1:{port}"), nonce=nonce)


MINE, MINE_AGAIN, OTHER = offer(1), offer(1, nonce=2), offer(2)


@pytest.mark.parametrize(
    ("looks", "is_abandoned"),
    [
        ([[OTHER]], False),
        ([[OTHER], [OTHER]], True),
        ([[OTHER], [OTHER, MINE], [OTHER]], False),
        ([[OTHER], [OTHER, MINE_AGAIN], [OTHER]], False),
        ([[OTHER], [], [OTHER]], False),
        ([[], [], []], False),
        ([[MINE], [MINE]], False),
    ],
)
def test_a_run_is_abandoned_when_another_one_is_offered_and_it_is_not(looks, is_abandoned):
    lookout = Lookout(MINE, list)
    for offers in looks:
        lookout.note(offers)
    assert lookout.is_abandoned is is_abandoned


def test_who_serves_an_abandoned_run_is_out_at_the_next_turn(monkeypatch):
    monkeypatch.setattr(limits, "LOOK_ROUND_S", 0.001)

    def serve(*, coordinator: Address, overseer: _Between) -> Exit:
        assert coordinator == MINE.coordinator
        while True:
            overseer.turned()

    end = _take_part(MINE, serve, _Between(NOBODY), lambda: [OTHER])
    assert (end.code, "gone" in end.text) == (0, True)


def test_the_lookout_ends_with_the_run(monkeypatch):
    monkeypatch.setattr(limits, "LOOK_ROUND_S", 0.001)
    within = _Between(NOBODY)
    over = Exit(code=0, text="the run is over")
    assert _take_part(MINE, lambda **_: over, within, lambda: [OTHER]) is over
    within.turned()
    assert within.lookout is None


def test_abandoned_says_nothing_to_whoever_catches_errors():
    """It has to pass through a service, which catches what is wrong."""
    assert not issubclass(Abandoned, (OSError, ValueError))
