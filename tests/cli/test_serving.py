"""When a run is as good as over: what a broker or worker does that nobody has named a trainer to."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from time import monotonic, sleep

import pytest

from zswarm import limits
from zswarm.cli.serving import Abandoned, Between, or_interrupted, take_part
from zswarm.errors import INTERRUPTED
from zswarm.ids import Address
from zswarm.machine import Exit, Health
from zswarm.messages import Offer
from zswarm.overseer import NOBODY

SILENT_S = limits.ABANDONED_S
WITHIN_S = 10.0
"""Longest that a thread may take to say what it has heard."""


def offer(port: int, nonce: int = 1) -> Offer:
    return Offer(name="run", coordinator=Address(f"tcp://10.0.0.1:{port}"), nonce=nonce)


MINE, MINE_AGAIN, OTHER = offer(1), offer(1, nonce=2), offer(2)


def heard(offers: Collection[Offer], silent_s: float = SILENT_S) -> bool:
    """Is the run abandoned once these offers have been heard?"""
    within = Between(NOBODY, lambda: offers)
    try:
        within.look(MINE, silent_s, 0.0)
        if within._watch is not None:
            within._watch._thread.join(WITHIN_S)
        within.look(MINE, silent_s, 0.1)
    except Abandoned:
        return True
    return False


@pytest.mark.parametrize(
    ("offers", "is_abandoned"),
    [([OTHER], True), ([OTHER, MINE], False), ([OTHER, MINE_AGAIN], False), ([], False), ([MINE], False)],
)
def test_a_run_is_abandoned_when_another_one_is_offered_and_it_is_not(offers, is_abandoned):
    assert heard(offers) is is_abandoned


def test_a_run_whose_trainer_is_heard_is_never_abandoned():
    """Offers come from another process than the trainer, by way of beacons: one of them may be gone."""
    assert not heard([OTHER], SILENT_S - 1.0)


def test_what_cannot_be_listened_to_ends_nothing():
    def listen() -> Collection[Offer]:
        raise OSError("no network")

    within = Between(NOBODY, listen)
    within.look(MINE, SILENT_S, 0.0)
    assert within._watch is not None
    within._watch._thread.join(WITHIN_S)
    within.look(MINE, SILENT_S, 0.1)


def test_it_listens_again_and_again_while_the_trainer_is_silent():
    num_heard = []
    within = Between(NOBODY, lambda: num_heard.append(1) or ())
    for now in (0.0, 1.0, limits.LISTEN_EVERY_S, limits.LISTEN_EVERY_S + 1.0):
        within.look(MINE, SILENT_S, now)
        within._watch._thread.join(WITHIN_S)
    assert len(num_heard) == 2


def test_who_serves_an_abandoned_run_is_out():
    within = Between(NOBODY, lambda: [OTHER])

    def serve(*, coordinator: Address, overseer: Between) -> Exit:
        assert coordinator == MINE.coordinator
        overseer.begin(None, lambda now: Health(text="", silent_s=SILENT_S))
        deadline_s = monotonic() + WITHIN_S
        while monotonic() < deadline_s:
            overseer.turned()
            sleep(0.01)
        raise AssertionError("nobody has noticed")

    end = take_part(MINE, serve, within)
    assert (end.code, "gone" in end.text) == (0, True)
    within.turned()


def test_a_run_that_ends_by_itself_is_over():
    over = Exit(code=0, text="the run is over")
    assert take_part(MINE, lambda **_: over, Between(NOBODY, lambda: [OTHER])) is over


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 0)])
def test_an_end_that_ctrl_c_has_asked_for_is_told_from_others(number, code):
    """An idle `zswarm broker` ended with a NameError instead."""

    def serve():
        os.kill(os.getpid(), number)
        return Exit(code=0, text="asked to leave")

    assert or_interrupted(serve) == Exit(code=code, text="asked to leave")


def test_a_failure_is_no_end_that_was_asked_for():
    assert or_interrupted(lambda: Exit(code=1, text="broken")) == Exit(code=1, text="broken")
