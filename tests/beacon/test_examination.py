"""`zswarm doctor` finds every hole, and measures pair after pair."""

from __future__ import annotations

from random import Random

from tests.beacon.world import World, at
from zswarm import limits
from zswarm.beacon.examination import ASK_S, LOOK_S, Examination
from zswarm.beacon.machine import Beacon, BeaconSettings
from zswarm.cli.doctor import diagnose, matrix
from zswarm.ids import Address
from zswarm.machine import Exit


def examined(world: World, seeds, *, with_rates=True, within_s=60.0):
    settings = BeaconSettings(
        machine="here", boot_nonce=1000, address=Address(""), release="1.0", seeds=tuple(map(at, seeds))
    )
    examination = Examination(
        Beacon(settings, choose=Random(0).randrange, now=world.now), now=world.now, with_rates=with_rates
    )
    world.processes[99] = examination
    begun_s = world.now
    while not world.said_by(99, Exit):
        assert world.now - begun_s < within_s, "it does not end"
        world.run(0.1)
    del world.processes[99]
    return examination.findings


def lab(numbers=(1, 2, 3), down=()) -> World:
    world = World()
    for number in numbers:
        world.add(number, seeds=[numbers[0]])
    world.run(3.0)
    world.down = set(down)
    world.run((limits.MISSED_GREETINGS + 1) * limits.GREET_CALM_S)
    return world


def test_a_whole_swarm_has_no_hole():
    world = lab()
    findings = examined(world, [2])
    assert set(findings.patients) == {at(1), at(2), at(3)}
    assert len(findings.rates) == 6
    assert all(measured.bytes_per_s > 0 for measured in findings.rates.values())
    assert diagnose(findings, {}) == []
    assert matrix(findings).row_count == 3


def test_more_contacts_than_one_answer_holds():
    numbers = tuple(range(1, limits.MAX_REPORTED_CONTACTS + 4))
    findings = examined(lab(numbers), [1], with_rates=False)
    assert len(findings.patients) == len(numbers)
    assert all(len(patient.contacts) == len(numbers) - 1 for patient in findings.patients.values())


def test_a_way_that_is_cut_is_a_hole_with_its_cause():
    """What 3 dials at 2 is dropped: the other way works, and the doctor itself gets through."""
    (hole,) = diagnose(examined(lab(down=[(3, 2)]), [1]), {})
    assert hole.where == "m3 (10.0.0.3) does not reach m2 (10.0.0.2)"
    assert hole.cause == "the other way works"
    assert "open port 4710 on m2 for 10.0.0.3" in hole.cure


def test_whom_nobody_reaches_is_at_fault_himself():
    findings = examined(lab((1, 2, 3, 4), down=[(1, 3), (2, 3), (4, 3)]), [1])
    holes = diagnose(findings, {})
    assert len(holes) == 3
    assert all("lets this machine in alone" in hole.cure for hole in holes)


def test_whoever_has_joined_for_his_own_machine_alone_is_told_so():
    """The others were told to open a port for the loopback of one of them."""
    findings = examined(lab((1, 2)), [1])
    findings.patients[at(2)].address = Address("tcp://127.0.0.1:4710")
    (hole,) = diagnose(findings, {})
    assert hole.where == "m2 (127.0.0.1)"
    assert hole.cure == "Start `zswarm join` there without --host"
    del findings.patients[at(1)]
    assert diagnose(findings, {}) == []


def test_whoever_does_not_answer_is_knocked_at():
    world = lab()
    del world.processes[3]
    findings = examined(world, [1])
    assert findings.silent == (at(3),)
    for answer, word in (
        ("open", "swarm keys"),
        ("refused", "zswarm join"),
        ("silent", "firewall"),
        ("unreachable", "ip route"),
    ):
        (hole,) = diagnose(findings, {at(3): answer})
        assert word in hole.cure
        assert hole.where == "10.0.0.3:4710"


def test_nobody_there():
    """It ends in time, and knows whom it has asked."""
    findings = examined(World(), [7], within_s=LOOK_S + ASK_S + 1.0)
    assert not findings.patients
    assert findings.silent == (at(7),)


def test_a_beacon_that_dies_in_the_middle_does_not_hold_it_up():
    world = lab()
    settings = BeaconSettings(machine="here", boot_nonce=1000, address=Address(""), release="1.0", seeds=(at(1),))
    examination = Examination(
        Beacon(settings, choose=Random(0).randrange, now=world.now), now=world.now, with_rates=True
    )
    world.processes[99] = examination
    world.run(LOOK_S - 0.01)
    del world.processes[2]
    world.run(ASK_S + 6 * (limits.MEASURE_S + 1.5))
    assert world.said_by(99, Exit)
    problems = {pair: measured.problem for pair, measured in examination.findings.rates.items() if measured.problem}
    assert set(problems) <= {(at(1), at(2)), (at(3), at(2))}


def test_namesakes_and_versions_are_holes():
    world = World()
    for number in (1, 2):
        world.add(number, seeds=[1], machine="debian")
    world.run(3.0)
    findings = examined(world, [1])
    findings.patients[at(2)].release = "2.0"
    texts = [str(hole) for hole in diagnose(findings, {})]
    assert any("versions" in text and "2.0 on debian" in text for text in texts)
    assert any("2 machines have this name: 10.0.0.1, 10.0.0.2" in text for text in texts)
