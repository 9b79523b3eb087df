"""Fetching the copies of a checkpoint while training goes on, and the last state of all."""

from __future__ import annotations

import pytest

from tests.letters import header, heartbeat, load, register, state
from zswarm.ids import STATE_FILES, Address, StatePart
from zswarm.machine import Send
from zswarm.trainer.collection import Collection
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Store

LAYERS = (2, 1)
BRANCH, STEP = 1, 3
VERSION = (BRANCH, STEP)
PARAMETERS, OPTIMIZER = STATE_FILES
DONORS = {0: 1, 1: 2}


class Fixture:
    """Two stages with two workers each (sessions 1, 3 and 2, 4), which hold the parameters of step 3."""

    def __init__(self, *, donors=None, step=STEP) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for index in range(4):
            self.roster.register(register(f"w{index}"), Address("sim://link"), 0.0)
        self.num_reports = 0
        for session in range(1, 5):
            self.report(session, step=step)
        self.collection = Collection(self.roster, header(), version=VERSION, layers_per_stage=LAYERS, donors=donors)

    def report(self, session, *, step=STEP, branch=BRANCH, **of):
        self.num_reports += 1
        self.roster.records[session].note(heartbeat(session, self.num_reports, step=step, branch=branch, **of), 0.0)

    def get(self, session, layer, part=PARAMETERS, *, offset_bytes=0, total_bytes=10, size_bytes=10, **of):
        of = {"step": STEP, "branch": BRANCH} | of
        message = state(session, layer, offset_bytes, total_bytes, size_bytes, part=part, **of)
        return self.collection.received(message, load("range", size_bytes))

    def asked(self) -> list[tuple[str, int, StatePart, int]]:
        return pulls(self.collection.ask())


def pulls(commands) -> list[tuple[str, int, StatePart, int]]:
    sends = [command for command in commands if isinstance(command, Send)]
    return [(send.peer, send.message.layer, send.message.part, send.message.offset_bytes) for send in sends]


@pytest.mark.parametrize("donors", [None, DONORS], ids=["the last state", "copies"])
def test_two_parts_of_every_layer_in_their_order(donors):
    fixture = Fixture(donors=donors)
    assert fixture.asked() == [("sim://w0/a", 0, PARAMETERS, 0), ("sim://w1/a", 2, PARAMETERS, 0)]
    assert pulls(fixture.get(1, 0)) == [("sim://w0/a", 0, OPTIMIZER, 0)]
    assert pulls(fixture.get(1, 0, OPTIMIZER)) == [("sim://w0/a", 1, PARAMETERS, 0)]
    assert pulls(fixture.get(1, 1)) == [("sim://w0/a", 1, OPTIMIZER, 0)]
    assert pulls(fixture.get(1, 1, OPTIMIZER)) == []
    assert pulls(fixture.get(2, 2)) == [("sim://w1/a", 2, OPTIMIZER, 0)]
    assert not fixture.collection.is_complete
    assert pulls(fixture.get(2, 2, OPTIMIZER)) == []
    assert fixture.collection.is_complete
    assert fixture.asked() == []


def test_a_part_comes_in_ranges():
    fixture = Fixture()
    fixture.collection.ask()
    stored, *more = fixture.get(1, 0, total_bytes=25)
    assert stored == Store(
        branch=BRANCH,
        step=STEP,
        part=PARAMETERS,
        layer=0,
        offset_bytes=0,
        total_bytes=25,
        load=load("range", 10),
    )
    assert pulls(more) == [("sim://w0/a", 0, PARAMETERS, 10)]
    fixture.get(1, 0, offset_bytes=10, total_bytes=25)
    more = fixture.get(1, 0, offset_bytes=20, total_bytes=25, size_bytes=5)
    assert pulls(more) == [("sim://w0/a", 0, OPTIMIZER, 0)]


@pytest.mark.parametrize(
    "of",
    [
        {"offset_bytes": 0},
        {"offset_bytes": 20},
        {"layer": 1},
        {"part": OPTIMIZER},
        {"session": 3},
        {"session": 2},
        {"session": 99},
        {"step": STEP + 1},
        {"branch": BRANCH - 1},
    ],
    ids=[
        "again",
        "too far",
        "other layer",
        "other part",
        "not asked",
        "other stage",
        "stranger",
        "other step",
        "other branch",
    ],
)
def test_only_the_range_that_was_asked_for_counts(of):
    fixture = Fixture()
    fixture.collection.ask()
    fixture.get(1, 0, total_bytes=25)
    asked = {"session": 1, "layer": 0, "offset_bytes": 10, "total_bytes": 25}
    assert fixture.get(**(asked | of)) == []
    assert len(fixture.get(**asked)) == 2


def test_asking_again_asks_for_what_is_missing():
    fixture = Fixture()
    fixture.collection.ask()
    fixture.get(1, 0, total_bytes=25)
    assert fixture.asked() == []
    assert fixture.asked() == [("sim://w0/a", 0, PARAMETERS, 10), ("sim://w1/a", 2, PARAMETERS, 0)]


def test_a_range_on_its_way_through_a_slow_link_is_asked_for_ever_more_rarely():
    """Asked for every heartbeat, a link too slow for a range per heartbeat carried nothing but repetitions."""
    fixture = Fixture()
    asked = [beat for beat in range(100) if fixture.asked()]
    assert asked == [0, 2, 5, 10, 19, 36, 53, 70, 87]
    fixture.get(1, 0, total_bytes=25)
    assert fixture.asked() == []
    assert fixture.asked() == [("sim://w0/a", 0, PARAMETERS, 10)]


# -- the last state, from anybody --------------------------------------------------------------------


def test_of_the_last_step_any_worker_that_holds_it_will_do():
    fixture = Fixture(step=STEP - 1)
    assert fixture.asked() == []
    fixture.report(3)
    fixture.report(4, ready=False)
    assert fixture.asked() == [("sim://w2/a", 0, PARAMETERS, 0)]
    assert fixture.get(1, 0) == []
    assert len(fixture.get(3, 0)) == 2


def test_if_a_worker_leaves_another_one_goes_on_with_the_same_file():
    """From its beginning, since ranges of two workers need not fit; files that are complete are kept."""
    fixture = Fixture()
    fixture.collection.ask()
    fixture.get(1, 0)
    fixture.get(1, 0, OPTIMIZER, total_bytes=25)
    fixture.roster.remove(1, 0.0)
    assert fixture.asked()[0] == ("sim://w2/a", 0, OPTIMIZER, 0), "at once, whenever the other was asked last"
    assert fixture.collection.lost_donor is None
    assert fixture.get(1, 0, OPTIMIZER, offset_bytes=10, total_bytes=25) == []
    assert len(fixture.get(3, 0, OPTIMIZER)) == 2


def test_a_worker_that_is_asked_stays_the_one():
    fixture = Fixture(step=STEP - 1)
    fixture.report(3)
    fixture.collection.ask()
    fixture.report(1)
    fixture.collection.ask()
    assert fixture.asked() == [("sim://w2/a", 0, PARAMETERS, 0)]


# -- copies, each from the one that keeps it ---------------------------------------------------------


def test_a_copy_is_asked_for_once_it_is_made():
    """Its worker says so by reporting that step, or a later one."""
    fixture = Fixture(donors={0: 3, 1: 2}, step=STEP - 1)
    assert fixture.asked() == []
    fixture.report(1)
    assert fixture.asked() == []
    fixture.report(3, step=STEP + 4)
    assert fixture.asked() == [("sim://w2/a", 0, PARAMETERS, 0)]
    fixture.report(2)
    assert fixture.asked() == [("sim://w1/a", 2, PARAMETERS, 0)]


def test_a_worker_that_gets_another_state_keeps_no_copy_for_sure():
    fixture = Fixture(donors=DONORS)
    fixture.report(1, step=STEP + 1, ready=False)
    assert fixture.asked() == [("sim://w1/a", 2, PARAMETERS, 0)]


def test_nobody_else_has_a_copy():
    fixture = Fixture(donors=DONORS)
    assert fixture.collection.lost_donor is None
    fixture.roster.remove(3, 0.0)
    assert fixture.collection.lost_donor is None
    fixture.roster.remove(1, 0.0)
    assert fixture.collection.lost_donor == 1
    assert fixture.asked() == [("sim://w1/a", 2, PARAMETERS, 0)]


def test_a_worker_whose_copy_has_been_fetched_may_go():
    fixture = Fixture(donors=DONORS)
    fixture.collection.ask()
    for layer in (0, 1):
        for part in STATE_FILES:
            fixture.get(1, layer, part)
    fixture.roster.remove(1, 0.0)
    assert fixture.collection.lost_donor is None
    fixture.roster.remove(2, 0.0)
    assert fixture.collection.lost_donor == 2
