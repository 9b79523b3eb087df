"""Getting a stage's state from several donors at once, while steps go on: each gives one layer after the other."""

from __future__ import annotations

from typing import Any

import pytest

from stages.loader import Importing, Loader
from stages.tasks import Adopt, Import
from tests.letters import SIZE_BYTES, load, of_type, restore, state
from tests.stages.one_worker import ME, TRAINER_AT, new_machine
from zswarm import limits
from zswarm.ids import STATE_FILES, Branch, StatePart, Step, Version
from zswarm.machine import Send
from zswarm.messages import Pull

P, OPTIMIZER, GRADIENT = StatePart.PARAMETERS, StatePart.OPTIMIZER, StatePart.GRADIENT
TOTAL_BYTES = 2 * SIZE_BYTES
LAYERS = range(4, 7)
FILES = [(layer, part) for layer in LAYERS for part in STATE_FILES]


MANY = limits.PULLS_OF_ONE


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask one range of each donor at a time, so that the order is certain."""
    monkeypatch.setattr(limits, "PULLS_OF_ONE", 1)


@pytest.fixture
def many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PULLS_OF_ONE", MANY)


Ask = tuple[str, int, StatePart, int, int]
"""Whom, the layer, its part, from where on, of which step."""


class Fixture:
    """A loader of three layers, of which each part is two ranges."""

    def __init__(self, *donors: int, held: Version | None = None) -> None:
        self.now_s = 0.0
        self.takes_at_once = True
        me = new_machine().membership
        me.session = ME
        self.importing = Importing()
        self.loader = Loader(
            me, restore(*donors, step=3), layers=LAYERS, held=held, resend_s=1.0, importing=self.importing
        )
        self.begun = asked(self.loader.start(0.0))

    def give(self, donor: int, layer: int, part: StatePart, offset_bytes: int = 0, *, step: int = 3) -> list[Any]:
        message = state(donor, layer, offset_bytes, TOTAL_BYTES, SIZE_BYTES, part=part, step=step)
        commands = self.loader.received(message, load((donor, layer, part, offset_bytes, step)), self.now_s)
        if self.takes_at_once:
            self.importing.num_ranges = 0
        return commands

    def follow(self, *donors: int, step: int = 3, **of: Any) -> list[Ask]:
        return asked(self.loader.follow(restore(*donors, step=step, **of), self.now_s))

    def tick(self, now_s: float) -> list[Any]:
        self.now_s = now_s
        return self.loader.resend_due(now_s)

    def finish(self, pulls: list[Ask], *silent: int) -> list[Any]:
        """Let everybody but the silent answer whatever is asked, until nothing more is; returns all that follows."""
        everything: list[Any] = []
        while pulls:
            peer, layer, part, offset_bytes, step = pulls.pop(0)
            donor = int(peer.rpartition("-")[2])
            if donor not in silent:
                commands = self.give(donor, layer, part, offset_bytes, step=step)
                everything += commands
                pulls += asked(commands)
        return everything


def asked(commands: list[Any]) -> list[Ask]:
    sends = [command for command in commands if isinstance(command, Send) and isinstance(command.message, Pull)]
    pulls = [(str(send.peer), send.message) for send in sends]
    return [(peer, pull.layer, pull.part, pull.offset_bytes, pull.step) for peer, pull in pulls]


def at(donor: int) -> str:
    return f"sim://worker-{donor}"


def imported(commands: list[Any]) -> list[tuple[int, StatePart, int]]:
    return [(task.layer, task.part, task.offset_bytes) for task in of_type(commands, Import)]


def check_whole(commands: list[Any], step: int = 3) -> None:
    """What is adopted at last is, of each layer, both files of one donor and version and then every step up to `step`."""
    layers: dict[int, int] = {}
    files: dict[tuple[int, StatePart], list[Any]] = {}
    for task in of_type(commands, Import):
        (said,) = task.load.frames
        file = (task.layer, task.part)
        files[file] = [*files.get(file, []), said] if task.offset_bytes else [said]
        if len(files[file]) < TOTAL_BYTES // SIZE_BYTES:
            continue
        donor, _, _, _, version = said
        assert files[file] == [(donor, *file, offset_bytes, version) for offset_bytes in (0, SIZE_BYTES)]
        if task.part is OPTIMIZER:
            assert files[task.layer, P] == [(donor, task.layer, P, offset, version) for offset in (0, SIZE_BYTES)]
            layers[task.layer] = version
        if task.part is GRADIENT:
            assert layers[task.layer] == version, "a step is taken where the one before it has led"
            layers[task.layer] += 1
    assert layers == dict.fromkeys(LAYERS, step)
    assert [type(command) for command in commands].count(Adopt) == 1
    assert isinstance(commands[-1], Adopt)


def test_every_donor_is_asked_for_another_layer_and_for_one_range_at_a_time():
    fixture = Fixture(22, 23)
    assert fixture.begun == [(at(22), 4, P, 0, 3), (at(23), 5, P, 0, 3)]
    assert asked(fixture.give(23, 5, P)) == [(at(23), 5, P, SIZE_BYTES, 3)]
    assert asked(fixture.give(23, 5, P, SIZE_BYTES)) == [(at(23), 5, OPTIMIZER, 0, 3)]
    assert asked(fixture.give(23, 5, OPTIMIZER)) == [(at(23), 5, OPTIMIZER, SIZE_BYTES, 3)]
    assert asked(fixture.give(23, 5, OPTIMIZER, SIZE_BYTES)) == [(at(23), 6, P, 0, 3)]
    assert asked(fixture.give(22, 4, P)) == [(at(22), 4, P, SIZE_BYTES, 3)]


@pytest.mark.parametrize("donors", [(22,), (22, 23), (22, 23, 24, 25)])
def test_all_of_it_comes_once_and_is_adopted(donors):
    fixture = Fixture(*donors)
    commands = fixture.finish(fixture.begun)
    check_whole(commands)
    assert sorted(imported(commands)) == sorted((*file, offset) for file in FILES for offset in (0, SIZE_BYTES))
    assert fixture.loader.is_adopting
    assert fixture.loader.next_deadline_s() is None


def test_more_donors_than_layers_leave_some_with_nothing_to_do():
    me = new_machine().membership
    loader = Loader(me, restore(22, 23, step=3), layers=range(1), held=None, resend_s=1.0, importing=Importing())
    assert len(asked(loader.start(0.0))) == 1
    assert loader.next_deadline_s() == 1.0


def test_what_one_donor_was_asked_for_another_does_not_give():
    fixture = Fixture(22, 23)
    assert fixture.give(23, 4, P) == fixture.give(22, 5, P) == fixture.give(24, 4, P) == []
    assert fixture.give(22, 4, P, step=2) == []


def test_a_silent_donor_is_asked_again_and_then_another_gives_the_layer_from_its_beginning():
    """Half of it had come: no layer is put together of what two donors gave."""
    fixture = Fixture(22, 23)
    fixture.give(22, 4, P)
    fixture.give(22, 4, P, SIZE_BYTES)
    commands = fixture.finish(fixture.begun[1:], 22)
    assert not fixture.loader.is_adopting
    for now_s in (1.0, 3.0):
        assert asked(fixture.tick(now_s)) == [(at(22), 4, OPTIMIZER, 0, 3)]
    again = asked(fixture.tick(7.0))
    assert again == [(at(23), 4, P, 0, 3)]
    assert fixture.give(22, 4, OPTIMIZER) == [], "it comes too late"
    check_whole([*commands, *fixture.finish(again)])


def test_the_last_donor_is_asked_for_ever():
    fixture = Fixture(22)
    for now_s in (1.0, 3.0, 7.0, 15.0, 31.0):
        assert asked(fixture.tick(now_s)) == [(at(22), 4, P, 0, 3)]
        assert fixture.tick(now_s) == []


def test_of_two_silent_donors_one_stays():
    fixture = Fixture(22, 23)
    fixture.tick(1.0)
    fixture.tick(3.0)
    assert len(asked(fixture.tick(7.0))) == 1
    assert asked(fixture.tick(40.0))


def test_an_order_with_other_donors_goes_on_with_what_has_come():
    fixture = Fixture(22, 23)
    commands = fixture.give(22, 4, P) + fixture.give(22, 4, P, SIZE_BYTES)
    pulls = fixture.follow(22, 24)
    assert pulls == [(at(24), 5, P, 0, 3)], "it gives what 23 was to give"
    assert fixture.follow(22, 24) == [], "it is a level"
    commands += fixture.finish([*asked(commands)[-1:], *pulls])
    check_whole(commands)
    assert (4, P, 0) in imported(commands)


def test_a_donor_at_another_address_is_another_one():
    fixture = Fixture(22)
    assert fixture.follow(22, address="sim://elsewhere") == [("sim://elsewhere", 4, P, 0, 3)]


def test_a_silent_donor_that_is_named_again_is_not_asked_again_unless_it_is_the_only_one():
    fixture = Fixture(22, 23)
    fixture.finish(fixture.begun[1:], 22)
    for now_s in (1.0, 3.0, 7.0):
        fixture.tick(now_s)
    assert fixture.follow(22, 23) == []
    assert fixture.follow(22) == [(at(22), 4, P, 0, 3)]


def test_the_trainer_is_where_it_always_is():
    me = new_machine().membership
    loader = Loader(
        me, restore(0, address="sim://nowhere", step=3), layers=range(1), held=None, resend_s=1.0, importing=Importing()
    )
    assert [pull[0] for pull in asked(loader.start(0.0))] == [TRAINER_AT]


def test_a_donor_is_not_given_up_at_the_first_silence():
    assert limits.MAX_ASKED_OF_ONE > 1


# -- steps that are taken meanwhile ------------------------------------------------------------------


def whole(fixture: Fixture, donor: int, layer: int, step: int) -> list[Any]:
    """Give both files of a layer."""
    return [
        command
        for part in STATE_FILES
        for offset_bytes in (0, SIZE_BYTES)
        for command in fixture.give(donor, layer, part, offset_bytes, step=step)
    ]


def test_a_layer_that_has_begun_is_given_to_its_end_and_then_takes_the_step():
    fixture = Fixture(22)
    commands = fixture.give(22, 4, P)
    assert fixture.follow(22, step=4) == [], "the donor still has it"
    commands += fixture.give(22, 4, P, SIZE_BYTES)
    commands += fixture.give(22, 4, OPTIMIZER)
    last = fixture.give(22, 4, OPTIMIZER, SIZE_BYTES)
    assert asked(last) == [(at(22), 4, GRADIENT, 0, 3)], "before any further layer"
    fixture.give(22, 4, GRADIENT)
    begun = fixture.give(22, 4, GRADIENT, SIZE_BYTES)
    assert asked(begun) == [(at(22), 5, P, 0, 4)], "which is begun where the swarm is by now"


@pytest.mark.parametrize("donors", [(22,), (22, 23), (22, 23, 24)])
def test_with_a_step_after_every_few_ranges_all_layers_end_at_the_newest(donors):
    """However short the steps are: what has come is of use."""
    fixture = Fixture(*donors)
    pulls, commands, step = fixture.begun, [], 3
    for turn in range(200):
        if turn % 5 == 4 and step < 9:
            step += 1
            pulls += fixture.follow(*donors, step=step)
        if not pulls:
            break
        peer, layer, part, offset_bytes, of = pulls.pop(0)
        follow_up = fixture.give(int(peer.rpartition("-")[2]), layer, part, offset_bytes, step=of)
        commands += follow_up
        pulls += asked(follow_up)
    assert fixture.loader.version == (0, step)
    check_whole(commands, step)


def test_whoever_holds_an_earlier_version_takes_its_steps_alone():
    fixture = Fixture(22, 23, held=(Branch(0), Step(2)))
    assert fixture.begun == [(at(22), 4, GRADIENT, 0, 2), (at(23), 5, GRADIENT, 0, 2)]
    commands = fixture.finish(fixture.begun)
    assert {task.part for task in of_type(commands, Import)} == {GRADIENT}
    assert isinstance(commands[-1], Adopt)


@pytest.mark.parametrize("part", [P, GRADIENT])
def test_a_donor_that_has_it_no_more_gives_the_layer_as_it_is(part):
    """Which is further than what was known: the other layers have to get there, too."""
    held = (Branch(0), Step(2)) if part is GRADIENT else None
    fixture = Fixture(22, held=held)
    assert asked(fixture.give(22, 4, P, step=5)) == [(at(22), 4, P, SIZE_BYTES, 5)]
    assert fixture.loader.version == (0, 5)
    assert fixture.give(22, 4, P, step=5) == [], "a duplicate"
    assert fixture.give(22, 4, P, SIZE_BYTES, step=3) == [], "of what was asked for before"


def test_a_layer_in_the_middle_is_begun_anew_if_its_donor_says_so():
    fixture = Fixture(22)
    commands = fixture.give(22, 4, P) + fixture.give(22, 4, P, SIZE_BYTES) + fixture.give(22, 4, OPTIMIZER)
    again = fixture.give(22, 4, P, step=9)
    assert asked(again) == [(at(22), 4, P, SIZE_BYTES, 9)]
    commands += again
    check_whole([*commands, *fixture.finish(asked(again))], 9)


def test_an_older_order_is_late():
    fixture = Fixture(22)
    fixture.follow(22, step=5)
    assert fixture.follow(24, step=4) == []
    assert fixture.loader.version == (0, 5)


def test_a_state_of_another_branch_is_none():
    fixture = Fixture(22)
    message = state(22, 4, 0, TOTAL_BYTES, SIZE_BYTES, part=P, step=5, branch=1)
    assert fixture.loader.received(message, load("x"), 0.0) == []


def test_a_step_is_asked_of_who_has_given_the_layer_since_others_have_not_kept_it():
    fixture = Fixture(22)
    whole(fixture, 22, 4, 3)
    asked_of_both = fixture.follow(22, 23, step=4)
    assert asked_of_both == [(at(23), 6, P, 0, 4)], "22 is in the middle of layer 5"
    for part in STATE_FILES:
        commands = [c for offset in (0, SIZE_BYTES) for c in fixture.give(22, 5, part, offset)]
    assert asked(commands)[-1] == (at(22), 4, GRADIENT, 0, 3)


def test_a_step_whose_giver_is_gone_is_asked_of_anybody():
    fixture = Fixture(22, 23)
    whole(fixture, 22, 4, 3)
    assert (at(24), 4, GRADIENT, 0, 3) in fixture.follow(24, step=4)


def test_the_trainer_is_asked_for_layers_alone():
    """Its checkpoint is of one step. It was asked for steps for ever."""
    fixture = Fixture(22)
    whole(fixture, 22, 4, 3)
    assert fixture.follow(0, step=4) == [(TRAINER_AT, 4, P, 0, 4)]
    held = Fixture(0, held=(Branch(0), Step(2)))
    assert held.begun == [(TRAINER_AT, 4, P, 0, 3)]


def test_on_a_slow_link_nothing_is_asked_for_twice():
    fixture = Fixture(22)
    fixture.now_s = 0.9
    fixture.give(22, 4, P)
    assert asked(fixture.tick(0.9 + 1.7)) == []
    assert asked(fixture.tick(0.9 + 1.9)) == [(at(22), 4, P, SIZE_BYTES, 3)]


# -- how much is asked at a time ---------------------------------------------------------------------


@pytest.mark.usefixtures("many_at_a_time")
@pytest.mark.parametrize("donors", [(22,), (22, 23), (22, 23, 24, 25)])
def test_asked_for_much_at_a_time_all_of_it_comes_once(donors):
    fixture = Fixture(*donors)
    check_whole(fixture.finish(fixture.begun))


@pytest.mark.usefixtures("many_at_a_time")
def test_layers_whose_size_is_not_known_are_taken_for_large_ones(monkeypatch):
    monkeypatch.setattr(limits, "PULLED_BYTES", 2 * limits.STATE_RANGE_BYTES)
    assert Fixture(22).begun == [(at(22), 4, P, 0, 3), (at(22), 5, P, 0, 3)]
    assert Fixture(22, 23).begun == [(at(22), 4, P, 0, 3), (at(23), 5, P, 0, 3), (at(22), 6, P, 0, 3)]


@pytest.mark.usefixtures("many_at_a_time")
def test_of_small_layers_as_many_are_asked_for_as_a_donor_takes():
    """Each waits there for the end of a job: one at a time, and a job per step, would never get through all of them."""
    me, importing = new_machine().membership, Importing()
    loader = Loader(me, restore(22, step=3), layers=range(40), held=None, resend_s=1.0, importing=importing)
    pulls = asked(loader.start(0.0))
    assert len(pulls) == limits.PULLED_BYTES // limits.STATE_RANGE_BYTES
    while pulls:
        _, layer, part, _, _ = pulls.pop(0)
        message = state(22, layer, 0, SIZE_BYTES, SIZE_BYTES, part=part, step=3)
        commands = loader.received(message, load("x"), 0.1)
        importing.num_ranges = 0
        pulls += asked(commands)
    assert isinstance(commands[-1], Adopt)
    loader = Loader(me, restore(22, step=4), layers=range(40), held=None, resend_s=1.0, importing=Importing())
    loader._file_bytes = dict.fromkeys(range(40), SIZE_BYTES)
    assert len(asked(loader.start(0.0))) == MANY


@pytest.mark.usefixtures("many_at_a_time")
def test_a_donor_that_was_silent_once_is_asked_again_when_no_other_answers():
    """22 was slow at the beginning; 23 cannot be reached from here any more."""
    fixture = Fixture(22, 23)
    for now_s in (1.0, 3.0):
        fixture.tick(now_s)
        for _, layer, *_ in [ask for ask in fixture.begun if ask[0] == at(23)]:
            fixture.give(23, layer, P)
    fixture.tick(7.0)
    assert fixture.follow(22, 23) == []
    now_s = 7.0
    for _ in range(6):
        now_s += 10.0
        fixture.tick(now_s)
    assert at(22) in {ask[0] for ask in fixture.follow(22, 23)} or at(22) in {
        ask[0] for ask in asked(fixture.tick(now_s + 100.0))
    }


@pytest.mark.usefixtures("many_at_a_time")
def test_a_checkpoint_that_has_passed_is_asked_for_no_more():
    fixture = Fixture(0)
    assert {ask[4] for ask in fixture.begun} == {3}
    assert {ask[4] for ask in fixture.follow(0, step=4)} == {4}


def test_what_comes_faster_than_it_is_taken_is_not_asked_for(monkeypatch):
    """256 ranges that waited for one long job ended the process."""
    monkeypatch.setattr(limits, "MAX_IMPORTING", 2)
    fixture = Fixture(22)
    fixture.takes_at_once = False
    (first,) = fixture.begun
    layer = first[1]
    assert asked(fixture.give(22, layer, P)), "there is room for one more"
    assert asked(fixture.give(22, layer, P, SIZE_BYTES)) == []
    assert asked(fixture.tick(1000.0)) == [], "nobody owes an answer"
    assert fixture.loader.imported(1000.0) == [], "there is no room yet"
    fixture.importing.num_ranges -= 1
    (ask,) = asked(fixture.loader.imported(1000.0))
    assert ask[1:4] == (layer, OPTIMIZER, 0)
    assert asked(fixture.tick(1000.0 + 1.5)) == [ask], "and if it is lost, again"
