"""Getting a stage's state from several donors at once: each gives one file after the other, and may fall silent."""

from __future__ import annotations

from typing import Any

import pytest

from stages.loader import Loader
from stages.tasks import Adopt, Import
from tests.letters import SIZE_BYTES, load, of_type, restore, state
from tests.stages.one_worker import ME, TRAINER_AT, new_machine
from zswarm import limits
from zswarm.ids import StatePart
from zswarm.machine import Send
from zswarm.messages import Pull

P, OPTIMIZER = StatePart.PARAMETERS, StatePart.OPTIMIZER
TOTAL_BYTES = 2 * SIZE_BYTES
LAYERS = range(4, 7)
FILES = [(layer, part) for layer in LAYERS for part in StatePart]


class Fixture:
    """A loader of three layers, of which each part is two ranges."""

    def __init__(self, *donors: int) -> None:
        self.now_s = 0.0
        me = new_machine().membership
        me.session = ME
        self.loader = Loader(me, restore(*donors, step=3), layers=LAYERS, resend_s=1.0)
        self.begun = asked(self.loader.start(0.0))

    def give(self, donor: int, layer: int, part: StatePart, offset_bytes: int = 0, *, step: int = 3) -> list[Any]:
        message = state(donor, layer, offset_bytes, TOTAL_BYTES, SIZE_BYTES, part=part, step=step)
        return self.loader.received(message, load((donor, layer, part, offset_bytes)), self.now_s)

    def tick(self, now_s: float) -> list[Any]:
        self.now_s = now_s
        return self.loader.resend_due(now_s)

    def finish(self, pulls: list[tuple[str, int, StatePart, int]], *silent: int) -> list[Any]:
        """Let everybody but the silent answer whatever is asked, until nothing more is; returns all that follows."""
        everything: list[Any] = []
        while pulls:
            peer, layer, part, offset_bytes = pulls.pop(0)
            donor = int(peer.rpartition("-")[2])
            if donor not in silent:
                commands = self.give(donor, layer, part, offset_bytes)
                everything += commands
                pulls += asked(commands)
        return everything


def asked(commands: list[Any]) -> list[tuple[str, int, StatePart, int]]:
    sends = [command for command in commands if isinstance(command, Send) and isinstance(command.message, Pull)]
    return [(str(s.peer), s.message.layer, s.message.part, s.message.offset_bytes) for s in sends]


def imported(commands: list[Any]) -> list[tuple[int, StatePart, int]]:
    return [(task.layer, task.part, task.offset_bytes) for task in of_type(commands, Import)]


def check_whole(commands: list[Any]) -> None:
    """Each file is imported once from its beginning to its end by one donor, at last, and then all is adopted."""
    last: dict[tuple[int, StatePart], list[Any]] = {}
    for task in of_type(commands, Import):
        if task.offset_bytes == 0:
            last[task.layer, task.part] = []
        last[task.layer, task.part].append(task.load.frames[0])
    for (layer, part), frames in last.items():
        donor = frames[0][0]
        assert frames == [(donor, layer, part, 0), (donor, layer, part, SIZE_BYTES)]
    assert set(last) == set(FILES)
    assert [type(command) for command in commands].count(Adopt) == 1
    assert isinstance(commands[-1], Adopt)


def test_every_donor_is_asked_for_another_file_and_for_one_range_at_a_time():
    fixture = Fixture(22, 23)
    assert fixture.begun == [("sim://worker-22", 4, P, 0), ("sim://worker-23", 4, OPTIMIZER, 0)]
    assert asked(fixture.give(23, 4, OPTIMIZER)) == [("sim://worker-23", 4, OPTIMIZER, SIZE_BYTES)]
    assert asked(fixture.give(23, 4, OPTIMIZER, SIZE_BYTES)) == [("sim://worker-23", 5, P, 0)]
    assert asked(fixture.give(22, 4, P)) == [("sim://worker-22", 4, P, SIZE_BYTES)]


@pytest.mark.parametrize("donors", [(22,), (22, 23), (22, 23, 24, 25)])
def test_all_of_it_comes_once_and_is_adopted(donors):
    fixture = Fixture(*donors)
    commands = fixture.finish(fixture.begun)
    check_whole(commands)
    assert sorted(imported(commands)) == sorted((*file, offset) for file in FILES for offset in (0, SIZE_BYTES))
    assert fixture.loader.is_adopting
    assert fixture.loader.next_deadline_s() is None


def test_more_donors_than_files_leave_some_with_nothing_to_do():
    me = new_machine().membership
    loader = Loader(me, restore(22, 23, 24, step=3), layers=range(1), resend_s=1.0)
    assert len(asked(loader.start(0.0))) == 2
    assert loader.next_deadline_s() == 1.0


def test_what_one_donor_was_asked_for_another_does_not_give():
    fixture = Fixture(22, 23)
    assert fixture.give(23, 4, P) == fixture.give(22, 4, OPTIMIZER) == fixture.give(24, 4, P) == []
    assert fixture.give(22, 4, P, step=2) == []


def test_a_silent_donor_is_asked_again_and_then_another_gives_the_file_from_its_beginning():
    """Half of the file had come: no file is put together of what two donors gave."""
    fixture = Fixture(22, 23)
    fixture.give(22, 4, P)
    commands = fixture.finish([("sim://worker-23", 4, OPTIMIZER, 0)], 22)
    assert not fixture.loader.is_adopting
    assert asked(fixture.tick(1.0)) == [("sim://worker-22", 4, P, SIZE_BYTES)]
    again = asked(fixture.tick(3.0))
    assert again == [("sim://worker-23", 4, P, 0)]
    assert fixture.give(22, 4, P, SIZE_BYTES) == [], "it comes too late"
    check_whole([*commands, *fixture.finish(again)])


def test_the_last_donor_is_asked_for_ever():
    fixture = Fixture(22)
    for now_s in (1.0, 3.0, 7.0, 15.0, 31.0):
        assert asked(fixture.tick(now_s)) == [("sim://worker-22", 4, P, 0)]
        assert fixture.tick(now_s) == []


def test_of_two_silent_donors_one_stays():
    fixture = Fixture(22, 23)
    fixture.tick(1.0)
    assert len(asked(fixture.tick(3.0))) == 1
    assert asked(fixture.tick(20.0))


def test_an_order_with_other_donors_goes_on_with_what_has_come():
    fixture = Fixture(22, 23)
    commands = fixture.give(22, 4, P) + fixture.give(22, 4, P, SIZE_BYTES)
    order = restore(22, 24, step=3)
    assert fixture.loader.serves(order)
    pulls = asked(fixture.loader.follow(order, 0.0))
    assert pulls == [("sim://worker-24", 4, OPTIMIZER, 0)], "it gives what 23 was to give"
    assert fixture.loader.follow(order, 0.0) == [], "it is a level"
    commands += fixture.finish([*asked(commands)[-1:], *pulls])
    check_whole(commands)
    assert (4, P, 0) in imported(commands)


def test_a_silent_donor_that_is_named_again_is_not_asked_again():
    fixture = Fixture(22, 23)
    fixture.finish([("sim://worker-23", 4, OPTIMIZER, 0)], 22)
    fixture.tick(1.0)
    fixture.tick(3.0)
    assert fixture.loader.follow(restore(22, 23, step=3), 3.0) == []


@pytest.mark.parametrize(
    ("order", "serves"),
    [
        (restore(22, step=3), True),
        (restore(23, 22, step=3), True),
        (restore(24, step=3), False),
        (restore(22, step=4), False),
        (restore(22, step=3, branch=1), False),
        (restore(22, step=3, address="sim://elsewhere"), False),
        (restore(0, step=3), False),
    ],
)
def test_an_order_of_nobody_that_is_asked_begins_anew(order, serves):
    assert Fixture(22, 23).loader.serves(order) is serves


def test_the_trainer_is_where_it_always_is():
    me = new_machine().membership
    loader = Loader(me, restore(0, address="sim://nowhere", step=3), layers=range(1), resend_s=1.0)
    assert [pull[0] for pull in asked(loader.start(0.0))] == [TRAINER_AT]


def test_a_donor_is_not_given_up_at_the_first_silence():
    assert limits.MAX_ASKED_OF_ONE > 1
