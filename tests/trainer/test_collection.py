from __future__ import annotations

import pytest

from tests.letters import header, heartbeat, load, register, state
from zswarm.ids import Address
from zswarm.machine import Send
from zswarm.trainer.collection import Collection
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Store

LAYERS = (2, 1)
VERSION = (0, 3)


class Fixture:
    """Two stages with two workers each (sessions 1, 3 and 2, 4), which hold the parameters of step 3."""

    def __init__(self, *, step: int = 3) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for index in range(4):
            record, _ = self.roster.register(register(f"w{index}"), Address("sim://link"), 0.0)
            record.note(heartbeat(record.session, 1, step=step))
        self.collection = Collection(self.roster, header(), version=VERSION, layers_per_stage=LAYERS)

    def get(self, session, layer, offset_bytes, total_bytes, size_bytes):
        message = state(session, layer, offset_bytes, total_bytes, size_bytes, step=3)
        return self.collection.received(message, load("range", size_bytes))


def pulls(commands) -> list[tuple[str, int, int]]:
    sends = [command for command in commands if isinstance(command, Send)]
    return [(send.peer, send.message.layer, send.message.offset_bytes) for send in sends]


def test_every_range_of_every_layer_from_one_worker_per_stage():
    fixture = Fixture()
    assert pulls(fixture.collection.ask()) == [("sim://w0/a", 0, 0), ("sim://w1/a", 2, 0)]
    stored, *more = fixture.get(1, 0, 0, 25, 10)
    assert stored == Store(layer=0, offset_bytes=0, total_bytes=25, load=load("range", 10))
    assert pulls(more) == [("sim://w0/a", 0, 10)]
    fixture.get(1, 0, 10, 25, 10)
    assert pulls(fixture.get(1, 0, 20, 25, 5)) == [("sim://w0/a", 1, 0)]
    assert pulls(fixture.get(1, 1, 0, 8, 8)) == []
    assert not fixture.collection.is_complete
    assert pulls(fixture.get(2, 2, 0, 8, 8)) == []
    assert fixture.collection.is_complete
    assert fixture.collection.ask() == []


@pytest.mark.parametrize(
    ("session", "layer", "offset_bytes"),
    [(1, 0, 0), (1, 0, 20), (1, 1, 10), (3, 0, 10), (2, 0, 10), (99, 0, 10)],
    ids=["again", "too far", "other layer", "not asked", "other stage", "stranger"],
)
def test_only_the_range_that_was_asked_for_counts(session, layer, offset_bytes):
    fixture = Fixture()
    fixture.collection.ask()
    fixture.get(1, 0, 0, 25, 10)
    assert fixture.get(session, layer, offset_bytes, 25, 10) == []
    assert len(fixture.get(1, 0, 10, 25, 10)) == 2


def test_asking_again_asks_for_what_is_missing():
    fixture = Fixture()
    fixture.collection.ask()
    fixture.get(1, 0, 0, 25, 10)
    assert pulls(fixture.collection.ask()) == []
    assert pulls(fixture.collection.ask()) == [("sim://w0/a", 0, 10), ("sim://w1/a", 2, 0)]


def test_a_range_on_its_way_through_a_slow_link_is_asked_for_ever_more_rarely():
    """Asked for every heartbeat, a link too slow for a range per heartbeat carried nothing but repetitions."""
    fixture = Fixture()
    asked = [beat for beat in range(100) if pulls(fixture.collection.ask())]
    assert asked == [0, 2, 5, 10, 19, 36, 53, 70, 87]
    fixture.get(1, 0, 0, 25, 10)
    assert pulls(fixture.collection.ask()) == []
    assert pulls(fixture.collection.ask()) == [("sim://w0/a", 0, 10)]


def test_only_holders_of_the_final_parameters_are_asked():
    fixture = Fixture(step=2)
    assert fixture.collection.ask() == []
    fixture.roster.records[3].note(heartbeat(3, 2, step=3))
    assert pulls(fixture.collection.ask()) == [("sim://w2/a", 0, 0)]
    assert fixture.get(1, 0, 0, 10, 10) == []
    assert len(fixture.get(3, 0, 0, 10, 10)) == 2
