"""When a checkpoint is taken, and what becomes of it."""

from __future__ import annotations

import pytest

from tests.letters import header, heartbeat, load, of_type, pull, register, state
from tests.trainer.settings import recovered, settings
from zswarm.errors import RunFailed
from zswarm.ids import STATE_FILES, Address, StatePart
from zswarm.machine import Exit, Send
from zswarm.messages import Pull, State
from zswarm.trainer.archive import Archive
from zswarm.trainer.roster import Roster
from zswarm.trainer.settings import Append, Behind, CaughtUp, Forsake, Read, Seal, Sealed, Store, WasRead

STEPS = 9
VERSION = (0, 4)
DONORS = {0: 1, 1: 2}


class Fixture:
    """A run of nine steps with a checkpoint every second one; each of two stages has one layer and one worker."""

    def __init__(self, **changes) -> None:
        self.roster = Roster(num_stages=2, first_session=1)
        for index in range(2):
            self.roster.register(register(f"w{index}"), Address("sim://link"), 0.0)
        self.archive = Archive(settings(**{"steps": STEPS, "checkpoint_every": 2} | changes), self.roster, header())
        self.num_reports = 0
        self.report(*VERSION)

    def report(self, branch, step):
        self.num_reports += 1
        for session in (1, 2):
            message = heartbeat(session, self.num_reports, branch=branch, step=step)
            self.roster.records[session].note(message, 0.0)

    def get(self, session, part, version=VERSION):
        branch, step = version
        message = state(session, session - 1, 0, 10, 10, part=part, branch=branch, step=step)
        return self.archive.received(message, load("layer", 10))

    def get_all(self, version=VERSION):
        """Both layers come, both parts of each; returns what follows from the last one."""
        return [self.get(session, part, version) for session in (1, 2) for part in STATE_FILES][-1]


def sealed(version=VERSION, problem=""):
    return Sealed(branch=version[0], step=version[1], problem=problem)


def problems(commands) -> list[str]:
    records = [command.record for command in commands if isinstance(command, Append)]
    return [record["problem"] for record in records if record["event"] == "checkpoint"]


@pytest.fixture
def run():
    return Fixture()


# -- when --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "due"),
    [(0, []), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (2, [2, 4, 6, 8]), (3, [3, 6]), (9, []), (10, [])],
)
def test_which_steps_are_due(every, due):
    """The last one is taken at the end whatever the interval is, from whoever has it."""
    archive = Fixture(checkpoint_every=every).archive
    assert [step for step in range(1, STEPS + 1) if archive.is_due(step)] == due


def test_none_is_due_while_one_is_in_work(run):
    """Nobody would be asked to keep a copy, and the copies of the one in work stay."""
    assert run.archive.is_due(4)
    run.archive.begin(VERSION, DONORS)
    assert not run.archive.is_due(6)
    run.get_all()
    assert not run.archive.is_due(6), "it is being sealed"
    run.archive.told(sealed())
    assert run.archive.is_due(6)


def test_without_a_copy_of_every_stage_there_is_none(run):
    """Whoever was to keep it left between its Prepared and the commit."""
    assert run.archive.begin(VERSION, {0: 1}) == []
    assert not run.archive.is_busy


# -- to the disk -------------------------------------------------------------------------------------


def test_a_checkpoint_from_the_first_range_to_the_log(run):
    asked = run.archive.begin(VERSION, DONORS)
    assert [(message.layer, message.step) for message in of_type(asked, Pull)] == [(0, 4), (1, 4)]
    assert len(of_type(run.get(1, StatePart.PARAMETERS), Store)) == 1
    commands = run.get_all()
    assert [type(command) for command in commands] == [Store, Seal], "the last range before the seal"
    assert commands[-1] == Seal(branch=0, step=4)
    assert run.archive.newest is None, "it is not on the disk yet"
    (append,) = run.archive.told(sealed())
    assert append == Append(record={"event": "checkpoint", "branch": 0, "step": 4}, durable=True)
    assert (run.archive.newest, run.archive.step) == (VERSION, 4)


def test_what_is_missing_is_asked_for_again(run):
    assert run.archive.beat() == []
    run.archive.begin(VERSION, DONORS)
    run.archive.beat()
    assert len(of_type(run.archive.beat(), Pull)) == 2


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(run):
    run.archive.begin(VERSION, DONORS)
    run.get_all()
    (append,) = run.archive.told(sealed(problem="no space left"))
    assert append.record == {"event": "checkpoint", "branch": 0, "step": 4, "problem": "no space left"}
    assert (run.archive.newest, run.archive.is_busy) == (None, False)


def test_a_worker_that_leaves_with_its_copy_costs_one_checkpoint(run):
    run.archive.begin(VERSION, DONORS)
    run.get(1, StatePart.PARAMETERS)
    run.roster.remove(2, 0.0)
    commands = run.archive.beat()
    assert commands[0] == Forsake(branch=0, step=4)
    assert problems(commands) == ["session 2, which kept a copy for it, is gone, or has none"]
    assert not run.archive.is_busy
    assert run.get(1, StatePart.OPTIMIZER) == []


def test_the_seal_of_another_checkpoint_is_none_of_this_one(run):
    run.archive.begin(VERSION, DONORS)
    run.get_all()
    assert run.archive.told(sealed((0, 2))) == []
    assert run.archive.told(sealed((1, 4))) == []
    assert run.archive.newest is None
    assert len(run.archive.told(sealed())) == 1
    assert run.archive.told(sealed()) == [], "once"


# -- the last one ------------------------------------------------------------------------------------


def test_the_last_state_takes_the_place_of_a_checkpoint_in_work(run):
    """Every run that ended soon after a checkpoint told its user that there was none."""
    run.archive.begin(VERSION, DONORS)
    run.report(0, STEPS)
    commands = run.archive.begin((0, STEPS), None)
    assert commands[0] == Forsake(branch=0, step=4)
    assert problems(commands) == []
    assert {message.step for message in of_type(commands, Pull)} == {STEPS}
    assert run.get_all((0, STEPS))[-1] == Seal(branch=0, step=STEPS)
    run.archive.told(sealed((0, STEPS)))
    assert run.archive.newest == (0, STEPS)


def test_without_the_last_state_the_run_has_failed(run):
    run.report(0, STEPS)
    run.archive.begin((0, STEPS), None)
    run.get_all((0, STEPS))
    with pytest.raises(RunFailed, match="all steps are done, and the trained model cannot be written: no space left"):
        run.archive.told(sealed((0, STEPS), "no space left"))


def test_without_room_for_the_last_state_the_trainer_ends_and_not_the_run(run):
    """It ended the run for everybody with the exit code of a failure: no service went on when there was room."""
    run.report(0, STEPS)
    run.archive.begin((0, STEPS), None)
    run.get_all((0, STEPS))
    text = "all steps are done, and the trained model cannot be written: no space left"
    event = Sealed(branch=0, step=STEPS, problem="no space left", lacks_room=True)
    assert run.archive.told(event) == [Exit(code=75, text=text)]


def test_the_last_state_does_not_depend_on_one_worker(run):
    run.report(0, STEPS)
    run.archive.begin((0, STEPS), None)
    run.roster.register(register("w2", stage=0), Address("sim://link"), 0.0)
    run.roster.records[3].note(heartbeat(3, 1, step=STEPS), 0.0)
    run.roster.remove(1, 0.0)
    sends = [command for command in run.archive.beat() if isinstance(command, Send)]
    assert [(send.peer, send.message.layer) for send in sends] == [("sim://w2/a", 0)]


# -- going back --------------------------------------------------------------------------------------


def test_going_back_drops_what_is_being_fetched(run):
    run.archive.newest = (0, 2)
    run.archive.begin(VERSION, DONORS)
    commands = run.archive.roll_back()
    assert commands[0] == Forsake(branch=0, step=4)
    assert problems(commands) == ["the run has gone back to an earlier step"]
    assert (run.archive.newest, run.archive.is_busy) == ((0, 2), False)
    assert run.archive.roll_back() == []


def test_a_seal_that_comes_after_going_back_is_of_a_history_that_is_void(run):
    """The log would call a checkpoint complete to which nobody may go back."""
    run.archive.newest = (0, 2)
    run.archive.begin(VERSION, DONORS)
    run.get_all()
    assert run.archive.roll_back() == []
    assert run.archive.told(sealed()) == []
    assert (run.archive.newest, run.archive.is_busy) == ((0, 2), False)


# -- as a source -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest", "version", "asked", "is_read"),
    [
        ((0, 4), (0, 4), (0, 4), True),
        ((0, 4), (1, 4), (1, 4), True),
        ((0, 4), (1, 4), (0, 4), False),
        ((0, 4), (0, 5), (0, 4), False),
        ((0, 4), (0, 5), (0, 5), False),
        (None, (0, 4), (0, 4), False),
    ],
    ids=[
        "the present state",
        "on the branch that begins with it",
        "the branch before",
        "the run is further",
        "no checkpoint of it",
        "none at all",
    ],
)
def test_a_checkpoint_is_read_for_whoever_pulls_the_present_state(run, newest, version, asked, is_read):
    run.archive.newest = newest
    message = pull(1, offset_bytes=30, part=StatePart.OPTIMIZER, session=2, branch=asked[0], step=asked[1])
    commands = run.archive.pulled(message, Address("sim://w1"), version)
    assert commands == ([Read(peer="sim://w1", pull=message, checkpoint=(0, 4))] if is_read else [])


def test_what_was_read_is_sent(run):
    message = pull(1, offset_bytes=30, part=StatePart.OPTIMIZER, session=2, branch=1, step=4)
    event = WasRead(peer=Address("sim://w1"), pull=message, total_bytes=40, load=load("range", 10))
    (send,) = run.archive.told(event)
    assert (send.peer, send.frames) == ("sim://w1", ("range",))
    assert send.message == state(0, 1, 30, 40, 10, part=StatePart.OPTIMIZER, branch=1, step=4)
    assert isinstance(send.message, State)


@pytest.mark.parametrize(("layer", "is_read"), [(1, True), (2, False), (999, False)])
def test_a_layer_that_the_run_does_not_have_is_not_looked_for(run, layer, is_read):
    """The disk had no such file, which passed for damage: one message made the run give up a checkpoint that was whole."""
    run.archive.newest = VERSION
    message = pull(layer, session=2, step=VERSION[1])
    assert len(run.archive.pulled(message, Address("sim://w1"), VERSION)) == is_read


def unreadable(step, left=((0, 2), (0, 4), (0, 6)), **changes):
    """What the disk says of a damaged checkpoint, and which others it has."""
    of = {"total_bytes": 0, "load": None, "problem": "it is damaged", "is_damaged": True, "left": left} | changes
    return WasRead(peer=Address("sim://w1"), pull=pull(1, session=2, step=step), **of)


def test_what_cannot_be_read_now_is_asked_for_again(run):
    """A process that had too many files open for a moment lost its run, or went back to an older step for good."""
    run.archive.newest = VERSION
    assert run.archive.told(unreadable(VERSION[1], problem="too many open files", is_damaged=False)) == []
    assert run.archive.newest == VERSION


def test_a_checkpoint_that_nobody_can_read_ends_the_run_if_it_is_the_only_one():
    archive = Fixture(checkpoint=(0, 4)).archive
    with pytest.raises(RunFailed, match="the checkpoint cannot be read: it is damaged"):
        archive.told(unreadable(4))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it():
    """Whatever `keep` says, one bad byte in the newest one ended a run that somebody had started weeks ago."""
    archive = Fixture(checkpoint=(1, 6), recovered=recovered(checkpoints=((0, 2), (0, 4), (1, 6)))).archive
    (append,) = archive.told(unreadable(6))
    assert (append.record["event"], append.record["step"], append.record["problem"]) == (
        "checkpoint",
        6,
        "it is damaged",
    )
    assert archive.newest == (0, 4)
    assert archive.told(unreadable(6)) == [], "what was asked of it before"
    archive.told(unreadable(4))
    assert archive.newest == (0, 2)
    with pytest.raises(RunFailed, match="cannot be read"):
        archive.told(unreadable(2))


def test_the_one_before_it_is_one_that_is_still_on_the_disk():
    """The log knows those too that `keep` has removed: the swarm went back to one after the other, and said so each time."""
    found = recovered(checkpoints=((0, 2), (0, 4), (0, 6), (1, 8)))
    archive = Fixture(checkpoint=(1, 8), recovered=found).archive
    assert len(archive.told(unreadable(8, left=((0, 2), (0, 7))))) == 1
    assert archive.newest == (0, 2)


def test_the_run_ends_when_none_before_it_is_left():
    """Those on the disk may be of a history that is void, and those of the log are gone."""
    archive = Fixture(checkpoint=(1, 6), recovered=recovered(checkpoints=((0, 2), (0, 4), (1, 6)))).archive
    with pytest.raises(RunFailed, match="the checkpoint cannot be read: it is damaged"):
        archive.told(unreadable(6, left=((0, 8),)))


def test_a_checkpoint_of_this_life_is_one_before_the_next(run):
    for step in (4, 6):
        run.archive._sealing = (0, step)
        run.archive.told(Sealed(branch=0, step=step, problem=""))
    run.archive.told(unreadable(6))
    assert run.archive.newest == (0, 4)


def test_a_run_that_is_taken_up_begins_with_the_checkpoint_on_the_disk():
    archive = Fixture(checkpoint=(1, 6)).archive
    assert (archive.newest, archive.step, archive.is_busy) == ((1, 6), 6, False)
    assert Fixture().archive.step is None


def test_nothing_is_asked_for_while_the_disk_is_behind(run):
    """Nor does the time count: a donor that nobody asks is not taken for one that does not answer."""
    assert len(of_type(run.archive.begin(VERSION, DONORS), Pull)) == 2
    assert run.archive.told(Behind()) == []
    commands = run.get(1, StatePart.PARAMETERS)
    assert (len(of_type(commands, Store)), of_type(commands, Pull)) == (1, [])
    for _ in range(200):
        assert run.archive.beat() == []
    asked = of_type(run.archive.told(CaughtUp()), Pull)
    assert [(message.layer, message.part) for message in asked] == [(0, StatePart.OPTIMIZER)]
    assert len(of_type(run.get_all(), Seal)) == 1


def test_a_checkpoint_that_begins_while_the_disk_is_behind_waits(run):
    run.archive.told(Behind())
    assert run.archive.begin(VERSION, DONORS) == []
    assert len(of_type(run.archive.told(CaughtUp()), Pull)) == 2
